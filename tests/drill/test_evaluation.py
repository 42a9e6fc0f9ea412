"""A plan of evaluations killed with SIGKILL at random moments of its time, again and again: the final tables have the bytes of an undisturbed job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from tests.support.evaluation_world import evaluate, kill_and_go_on, tables, write_world
from tests.support.processes import finish, start_function
from tests.support.trials import Figures


@pytest.fixture(scope="module")
def plan(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("plan"), foundation)


@pytest.mark.parametrize("seed", range(5))
def test_killed(plan: Path, seed: int, figures: Figures) -> None:
    whole, out = plan.parent / f"whole{seed}", plan.parent / f"killed{seed}"
    finish(start_function(evaluate, plan, whole))
    kill_and_go_on(plan, out, moments=5, seed=seed)
    differ = [name for name, data in tables(whole).items() if tables(out)[name] != data]
    figures["tables that differ"] = len(differ)
    shutil.rmtree(whole)
    assert not differ
