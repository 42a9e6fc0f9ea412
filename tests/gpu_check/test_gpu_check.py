"""The check of full-size models in its small form: the launch script as a user runs it, and that it finds what it is to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rb.core.batch import Batch
from rb.gpu_check import attention, steps
from rb.gpu_check.random_models import SIZES, build_random, random_batch
from rb.model.region_blip import RegionBLIP
from tests.model.test_llms import EXPECTED as T5
from tests.model.test_model import EXPECTED as OPT

ROOT = Path(__file__).resolve().parents[2]
TRAINED = {"image_region", "point_cloud", "point_cloud_region"}
CPU = torch.device("cpu")


def run(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """The script; ``before`` runs in its Python first."""
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "launch" / "gpu_check.sh"), *map(str, arguments)]
    if before:
        code = f"{before}; import runpy; runpy.run_module('rb.gpu_check', run_name='__main__')"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_script_builds_compares_and_times_both_kinds_of_llm(tmp_path: Path) -> None:
    done = run("--small", "--micro-batch", "2", "--out", tmp_path / "found.json")
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


def test_it_needs_no_deepspeed_and_says_so(tmp_path: Path) -> None:
    block = "import sys, importlib.util as u; real = u.find_spec; sys.modules.update(mlflow=None, webdataset=None, deepspeed=None); "
    block += "u.find_spec = lambda name, *a: None if name == 'deepspeed' else real(name, *a)"
    out = tmp_path / "found.json"
    done = run("--small", "--llm", "small_t5", "--micro-batch", "1", "--out", out, before=block)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ZeRO-2: not run: deepspeed is not installed" in done.stdout
    assert {row["engine"] for row in json.loads(out.read_text())["models"]["small_t5"]["timings"]} == {"torch"}


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
        module.set_attn_implementation("eager")
    try:
        without = {part.part: part.kinds for part in attention.kernels_used(model, batches)}
    finally:
        for module in list(attention.modules(model).values())[:3]:
            module.set_attn_implementation("sdpa")
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
