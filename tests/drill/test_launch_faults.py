"""Faults of a launch over two hosts (namespaces, real sshd and pdsh): each is named with its node, check and remedy before a rank starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from tests.support import small_data, tiny
from tests.support.hosts import FAKETIME, Host, Hosts, hosts
from tests.support.trials import Figures

ROOT = Path(__file__).resolve().parents[2]
TRAVELS = ("rb", "launch", "ds_configs", "setup.py", "README.md")
RANKS = ("rb.train", "rb.launching.probe")
AT_MOST_S = 120.0


@dataclass
class Site:
    """Two hosts, what they share, and the words of the command."""

    hosts: Hosts
    folder: Path
    hostfile: Path
    words: list[str] = field(default_factory=list)

    @property
    def second(self) -> Host:
        return self.hosts[1]

    def other(self, name: str, change: Callable[[Path], object]) -> None:
        """Show the second host an altered copy of a shared folder."""
        copied = self.folder / f"other_{name}"
        shutil.copytree(self.folder / name, copied)
        change(copied)
        self.second.view(self.folder / name, copied)

    def variables(self, host: Host, **changes: str | None) -> None:
        """Set or unset (none) variables of a host's logins."""
        for name, value in changes.items():
            host.environment.pop(name, None)
            host.environment |= {name: value} if value is not None else {}
        host.reload()


@pytest.fixture(scope="module")
def shared(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all hosts see: a checkout with a commit, data, foundation, a run file, the folder of runs."""
    folder = tmp_path_factory.mktemp("faults")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in TRAVELS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout / name)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", *NOBODY, *words], cwd=checkout, check=True)
    small_data.write_set(folder / "clouds", "point_cloud", 7)
    model = to_tree(tiny.model_config(foundation, train_modalities=("point_cloud",)))
    for part, path in model["foundation"].items():
        if path:
            place = folder / "foundation" / part
            place.parent.mkdir(exist_ok=True)
            (shutil.copytree if Path(path).is_dir() else shutil.copy)(path, place)
            model["foundation"][part] = str(place)
    tree = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "model": model,
        "data": {"train": {"point_cloud": [{"manifest": str(folder / "clouds")}]}, "num_workers": 1},
        "train": {
            "global_batch_size": 2,
            "micro_batch_size": 1,
            "max_steps": 2,
            "ds_config": "ds_configs/zero2_cpu.json",
        },
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    (folder / "runs").mkdir()
    return folder


NOBODY = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false")


def hostfile(content: str) -> Callable[[Site], object]:
    return lambda site: site.hostfile.write_text(content)


def append(name: str, text: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return change


def another_commit(folder: Path) -> None:
    subprocess.run(["git", *NOBODY, "commit", "-q", "--allow-empty", "-m", "two"], cwd=folder, check=True)


def another_torch(folder: Path) -> None:
    (folder / "torch-9.9.9.dist-info").mkdir()
    (folder / "torch-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")


def another_set(folder: Path) -> None:
    shutil.rmtree(folder)
    small_data.write_set(folder, "point_cloud", 8)


def cut_weights(folder: Path) -> None:
    file = sorted((folder / "blip2").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-4])


def gpus_of(site: Site) -> None:
    """Drivers that show one GPU on the first host, none on the second."""
    for host, number in zip(site.hosts, (1, 0), strict=True):
        folder = site.folder / f"bin_{host.name}"
        folder.mkdir(exist_ok=True)
        (folder / "nvidia-smi").write_text("#!/bin/sh\n" + "echo 'NVIDIA A100-SXM4-80GB, 81920'\n" * number)
        (folder / "nvidia-smi").chmod(0o755)
        site.variables(host, DS_ACCELERATOR=None, PATH=f"{folder}:{host.environment['PATH']}")


def listen(site: Site) -> None:
    code = "import socket, time; s = socket.socket(); s.bind(('', 29555)); s.listen(); print('ready', flush=True); time.sleep(600)"
    listening = site.hosts[0].run(sys.executable, "-c", code)
    while "ready" not in listening.said():
        time.sleep(0.05)
    site.words += ["--master-port", "29555"]


def changed_key(site: Site) -> None:
    known = site.hosts[0].ssh / "known_hosts"
    first, second = known.read_text().splitlines()
    known.write_text(f"{first}\n{second.split()[0]} {' '.join(first.split()[1:])}\n")


def unknown_key(site: Site) -> None:
    known = site.hosts[0].ssh / "known_hosts"
    known.write_text(known.read_text().splitlines()[0] + "\n")


def wrong_clock(site: Site) -> None:
    """By ssh alone: under libfaketime Python's `time.sleep`, in which DeepSpeed's launcher waits on a node, fails."""
    site.second.clock(-3600)
    site.words += ["--launcher", "ssh"]


# Name -> (how it comes about, what the last line says: node and check, or the file, and the begin of the remedy).
FAULTS: dict[str, tuple[Callable[[Site], object], str]] = {
    "no hostfile": (lambda s: s.hostfile.unlink(), r"hosts: no such file; write one with a line such as"),
    "empty hostfile": (hostfile("\n# none\n"), r"hosts: names no host; write a line"),
    "malformed hostfile": (
        hostfile("node1 slots=1\nnode2\n"),
        r"hosts, line 2: 'node2' is not a host and its slots; write it as",
    ),
    "unknown host": (hostfile("node1 slots=1\nnode9 slots=1\n"), r"node9: reach: unknown host .*; correct its name"),
    "unreachable host": (
        lambda s: s.second.link(False),
        r"node2: reach: unreachable: no answer .*; look whether it runs",
    ),
    "no sshd": (
        lambda s: s.second.stop_sshd(),
        r"node2: reach: nothing listens on its port for ssh .*; start sshd there",
    ),
    "refused key": (
        lambda s: s.second.authorise(False),
        r"node2: reach: it refuses the key .*; add this user's public key",
    ),
    "changed host key": (changed_key, r"node2: reach: its host key has changed.*ssh-keygen -R node2"),
    "unknown host key": (unknown_key, r"node2: reach: its host key is not known here .*; log in once by hand"),
    "no checkout": (
        lambda s: s.second.view(s.folder / "checkout"),
        r"node2: reach: the package cannot be imported there .*; install it there",
    ),
    "other source": (
        lambda s: s.other("checkout", append("rb/core/text.py", "\n# another line\n")),
        r"node2: (commit|source): .*; (check out|copy the checkout)",
    ),
    "other commit": (
        lambda s: s.other("checkout", another_commit),
        r"node2: commit: commit \w+, on node1 \w+; check out the same",
    ),
    "other torch": (
        lambda s: s.other("checkout", another_torch),
        r"node2: versions: torch 9\.9\.9, on node1 .*; install it there",
    ),
    "no data": (
        lambda s: s.second.view(s.folder / "clouds"),
        r"node2: data: .*clouds/manifest.json: no manifest there.*; copy the set there",
    ),
    "other data": (
        lambda s: s.other("clouds", another_set),
        r"node2: data: .*clouds digest \w+, on node1 digest \w+; copy the set",
    ),
    "cut shard": (
        lambda s: s.other("clouds", lambda f: os.truncate(sorted(f.glob("*.tar"))[0], 512)),
        r"node2: data: .*\.tar has 512 bytes, the manifest says .*; copy the set there whole",
    ),
    "no foundation": (
        lambda s: s.second.view(s.folder / "foundation"),
        r"node2: foundation: .* does not exist.*; copy the folder there",
    ),
    "cut foundation": (
        lambda s: s.other("foundation", cut_weights),
        r"node2: foundation: .*not a complete safetensors file.*; copy",
    ),
    "other foundation": (
        lambda s: s.other("foundation", append("blip2/config.json", "\n")),
        r"node2: foundation: .*config\.json .*, on node1 .*; copy the folder there",
    ),
    "fewer GPUs than slots": (gpus_of, r"node2: gpus: 0 GPUs for 1 ranks; mend its driver"),
    "port in use": (listen, r"node1: ports: port 29555 is not free \(Address already in use\); end what listens"),
    "clock": (wrong_clock, r"node2: clock: 3\d\d\d\.\d s behind the controller; set the clock"),
    "run folder not shared": (
        lambda s: s.second.view(s.folder / "runs"),
        r"node2: reach: .*runs/run: the run folder is not shared",
    ),
    "secret on the command line": (
        lambda s: s.words.append("tracking.experiment=https://me:geheim@host/x"),
        r"all: secrets: tracking\.experiment=\.\.\. holds a password.*; leave tracking\.experiment out",
    ),
    "bad .deepspeed_env": (
        lambda s: (s.hosts[0].folder / "home" / ".deepspeed_env").write_text("A=1\n\n# b\n"),
        r"\.deepspeed_env, line 2: is blank, at which DeepSpeed's launcher breaks off; leave only lines",
    ),
    "interface that is not there": (
        lambda s: s.variables(s.second, GLOO_SOCKET_IFNAME="ib7"),
        r"node2: environment: GLOO_SOCKET_IFNAME=ib7 names no interface .*; unset GLOO_SOCKET_IFNAME",
    ),
    "sizes that do not divide": (
        lambda s: s.words.append("train.global_batch_size=3"),
        r"train\.global_batch_size 3 is not a multiple of .* 2 ranks = 2; choose sizes",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_before_any_rank_starts(name: str, shared: Path, tmp_path: Path, figures: Figures) -> None:
    cause, pattern = FAULTS[name]
    for left in shared.glob("other_*"):
        shutil.rmtree(left)
    with hosts(2, tmp_path / "net") as them:
        site = Site(them, shared, them.hostfile(tmp_path / "hosts"))
        if name == "clock" and not any(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")):
            pytest.skip(f"{FAKETIME} is not installed")
        for host in them:
            site.variables(host, PYTHONPATH=str(shared / "checkout"))
        cause(site)
        rb = ["env", "-C", shared / "checkout", sys.executable, "-m", "rb.cli"]
        began = time.monotonic()
        command = them[0].run(*rb, "launch", "--hostfile", site.hostfile, "--run", shared / "run.yaml", *site.words)
        ranks: set[str] = set()
        while command.poll() is None and time.monotonic() - began < AT_MOST_S:
            ranks |= {" ".join(p.cmdline()) for word in RANKS for p in them.processes(f"-m {word}") if p.is_running()}
            time.sleep(0.02)
        figures["seconds"] = round(time.monotonic() - began, 1)
        said = command.finish(2, timeout=1)
        lines = said.strip().splitlines()
        assert re.search(pattern, lines[-1]), said
        assert "geheim" not in said
        assert "Traceback" not in said
        assert ranks == set(), "no rank was started"
        assert them.left_after(10, "rb.") == []
        assert [path for path in (shared / "runs").rglob("*") if path.is_file()] == [], (
            "nothing is left in the run folder"
        )
