"""``optim.kernel: deepspeed_fused``, compiled here for the CPU: trains two modalities in turns, resumes bit-equal, and holds idle groups still.

Needs g++ and ninja; the first start compiles for about a minute. On a GPU the kernel of the same name is another one: not run yet.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from tests.support.processes import finish, start_ranks
from tests.support.six_steps import PLACES, copy_until, differ, states, write_run
from tests.support.trials import Figures

RESUMED = 3
APART = 1e-5  # parameters of one kernel from those of the other after all steps, a hundredth of the rate: another order of sums, nothing else


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on two ranks, regions and clouds in turns, saved after each."""
    return write_run(foundation, tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def fused(run_file: Path) -> Path:
    """The run with DeepSpeed's kernel."""
    output = finish(*trained(run_file, "fused", "deepspeed_fused"), timeout=600)
    assert "deepspeed_fused" in output
    return run_file.parent / "fused"


def trained(run_file: Path, name: str, kernel: str) -> list:  # type: ignore[type-arg]
    return start_ranks(2, "rb.train", "--run", run_file, f"name={name}", f"optim.kernel={kernel}")


def test_it_trains_as_torchs_kernel(run_file: Path, fused: Path, figures: Figures) -> None:
    finish(*trained(run_file, "plain", "torch"))
    one, other = (states(run)[-1].tensors["parameter"] for run in (fused, run_file.parent / "plain"))
    figures["largest difference of a parameter"] = max(float((one[n] - other[n]).abs().max()) for n in one)
    assert figures["largest difference of a parameter"] < APART


def test_idle_groups_stand_still(fused: Path, figures: Figures) -> None:
    """A step moves tensors of one modality only, parameters and moments."""
    made = states(fused)
    moved = [differ(before, after) for before, after in pairwise(made)]
    of = [{m for m in PLACES for name in names if f".{m}." in name or f"{m}" in name.split(".")} for names in moved]
    figures["steps that moved two modalities"] = sum(len(modalities) != 1 for modalities in of)
    assert figures["steps that moved two modalities"] == 0
    assert {next(iter(modalities)) for modalities in of} == set(PLACES)


def test_it_resumes_bit_equal(fused: Path, figures: Figures) -> None:
    expected = states(fused)[-1]
    copy = fused.parent / "resumed"
    copy_until(fused, copy, RESUMED)
    finish(*start_ranks(2, "rb.train", "--resume", copy), timeout=600)
    figures["tensors that differ"] = len(differ(expected, states(copy)[-1]))
    assert figures["tensors that differ"] == 0
