"""One attempt of a job: what a supervisor does when ranks finish, are asked to stop, die, stop or hang; here, and over agents by TCP."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rb.core.config import LimitsConfig
from rb.core.exit_codes import FINISHED, HUNG, NODE_LOST, STOPPED
from rb.core.stopping import LAUNCHER_ENDED
from rb.launching.hub import Hub
from rb.launching.job import Ended, Job, Member, Wish
from rb.launching.job_file import JobFile, write_job
from rb.launching.node import Node
from rb.launching.states import NodeState
from rb.launching.verdict import Verdict
from rb.training.run_end import read_end

ROOT = Path(__file__).parents[2]
LIMITS = LimitsConfig(start_s=60, training_s=2, node_s=5)
LIGHT = "tests.support.light_rank"


class Trial:
    """Nodes with light ranks, as `Job` sees them, and what it reported."""

    def __init__(self, members: list[Member], folder: Path) -> None:
        self.members, self.folder = members, folder
        self.reports: list[tuple[Verdict, list[NodeState]]] = []
        self.lost_launcher, self.limits = "", LIMITS

    def run(self, *faults: str, during: Callable[[], None] | None = None) -> Ended:
        with Wish() as wish:
            self.wish = wish
            job = Job(
                self.members,
                [1] * len(self.members),
                self.limits,
                wish,
                lambda: self.lost_launcher,
                lambda verdict, nodes: self.reports.append((verdict, list(nodes))),
            )
            if during:
                threading.Thread(target=self._once_training, args=(during,), daemon=True).start()
            return job.run(LIGHT, [str(self.folder), *faults], "127.0.0.1", 1, {"DS_ACCELERATOR": "cpu"})

    def _once_training(self, work: Callable[[], None]) -> None:
        while not (self.folder / f"12-{len(self.members) - 1}").exists():
            time.sleep(0.01)
        work()


@contextmanager
def here(folder: Path) -> Iterator[Trial]:
    """Two nodes of this process."""
    nodes = [Node(number, f"host{number}") for number in range(2)]
    try:
        yield Trial(list(nodes), folder)
    finally:
        for node in nodes:
            node.close()


class Agents:
    """Agents as processes, connected to a hub here."""

    def __init__(self, folder: Path, **variables: str) -> None:
        token = secrets.token_hex(16)
        self.hub, path = Hub(token, ("127.0.0.1",)), folder / "launch" / "job.json"
        write_job(path, JobFile("a", token, self.hub.port, ("127.0.0.1",), LIMITS.node_s))
        command = [sys.executable, "-m", "rb.launching.agent", "--job", str(path), "--node"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        self.processes = [
            subprocess.Popen([*command, str(k)], env=environment, cwd=ROOT, start_new_session=True) for k in range(2)
        ]
        end = time.monotonic() + 60

        def check() -> None:
            assert time.monotonic() < end
            assert not any(process.poll() for process in self.processes)

        while len(self.hub.nodes) < 2:
            check()
            time.sleep(0.05)
        self.nodes = [self.hub.nodes[number] for number in range(2)]


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    made = Agents(tmp_path_factory.mktemp("agents"))
    yield made
    for node in made.nodes:
        node.leave(0)
    assert [process.wait(30) for process in made.processes] == [0, 0]
    made.hub.close()


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trial]:
    if getattr(request, "param", "here") == "here":
        with here(tmp_path) as made:
            yield made
    else:
        yield Trial(list(request.getfixturevalue("agents").nodes), tmp_path)


def alive(trial: Trial) -> list[int]:
    pids = [rank.pid for member in trial.members for rank in member.poll().ranks]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


BOTH = pytest.mark.parametrize("trial", ["here", "agents"], indirect=True)


@BOTH
def test_a_wish_to_stop_reaches_every_rank(trial: Trial) -> None:
    ended = trial.run(during=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (ended.code, ended.asked, ended.verdict) == (STOPPED, "SIGTERM", None)
    end = read_end(trial.folder)
    assert end is not None
    assert (end.code, end.step) == (STOPPED, ended.step)
    assert not alive(trial)


@pytest.mark.parametrize(
    ("trial", "fault", "code"),
    [("here", "kill", 137), ("agents", "kill", 137), ("here", "exit:73", 73)],
    indirect=["trial"],
)
def test_one_rank_that_dies_ends_all(trial: Trial, fault: str, code: int) -> None:
    ended = trial.run(f"1={fault}")
    assert ended.code == code
    assert ended.verdict is not None
    assert [culprit.rank for culprit in ended.verdict.culprits] == [1]
    assert (ended.step, ended.asked) == (10, "")
    assert not alive(trial)


@pytest.mark.parametrize(("trial", "fault"), [("agents", "freeze"), ("here", "loop")], indirect=["trial"])
def test_a_hang_is_named_with_stacks_and_ended(trial: Trial, fault: str) -> None:
    ended = trial.run(f"1={fault}")
    assert ended.code == HUNG
    ((verdict, nodes),) = trial.reports
    assert [culprit.rank for culprit in verdict.culprits] == [1]
    assert (verdict.phase, verdict.step) == ("training", 10)
    stacks = {rank: text for node in nodes for rank, text in node.stacks.items()}
    assert "_all_reduce" in stacks[0]
    assert ("_misbehave" in stacks.get(1, "")) == (fault == "loop")  # a stopped process writes nothing
    assert nodes[1].ranks[0].beat is not None
    assert nodes[1].ranks[0].beat.samples == ("sample/1/10",)
    assert not alive(trial)


@pytest.mark.parametrize("seen_by", ["controller", "agent"])
def test_a_lost_launcher_makes_the_ranks_save_and_leave(trial: Trial, seen_by: str) -> None:
    def lose() -> None:
        if seen_by == "controller":
            trial.lost_launcher = "the launcher (ssh) ended by signal 9"
        else:
            trial.members[1].asked = LAUNCHER_ENDED  # type: ignore[attr-defined]

    ended = trial.run(during=lose)
    assert (ended.code, ended.asked) == (STOPPED, "")  # nobody asked: a restart goes on
    assert not alive(trial)


def test_ranks_that_finish(trial: Trial) -> None:
    ended = trial.run()
    assert (ended.code, ended.verdict, ended.step) == (FINISHED, None, 99)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_an_agent_that_dies_or_stops_is_a_lost_node(tmp_path: Path, fault: signal.Signals) -> None:
    agents = Agents(tmp_path)
    trial = Trial(list(agents.nodes), tmp_path)
    try:
        ended = trial.run(during=lambda: agents.processes[1].send_signal(fault))
        assert ended.verdict is not None
        assert (ended.code, ended.verdict.culprits[0].node) == (NODE_LOST, 1)
    finally:
        agents.nodes[0].leave(5)
        agents.hub.close()
    assert agents.processes[0].wait(30) == 5
    pid = agents.nodes[1].poll().ranks[0].pid
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
    assert not psutil.pid_exists(pid)  # it saw the end of its agent, or the guard ended it, and then the agent
    assert agents.processes[1].wait(30) == -signal.SIGKILL


def test_agents_that_lose_their_controller_end_their_ranks(tmp_path: Path) -> None:
    agents = Agents(tmp_path)
    trial = Trial(list(agents.nodes), tmp_path)
    agents_end: list[int] = []

    def close() -> None:
        agents.hub.close()
        agents_end.extend(process.wait(60) for process in agents.processes)

    ended = trial.run(during=close)
    assert ended.code == NODE_LOST
    while len(agents_end) < 2:
        time.sleep(0.05)
    assert agents_end == [NODE_LOST, NODE_LOST]
    end = read_end(tmp_path)
    assert end is not None
    assert end.code == STOPPED  # they saved first


def test_an_agent_that_cannot_start_its_ranks_is_named_and_still_leaves(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import time\ntime.sleep(3600)"
    )  # as on a disk that hangs, when GPUs are looked for
    agents = Agents(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}", DS_ACCELERATOR="")
    trial = Trial(list(agents.nodes), tmp_path)
    trial.limits = LimitsConfig(start_s=3, training_s=2, node_s=60)
    ended = trial.run()
    assert ended.verdict is not None
    assert (ended.code, [culprit.host for culprit in ended.verdict.culprits]) == (
        HUNG,
        [node.host for node in agents.nodes],
    )
    for node in agents.nodes:
        node.leave(HUNG)
    assert [process.wait(30) for process in agents.processes] == [HUNG, HUNG]
    agents.hub.close()
