"""Farthest point sampling by torch's loop and by the Triton kernel: equal picks, ties to the lowest index, operations counted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rb.bench.sampling_speed import three_axes
from rb.cli import main
from rb.core import op_costs
from rb.costs.executed import Counter
from rb.gpu_check.sampling import check_sampling
from rb.model import grouping
from rb.model.grouping import farthest_point_sample, kernel_problem, sampling_backends

ROOT = Path(__file__).parents[2]
MOST_A_PICK = 7  # a ratchet: may fall, not rise
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def clouds() -> dict[str, Tensor]:
    """Each [B, N, 3]: without ties, with many, two places only, of half precision, and a part of wider rows."""
    draws = torch.Generator().manual_seed(0)
    return {
        "any": torch.randn(3, 90, 3, generator=draws),
        "lattice": torch.randint(4, (3, 70, 3), generator=draws).float(),
        "two places": torch.randint(2, (2, 40, 1), generator=draws).expand(-1, -1, 3).float(),
        "half": torch.randn(2, 50, 3, generator=draws).half(),
        "columns": torch.randn(2, 50, 6, generator=draws)[..., :3] * 0.1,
    }


@pytest.mark.parametrize("name", clouds())
def test_the_loop_picks_what_it_picked_before(name: str) -> None:
    points = clouds()[name]
    assert torch.equal(farthest_point_sample(points, 30, backend="torch"), three_axes(points.float(), 30))


def test_of_equal_distances_the_lowest_index_wins() -> None:
    square = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]])
    assert farthest_point_sample(square, 7).tolist() == [[0, 3, 1, 2, 0, 0, 0]]


def test_a_pick_is_at_most_seven_operations() -> None:
    counts, points = {}, clouds()["any"]
    for num in (20, 40):
        for skip in (False, True):
            with Counter() as counter:
                farthest_point_sample(points, num, skip)
            counts[num, skip] = counter.found.launches
    for skip in (False, True):
        assert counts[40, skip] - counts[20, skip] <= 20 * MOST_A_PICK
        assert counts[20, skip] <= 19 * MOST_A_PICK + 12


def test_on_cuda_it_is_one_launch() -> None:
    """The meta device stands for CUDA in counts; the operator states what it costs."""
    points = torch.empty(16, 8192, 3, device="meta")
    with Counter() as counter:
        picks = farthest_point_sample(points, 512)
    assert (picks.shape, picks.dtype, counter.found.launches) == ((16, 512), torch.long, 1)
    cost = op_costs.cost_of("rb::farthest_points")
    assert cost is not None
    assert (cost.launches((), {}, None), cost.flops((), {}, None)) == (1, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernel runs")
def test_where_it_cannot_run_torch_does_it_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    kernel_problem.cache_clear()
    assert sampling_backends("cuda") == ("torch",)
    assert kernel_problem(torch.device("cuda"))
    assert check_sampling(torch.device("cpu")) == []
    told = [record.getMessage() for record in caplog.records]
    has_triton = importlib.util.find_spec("triton") is not None
    assert len(told) == int(has_triton)
    assert all("torch does it" in line for line in told)


INTERPRETED = """
import rb.model.sampling_kernel as kernel
from rb.model.grouping import farthest_point_sample
from rb.model.grouping import _one_kernel
from tests.model.test_sampling import clouds
kernel.BLOCK = 32
for name, points in clouds().items():
    for skip in (False, True):
        own = _one_kernel(points, 9, skip)
        assert own.equal(farthest_point_sample(points, 9, skip, "torch")), (name, skip)
print("equal")
"""
COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from rb.model.sampling_kernel import BLOCK, WARPS, pick_farthest
types = {"points": "*fp32", "scratch": "*fp32", "picks": "*i64", "near_origin": "fp32", "BLOCK": "constexpr"}
signature = {name: types.get(name, "i32") for name in pick_farthest.arg_names}
for architecture in (80, 90):
    source = ASTSource(fn=pick_farthest, signature=signature, constexprs={"BLOCK": BLOCK})
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    made = compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert "mul" in made.asm["ptx"] and "fma" not in made.asm["ptx"], "products are rounded before they are added"
    assert made.asm["cubin"]
print("compiled")
"""


def in_a_process(code: str, folder: Path, **more: str) -> str:
    """What a Python of its own prints: Triton looks at its environment when it is imported."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.slow
@needs_triton
def test_the_kernel_picks_the_same_in_the_interpreter(tmp_path: Path) -> None:
    assert in_a_process(INTERPRETED, tmp_path, TRITON_INTERPRET="1") == "equal"


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="triton brings NVIDIA's assembler for Linux only")
def test_the_kernel_compiles_for_a100_and_h100_without_fused_sums(tmp_path: Path) -> None:
    assert in_a_process(COMPILED, tmp_path) == "compiled"


def test_bench_fps_compares_the_ways(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bench", "fps", "--clouds", "2", "--points", "200", "--picks", "16", "--repeats", "1", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ways"]["torch"]["operations_a_pick"] < found["ways"]["loop of before"]["operations_a_pick"]
    assert 0 <= found["turned_clouds_with_equal_picks"] <= 2
    monkeypatch.setattr(grouping, "_sample_torch", lambda points, num, skip: torch.zeros(len(points), num).long())
    assert main(words) != 0
    assert "OTHER PICKS" in capsys.readouterr().out
