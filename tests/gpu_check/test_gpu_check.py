"""The check of full-size models in its small form: the launch script as a user runs it, and that it finds what it is to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import Tensor

from rb.core.batch import Batch
from rb.costs.random_models import SIZES, build_random, random_batch
from rb.gpu_check import attention, check, steps
from rb.gpu_check.needs import BASE, ZERO2
from rb.model.region_blip import RegionBLIP
from tests.model.test_llms import EXPECTED as T5
from tests.model.test_model import EXPECTED as OPT
from tests.support.remedies import covers

ROOT = Path(__file__).resolve().parents[2]
TRAINED = {"image_region", "point_cloud", "point_cloud_region"}
CPU = torch.device("cpu")


def closure(*packages: str) -> set[str]:
    """Installed distributions that these require, themselves included, as pip would install them without extras."""
    found: set[str] = set()
    todo = [canonicalize_name(package) for package in packages]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        todo += [canonicalize_name(one.name) for one in map(Requirement, required) if not _not_needed(one)]
    return found


def _not_needed(requirement: Requirement) -> bool:
    return requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})


def run(
    *arguments: object, only: set[str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The script, in a Python that finds no distributions but ``only``, the standard library and this project (none: all).

    Args:
        folder: for the Python file that sees to it.
    """
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    if only is not None:
        assert folder is not None
        owners = metadata.packages_distributions()
        hidden = {
            module
            for module, owned_by in owners.items()
            if module not in ("rb", "eval") and not {canonicalize_name(name) for name in owned_by} & only
        }
        # As if they were not installed: Python's own search does not find them there.
        (folder / "sitecustomize.py").write_text(
            "import importlib.machinery as machinery\n"
            f"HIDDEN = {hidden!r}\n"
            "real = machinery.PathFinder.find_spec\n"
            "def find_spec(name, path=None, target=None):\n"
            "    found = real(name, path, target)\n"
            "    return None if name.partition('.')[0] in HIDDEN and 'site-packages' in str(found) else found\n"
            "machinery.PathFinder.find_spec = staticmethod(find_spec)\n"
        )
        environment["PYTHONPATH"] = str(folder)
    command = [str(ROOT / "launch" / "gpu_check.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_script_builds_compares_and_times_both_kinds_of_llm(tmp_path: Path) -> None:
    """On a machine with torch, transformers, peft and the wheels that the script names, and nothing else."""
    only = closure(*BASE.values()) | set(ZERO2.values())
    done = run("--small", "--micro-batch", "2", "--out", tmp_path / "found.json", only=only, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all agree" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())["models"]
    assert set(found) == {"small_opt", "small_t5"}
    for model in found.values():
        assert [one["name"] for one in model["compared"]] == ["torch against itself", "ZeRO-2 against torch"]
        assert all(one["ok"] for one in (*model["compared"], *model["equal_to_sdpa"]))
        rows = {(row["engine"], row["modality"], row["micro_batch"]) for row in model["timings"]}
        assert rows == {(engine, modality, 2) for engine in ("torch", "ZeRO-2") for modality in TRAINED}
        assert all(row["samples_per_s"] > 0 and row["predicted_gb"] > 0 for row in model["timings"])
        assert [part["part"] for part in model["attention"]] == list(attention.PARTS)
        assert all(part["kinds"] for part in model["attention"])
        assert model["not_run"] == {}


def test_it_needs_only_torch_transformers_and_peft_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    out, only = tmp_path / "found.json", closure(*BASE.values())
    arguments = ("--small", "--llm", "small_t5", "--micro-batch", "1", "--out", out)
    done = run(*arguments, only=only, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *rest = done.stdout.splitlines()
    assert "ZeRO-2 will be left out: not installed: deepspeed, hjson, msgpack, py-cpuinfo, einops" in first
    assert any("ZeRO-2: not run: not installed: deepspeed, " in line for line in rest)
    found = json.loads(out.read_text())["models"]["small_t5"]
    assert {row["engine"] for row in found["timings"]} == {"torch"}
    assert found["not_run"]["ZeRO-2"].startswith("not installed: deepspeed")

    # One that even its torch half needs: said before anything is imported.
    done = run(*arguments, only=only - {"peft"}, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu_check: error: not installed: peft; pip install peft\n"


def test_the_list_of_wheels_is_all_that_deepspeed_requires() -> None:
    """But what torch requires, and what transformers and peft name themselves; ninja builds operators, which this project does not."""
    direct = {
        canonicalize_name(one.name)
        for package in ("transformers", "peft")
        for one in map(Requirement, metadata.requires(package) or [])
        if not _not_needed(one)
    }
    assert set(ZERO2.values()) == closure("deepspeed") - closure("torch") - direct - {"ninja"}
    script = (ROOT / "launch" / "gpu_check.sh").read_text()
    assert f"pip wheel --no-deps -c constraints.txt -w DIR {' '.join(ZERO2.values())}\n" in script
    pinned = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    assert all(f"\n{package}==" in pinned for package in ZERO2.values())  # pydantic and its core must fit


def test_a_part_that_fails_is_reported_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("CUDA_HOME is not set")

    monkeypatch.setattr(steps, "zero2", fail)
    monkeypatch.setattr(attention, "equal_to_sdpa", fail)
    monkeypatch.setattr(check, "join_alone", lambda: None)
    out = tmp_path / "found.json"
    assert check.main(["--small", "--llm", "small_t5", "--micro-batch", "1", "--out", str(out)]) == 1
    found = json.loads(out.read_text())["models"]["small_t5"]
    assert found["not_run"] == dict.fromkeys(("attention", "ZeRO-2"), "OSError: CUDA_HOME is not set")
    assert {row["engine"] for row in found["timings"]} == {"torch"}
    assert [one["name"] for one in found["compared"]] == ["torch against itself"]
    captured = capsys.readouterr()
    assert "ZeRO-2: not run: it failed with OSError: CUDA_HOME is not set" in captured.out
    assert "SOMETHING DID NOT AGREE OR FAILED" in captured.out
    assert "Traceback" in captured.err


def test_wrong_calls_are_clear(tmp_path: Path) -> None:
    done = run("--wheels", tmp_path)
    assert done.returncode == 2
    assert f"no *.whl in {tmp_path}" in done.stderr
    assert len((ROOT / "launch" / "gpu_check.sh").read_text().splitlines()) < 40


@pytest.fixture(scope="module")
def model() -> RegionBLIP:
    return build_random(SIZES["small_t5"], CPU, torch.float32)


def test_an_engine_that_does_something_else_is_found(model: RegionBLIP) -> None:
    batches = [random_batch(SIZES["small_t5"], name, 3, CPU) for name in model.parts]
    start = steps.snapshot(model)
    expected = steps.trace(model, steps.plain_torch(model), batches)
    assert {name for name, moved in expected.moved.items() if moved.any()} >= {
        f"parts.{name}.query_tokens" for name in model.parts
    }

    def differs(change: str) -> steps.Comparison:
        steps.restore(model, start)
        inner = steps.plain_torch(model)

        def step(batch: Batch) -> dict[str, Tensor]:
            terms = inner(batch)
            if change == "idle moves" and batch.modality != "image_region":
                with torch.no_grad():
                    model.parts["image_region"].query_tokens.mul_(0.99)
            return {name: value * (1.001 if change == "loss" else 1.0) for name, value in terms.items()}

        return steps.compare(change, steps.trace(model, step, batches), expected, torch.float32)

    assert differs("nothing").ok
    assert not differs("loss").ok
    assert not differs("idle moves").ok
    nothing = steps.Comparison("nan", float("nan"), 0.0, 1.0, 1.0)
    assert not nothing.ok


def test_flan_t5_keeps_its_own_head_and_eager_attention_is_really_eager(model: RegionBLIP) -> None:
    llm = model.blip2.language_model
    assert not torch.equal(llm.lm_head.weight, llm.shared.weight)
    batches = [random_batch(SIZES["small_t5"], name, 2, CPU) for name in model.parts]
    by_part = {part.part: part.kinds for part in attention.kernels_used(model, batches)}
    assert all(by_part.values())
    for module in list(attention.modules(model).values())[:3]:
        attention.switch(module, "eager")
    try:
        without = {part.part: part.kinds for part in attention.kernels_used(model, batches)}
    finally:
        for module in list(attention.modules(model).values())[:3]:
            attention.switch(module, "sdpa")
    assert [part for part, kinds in without.items() if kinds] == ["point encoder"]


def test_the_full_sizes_are_the_papers() -> None:
    """On the meta device, where nothing is allocated: parameters of the two models that the script builds."""
    papers = {"opt_6.7b": {m: counts["6.7b"] for m, counts in OPT.items()}, "flant5_xxl": T5["xxl"]}
    for name, expected in papers.items():
        full = build_random(SIZES[name], torch.device("meta"), torch.bfloat16)
        users = full.parameter_modalities()
        own = {
            m: sum(
                p.numel()
                for n, p in full.trainable_parameters().items()
                if m in users[n] and not n.startswith("point_projection")
            )
            for m in full.parts
        }
        assert own == expected
        llm = sum(p.numel() for n, p in full.blip2.language_model.named_parameters() if "lora_" not in n)
        assert llm == {"opt_6.7b": 6_658_473_984, "flant5_xxl": 11_135_332_352}[name]


# `--small` on a CPU and the wheels that the script names are run above.
covers(
    [
        "gpu_check: error: no CUDA device; --small runs on a CPU",
        "give launch/gpu_check.sh --wheels DIR, its first lines say how",
    ]
)
