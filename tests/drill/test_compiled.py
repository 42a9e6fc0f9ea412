"""``train.compile`` by torch's own compiler, in C++ here: the losses of plain steps within rounding, and a run that resumes bit-equal.

Needs g++. On a GPU the compiler makes other kernels, by Triton: not run yet.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.core.run_layout import RUN_JOURNAL
from rb.tracking.journal import metric_points
from tests.support.processes import finish, start_ranks
from tests.support.six_steps import STEPS, copy_until, differ, states, write_run
from tests.support.trials import Figures

RESUMED = 3
APART = 1e-4  # relative


@pytest.fixture(scope="module")
def compiled(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, beside one that is not compiled."""
    run_file = write_run(foundation, tmp_path_factory.mktemp("compiled"))
    for name, on in (("plain", "false"), ("compiled", "true")):
        said = finish(
            *start_ranks(2, "rb.train", "--run", run_file, f"name={name}", f"train.compile={on}"), timeout=900
        )
        assert ("waits for the compiler" in said) == (on == "true")
    return run_file.parent / "compiled"


def test_losses_are_those_of_plain_steps(compiled: Path, figures: Figures) -> None:
    found, expected = (metric_points(compiled.parent / name / RUN_JOURNAL) for name in ("compiled", "plain"))
    losses = [name for name in expected if "loss" in name]
    pairs = [(a.value, b.value) for name in losses for a, b in zip(found[name], expected[name], strict=True)]
    assert len(pairs) > STEPS
    figures["largest difference of a loss, relative"] = max(abs(a - b) / abs(b) for a, b in pairs)
    assert 0 < figures["largest difference of a loss, relative"] < APART


def test_it_resumes_bit_equal(compiled: Path, figures: Figures) -> None:
    copy = compiled.parent / "resumed"
    copy_until(compiled, copy, RESUMED)
    finish(*start_ranks(2, "rb.train", "--resume", copy), timeout=900)
    figures["tensors that differ"] = len(differ(states(compiled)[-1], states(copy)[-1]))
    assert figures["tensors that differ"] == 0
