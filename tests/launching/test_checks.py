"""What the checks before a launch say of the facts of nodes: real facts of this host stand for three nodes, one of which is changed."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rb.core.config import DataConfig, DataSource, FoundationConfig, ModelConfig, RunConfig, TrainConfig
from rb.core.run_file import from_tree
from rb.core.run_layout import CHECKPOINTS, step_name
from rb.launching.checks import compare
from rb.launching.facts import make_request, node_facts, source_digest
from rb.launching.findings import ALLOWED, CHECKS, Finding, accept, failures, table
from rb.launching.hub import RemoteNode
from rb.launching.job import Wish
from rb.launching.launchers import SSH, Place
from rb.launching.machine import gpus, hurting_variables, ports
from rb.launching.request import Launch
from rb.launching.survey import saved_bytes, survey
from tests.support.remedies import Said, covers, helps, remedy
from tests.support.small_data import write_set

IMAGE_REGION = "image_region"
Tree = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, foundation: FoundationConfig) -> Path:
    """A set of shards and a copy of the tiny foundation's BLIP-2."""
    made = tmp_path_factory.mktemp("node")
    write_set(made / "set", IMAGE_REGION, 7)
    shutil.copytree(foundation.blip2, made / "blip2")
    return made


def request_of(folder: Path, **changes: Any) -> Tree:
    config = RunConfig(
        model=ModelConfig(FoundationConfig(blip2=str(folder / "blip2")), (IMAGE_REGION,)),
        data=DataConfig(train={IMAGE_REGION: (DataSource(str(folder / "set")),)}),
        train=TrainConfig(global_batch_size=12, micro_batch_size=2),
    )
    given: Tree = {"controller": ("127.0.0.1", 9), "checkpoint_bytes": 1000}
    return make_request(config, 2, folder / "runs" / "a", **given | changes)


@pytest.fixture(scope="module")
def known(folder: Path) -> Tree:
    """This host's facts, as a launch without a GPU would get them."""
    facts = node_facts(request_of(folder))
    facts["gpus"] = {"from": "", "devices": [], "usable": 0, "visible": None}
    return facts | {"received": facts["time"]}


def three(known: Tree) -> dict[str, Tree]:
    return {node: copy.deepcopy(known) for node in ("n1", "n2", "n3")}


def test_facts_are_json_quick_and_without_torch(folder: Path) -> None:
    code = (
        "import json, sys, time; from rb.launching.facts import node_facts; request = json.load(sys.stdin); start = time.process_time(); "
        "facts = node_facts(request); print(json.dumps([facts, time.process_time() - start, 'torch' in sys.modules]))"
    )
    asked = json.dumps(request_of(folder))
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, text=True, check=True)
    facts, seconds, torch_too = json.loads(done.stdout)
    assert not torch_too
    assert seconds < 1
    assert not (folder / "runs").exists(), "nothing is written"
    assert [f for f in compare({"n1": facts}, request_of(folder)) if f.state == "failed"] == []


def test_equal_nodes_pass_every_check(known: Tree, folder: Path) -> None:
    found = compare(three(known), request_of(folder))
    assert {f.state for f in found} == {"ok"}
    assert {f.check for f in found} == set(CHECKS) - {"secrets", "reach", "ports", "run", "allreduce"}
    lines = table(found).splitlines()
    assert lines[0].split() == ["check", "n1", "n2", "n3"]
    assert all(line.split()[1:] == ["ok"] * 3 for line in lines[1:])


def two_gpus(memory: int = 81920, usable: int = 2) -> Tree:
    return {"devices": [{"name": "A100", "memory_mb": memory}] * 2, "usable": usable, "visible": None}


def all_with_gpus(facts: dict[str, Tree], last: Tree) -> None:
    for known in facts.values():
        known["gpus"] = two_gpus()
    facts["n3"]["gpus"] = last


def put(*keys: str, value: Any) -> Callable[[dict[str, Tree]], None]:
    """Sets one fact of n3."""

    def change(facts: dict[str, Tree]) -> None:
        tree = facts["n3"]
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


def other_file(facts: dict[str, Tree]) -> None:
    files = facts["n3"]["foundation"]["model.foundation.blip2"]["files"]
    files["config.json"][1] = "f" * 64


def other_set(facts: dict[str, Tree]) -> None:
    next(iter(facts["n3"]["data"].values()))["digest"] = "f" * 64


# A piece of the remedy -> (check, what is wrong with n3, words of the line). The remedy is followed by what makes n3 like the others.
WRONG: dict[str, tuple[str, Callable[[dict[str, Tree]], None], str]] = {
    "install the same Python there": ("python", put("python", value="3.9.1"), "Python 3.9.1, on n1 and 1 more 3."),
    "install it there with `pip install": ("versions", put("versions", "torch", value="2.1.0"), "torch 2.1.0, on n1"),
    "check out the same commit there": ("commit", put("commit", value="f" * 40), "commit ffffffffffff, on n1"),
    "copy the checkout there, or": ("source", put("source", value="f" * 64), "files ffffffffffff, on n1"),
    "copy the set there from one node; `rb data diff`": ("data", other_set, "digest ffffffffffff, on n1"),
    "copy the folder there from one node": ("foundation", other_file, "config.json"),
    "run fewer ranks there, or end what else": ("memory", put("memory", "free", value=0), "0.0 GB free"),
    "give the container more (docker run": ("shm", put("shm", "free", value=100), "0.00 GB free"),
    "remove files there, or use another output_dir": ("disk", put("disk", "inodes", value=3), "room for 3 more files"),
    "use another output_dir, or lower train.keep": ("disk", put("disk", "free", value=2999), "0.00 GB free"),
    "change its owner or mode, or use another": ("folder", put("disk", "unwritable", value="/x: no"), "/x: no"),
    "raise it: `ulimit -n": ("files", put("files", "soft", value=100), "at most 100 open files"),
    "set the clock there (chrony": ("clock", put("received", value=time.time() - 3600), "s ahead of the controller"),
    "end what listens there (`ss -ltnp`": (
        "ports",
        put("ports", value={"29500": "in use"}),
        "port 29500 is not free (in",
    ),
    "set slots={} for it in the hostfile": (
        "gpus",
        lambda f: all_with_gpus(f, two_gpus(usable=1)),
        "1 GPUs for 2 ranks",
    ),
    "mend its driver (nvidia-smi), or leave": (
        "gpus",
        lambda f: all_with_gpus(f, two_gpus(usable=0)),
        "0 GPUs for 2 ranks",
    ),
    "leave it out if it slows the others": ("gpus", lambda f: all_with_gpus(f, two_gpus(40960)), "A100 40 GB, unlike"),
}


@pytest.mark.parametrize("piece", covers(WRONG))
def test_a_node_that_differs_is_named_and_the_remedy_helps(piece: str, known: Tree, folder: Path) -> None:
    check, change, words = WRONG[piece]
    facts = three(known)
    change(facts)

    def follow(said: Said) -> None:
        line = next(line for line in said.splitlines() if line.startswith(("FAILED: ", "warning: ")))
        assert f": n3: {check}: " in line
        assert words in line
        assert not [line for line in said.splitlines() if ": n1: " in line or ": n2: " in line]
        facts["n3"] = facts["n1"]

    helps(piece, lambda: table(compare(facts, request_of(folder))), follow)


def test_clocks_within_bounds(known: Tree, folder: Path) -> None:
    def state(ahead: float) -> str:
        facts = {"n1": known | {"time": known["received"] + ahead}}
        return next(f.state for f in compare(facts, request_of(folder)) if f.check == "clock")

    assert [state(s) for s in (0, 1.9, -1.9, 2.1, -9.9, 10.1, -11)] == ["ok"] * 3 + ["warning"] * 2 + ["failed"] * 2


def test_batch_sizes_that_do_not_divide(known: Tree, folder: Path) -> None:
    facts = three(known)
    facts["n3"]["ranks"] = 1
    (wrong,) = failures(compare(facts, request_of(folder)))
    assert (wrong.node, wrong.check) == ("all", "batch")
    assert "train.global_batch_size 12 is not a multiple of train.micro_batch_size 2 x 5 ranks" in wrong.value


@remedy("copy the set there whole, or mount it under the same path; `rb data verify` reads every byte")
def test_a_cut_shard(folder: Path, known: Tree) -> tuple[Callable[[], str], Callable[[Said], object]]:
    shard = sorted((folder / "set").glob("*.tar"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])

    def look() -> str:
        return table(compare({"n1": known, "n2": node_facts(request_of(folder))}, request_of(folder)))

    def follow(said: Said) -> None:
        assert f"FAILED: n2: data: {folder}/set: {shard.name} has {len(whole) - 512:,} bytes, the manifest says" in said
        shard.write_bytes(whole)

    return look, follow


@remedy("copy the folder there whole, or mount it under the same path")
def test_a_cut_weights_file(folder: Path, known: Tree) -> tuple[Callable[[], str], Callable[[Said], object]]:
    file = sorted((folder / "blip2").glob("*.safetensors"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])

    def follow(said: Said) -> None:
        assert f"{file.name} is not a complete safetensors file" in said
        file.write_bytes(whole)

    return lambda: table(compare({"n1": node_facts(request_of(folder))}, request_of(folder))), follow


def test_only_full_sees_one_byte_in_the_middle(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "node"
    shutil.copytree(folder, copied)
    shard, whole = next((copied / "set").glob("*.tar")), request_of(copied, full=True)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert not failures(compare({"n1": node_facts(request_of(copied))}, whole))
    (wrong,) = failures(compare({"n1": node_facts(whole)}, whole))
    assert f"{shard.name} was altered (sha256)" in wrong.value


def test_sources_that_differ_have_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = source_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not source")
    assert source_digest(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert source_digest(tmp_path) != before


def test_a_port_that_somebody_listens_on() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert "in use" in ports([port])[str(port)]
    assert ports([port, 70000])[str(port)] == ""
    assert ports([70000])["70000"]


def test_gpus_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA A100, 81920'\necho 'NVIDIA A100, [N/A]'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = gpus({})
    assert found["devices"] == [{"name": "NVIDIA A100", "memory_mb": 81920}, {"name": "NVIDIA A100", "memory_mb": 0}]
    usable = [gpus({"CUDA_VISIBLE_DEVICES": v})["usable"] for v in ("0,1", "1", "", "0,-1,1", "5,6,7")]
    assert [found["usable"], *usable] == [2, 2, 1, 0, 1, 2]
    assert gpus({"DS_ACCELERATOR": "cpu"})["usable"] == 0


ENVIRONMENTS = {
    "unset them: `unset {}`": ({"RANK": "1", "MASTER_ADDR": "a"}, True),
    "since `rb launch` finds the interface, or name one": ({"GLOO_SOCKET_IFNAME": "eth77"}, False),
    "and limit the ranks by the slots of the hostfile": ({"CUDA_VISIBLE_DEVICES": "0"}, False),
}


@pytest.mark.parametrize("piece", covers(ENVIRONMENTS))
def test_variables_that_hurt(piece: str, known: Tree, folder: Path) -> None:
    environ, alone = ENVIRONMENTS[piece]
    now = dict(environ)

    def look() -> str:
        facts = known | {"environment": hurting_variables(now, alone)}
        return table(compare({"n1": facts}, request_of(folder)))

    helps(piece, look, lambda said: [now.pop(name) for name in environ if f"unset {' '.join(environ)}" in said])


@pytest.mark.parametrize(
    ("value", "hurts"), [("lo", False), ("l", False), ("=l", True), ("x,lo", False), ("^x", False)]
)
def test_names_of_interfaces_as_nccl_reads_them(value: str, hurts: bool) -> None:
    assert bool(hurting_variables({"NCCL_SOCKET_IFNAME": value}, alone=True)) == hurts


@remedy("--allow {}: choose from {}; failures of other checks")
def test_only_some_failures_can_be_accepted() -> tuple[Callable[[], object], Callable[[Said], object]]:
    found, wish = [Finding("n1", "commit", "failed", "a"), Finding("n1", "data", "failed", "b")], ["data"]

    def follow(said: Said) -> None:
        assert "commit" in said.found("choose from (.*);")
        wish[:] = ["commit"]
        assert [f.state for f in accept(found, wish)] == ["warning", "failed"]

    return lambda: accept(found, wish), follow


def test_the_table_stays_narrow_and_plain() -> None:
    nodes = [f"node-{i:03}.rack.example" for i in range(20)]
    found = [Finding(node, check, "ok") for node in nodes for check in ALLOWED]
    found.append(Finding(nodes[7], "clock", "failed", "two\nlines\x1b[2J", "wait"))
    lines = table(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1] == f"FAILED: {nodes[7]}: clock: two lines [2J; wait"
    assert sum("FAILED" in line for line in lines) == 2


def test_a_launch_asks_for_room_for_the_checkpoints_of_a_run_that_goes_on(folder: Path, tmp_path: Path) -> None:
    class Answering(RemoteNode):
        """An agent that answers for this host."""

        def __init__(self) -> None:
            self.facts = None

        def ask_facts(self, request: Mapping[str, Any]) -> None:
            self.facts = node_facts(request) | {"received": time.time()}

    assert saved_bytes(tmp_path) is None
    for step, size in ((10, 7), (5, 70)):
        made = tmp_path / CHECKPOINTS / step_name(step)
        made.mkdir(parents=True)
        (made / "state.safetensors").write_bytes(bytes(size))
    assert saved_bytes(tmp_path) == 7
    os.truncate(tmp_path / CHECKPOINTS / step_name(10) / "state.safetensors", 1 << 43)  # sparse: it takes no room
    config = from_tree(RunConfig, request_of(folder)["config"])
    place = Place("n1", 2)
    launch = Launch("rb.train", SSH, (place,), config, (), run_dir=tmp_path)
    with Wish() as wish:
        (disk,) = (f for f in survey([Answering()], [place], launch, wish) if f.check == "disk")
    assert disk.state == "failed"
    assert "the checkpoints take 26388.28" in disk.value
