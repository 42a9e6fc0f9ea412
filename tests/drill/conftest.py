"""Drills: trials too long for ``make test``. Every test in this folder is one; ``make drill`` runs them and keeps their results.

A file ``test_PART.py`` is a part; its docstring is shown in docs/reliability.md. There are two ways to write a part (``tests/support/trials.py``):

    each test, and each set of its parameters, is one trial: nothing to do. The fixture ``figures`` is the dict of its figures.
    a test with many trials takes the fixture ``trials``::

        for name in trials.left(names):
            with trials.trial(name) as figures:
                figures["lost"] = lost_points()

      A trial that fails does not end the loop: the test fails at its end. So a trial must leave nothing behind that spoils the next.

A figure has a name with its unit, a small value, and more is worse: the page shows the largest of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm_cluster import Cluster, Times, slurm_cluster
from tests.support.trials import Figures, Trials

HERE = Path(__file__).parent
MANY, ONE = "trials", "figures"
_parts: dict[str, Trials] = {}
_figures = pytest.StashKey[Figures]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them: pyproject.toml leaves the marker out unless ``-m drill`` asks for it."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.drill)


def part_of(item: pytest.Item) -> Trials:
    name = item.path.stem.removeprefix("test_")
    if name not in _parts:
        _parts[name] = Trials(name)
    return _parts[name]


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Trials:
    """For a test with many trials."""
    return part_of(request.node)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """For a test that is one trial: its figures."""
    return request.node.stash.setdefault(_figures, {})


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    with slurm_cluster(nodes=2, times=Times(requeue_s=20)) as made:
        yield made


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """Slurm on two nodes. A trial that fails does not spoil the next."""
    yield slurm
    slurm.clean()


def is_one_trial(item: pytest.Item) -> bool:
    return MANY not in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is about to be run counts as not run until it is."""
    for item in session.items:
        if item.path.is_relative_to(HERE) and is_one_trial(item) and not session.config.option.collectonly:
            part_of(item).expect([item.name])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made: a trial that passed is not repeated."""
    if is_one_trial(item) and (reason := part_of(item).skip_reason(item.name)):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    if not is_one_trial(pyfuncitem):
        with part_of(pyfuncitem).all_of_them():
            return (yield)
    with part_of(pyfuncitem).only_trial(pyfuncitem.name) as figures:
        try:
            return (yield)
        finally:
            figures.update(pyfuncitem.stash.get(_figures, {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for part in _parts.values():
        terminalreporter.write_line(part.summary())
