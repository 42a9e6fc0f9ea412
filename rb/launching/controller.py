"""The controller of a job over several nodes: checks, attempts, restarts. `commands.py` reads what the user asked for.

An attempt: the launcher starts an agent on every node; agents connect; what they find on their nodes is compared; their ranks compute one small sum;
then they train, watched. Every attempt starts from nothing, so a restart finds nodes that came back and does without those that did not.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from rb.core.config import RunConfig
from rb.core.exit_codes import FINISHED, NODE_LOST, STOPPED
from rb.core.locks import FileLock
from rb.core.output import note
from rb.core.run_layout import RUN_CONFIG
from rb.core.verbosity import NORMAL, verbosity
from rb.launching import launchers
from rb.launching.addresses import controller_addresses
from rb.launching.ending import Ending
from rb.launching.environment import launcher_environment, node_variables, shared_variables
from rb.launching.findings import Finding, accept, failures, table
from rb.launching.hub import Hub, RemoteNode
from rb.launching.job import Ended, Job, Wish, who_asked
from rb.launching.job_file import FOLDER, JobFile, job_path, write_job
from rb.launching.launchers import Launched, Place
from rb.launching.request import Launch
from rb.launching.restart import RestartPolicy, usable_nodes
from rb.launching.survey import reach, survey, try_sum
from rb.training.run_end import ATTEMPT_VARIABLE, new_attempt

COME_UP_S = 300.0  # for all agents to connect: a slow shared disk under Python takes its time


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Keep other controllers off a run folder; what is made for that and is empty afterwards is removed.

    Raises:
        ValueError: another controller has it.
    """
    folder = run_dir / FOLDER
    made = [path for path in (folder, run_dir) if not path.exists()]
    lock = FileLock(folder / "launch.lock")
    if not lock.acquire():
        raise ValueError(
            f"{run_dir}: another rb launch is in this run folder ({lock.owner()}); wait for it, or stop it"
        )
    try:
        yield
    finally:
        lock.path.unlink(missing_ok=True)
        lock.release()
        for path in made:  # nothing stays of a job whose ranks were not started
            with suppress(OSError):
                path.rmdir()


class NotUpError(ValueError):
    """The nodes of a job do not come up; a restart may find them."""


class NoAgentError(NotUpError):
    """No agent came up on a node."""


class Controller:
    """Runs a job until it ends.

    Args:
        launch: what the user asked for.
        wish: that it ends.
    """

    def __init__(self, launch: Launch, wish: Wish) -> None:
        self._launch, self._wish = launch, wish
        self._places = list(launch.places)

    def run(self) -> int:
        """All attempts; returns the exit code.

        Raises:
            ValueError: a check failed, or the nodes do not come up at the first attempt.
        """
        policy = RestartPolicy(self._launch.restart)
        with claimed(self._launch.run_dir):
            while True:
                code, ended = self._attempt(policy.done)
                asked = bool(self._wish.look() or (ended and ended.asked))
                wait = policy.wait_after(code, asked, ended.step if ended else -1)
                if wait is None:
                    if policy.why_not:
                        note(f"rb launch: {policy.why_not}")
                    return code
                note(f"rb launch: restart {policy.done} of {self._launch.restart} in {wait:.0f} s")
                if self._rest(wait):
                    return STOPPED

    def _rest(self, seconds: float) -> bool:
        """Wait; whether the user wants the end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._wish.look():
            time.sleep(0.2)
        return bool(self._wish.look())

    def _attempt(self, restarts: int) -> tuple[int, Ended | None]:
        """One attempt: its exit code, and how it ended if its ranks were started."""
        try:
            return self._try(first=restarts == 0)
        except NotUpError as error:
            # At first it is a wrong request; but nodes that Slurm has chosen may be just failing, or coming back.
            chosen = self._launch.launcher == launchers.SLURM and isinstance(error, NoAgentError)
            if self._launch.restart == 0 or (restarts == 0 and not chosen):
                raise
            note(f"rb launch: {error}")
            return NODE_LOST, None

    def _try(self, first: bool) -> tuple[int, Ended | None]:
        launch, attempt, token = self._launch, new_attempt(), secrets.token_hex(32)
        file = job_path(launch.run_dir, "job")
        addresses = controller_addresses([launch.meeting[0]] if launch.meeting[0] else [p.host for p in self._places])
        hub, launched, nodes, code = Hub(token, addresses, launch.control_port), None, list[RemoteNode](), NODE_LOST
        again = launch.restart > 0
        # Slurm asks the agents of a job that is preempted, not this process; they may be told before there are ranks.
        self._wish.elsewhere = lambda: who_asked([node.poll() for node in list(hub.nodes.values())])
        try:
            environment = shared_variables(os.environ)
            write_job(file, JobFile(attempt, token, hub.port, addresses, launch.config.limits.node_s, environment))
            findings = self._reach(file, first)
            launched = self._start(file)
            nodes = self._wait_for_agents(hub, launched)
            if not nodes:
                code, again = STOPPED, False
                return STOPPED, None
            if launch.launcher == launchers.TORCHRUN:  # only now it is known who they are
                self._places = [replace(place, host=node.host) for place, node in zip(self._places, nodes, strict=True)]
            findings += survey(nodes, self._places, launch, self._wish)
            if self._wish.look():  # the checks were broken off
                code, again = STOPPED, False
                return STOPPED, None
            self._judge(findings, first)
            port = launch.master_port or int((nodes[0].facts or {}).get("free_port", 29500))
            address = nodes[0].address
            own = [node_variables(node.facts or {}, len(nodes), environment) for node in nodes]
            counts = [place.num_ranks for place in self._places]
            if first and launch.try_sum:
                self._judge([*findings, *try_sum(nodes, counts, launch, self._wish, address, port, own)], first=False)
            if launch.check_only or self._wish.look():
                code, again = (STOPPED if self._wish.look() else FINISHED), False
                return code, None
            ending = Ending(launch.run_dir, attempt, "rb launch")
            job = Job(nodes, counts, launch.config.limits, self._wish, launched.ended, ending.report, own)
            ended = job.run(launch.module, self._arguments(), address, port, {ATTEMPT_VARIABLE: attempt})
            code = ending.code(ended)
            return code, ended
        finally:
            file.unlink(missing_ok=True)
            for node in hub.nodes.values():
                node.leave(code, again and code not in (FINISHED, STOPPED))
            if launched is not None:
                launched.end()
            hub.close()
            file.with_name("hostfile").unlink(missing_ok=True)

    def _arguments(self) -> list[str]:
        """Of a rank: a run that is there goes on."""
        begun = (self._launch.run_dir / RUN_CONFIG).is_file()
        what = ("--resume", str(self._launch.run_dir)) if begun else self._launch.what
        return [*what, *self._launch.options]

    def _reach(self, file: Path, first: bool) -> list[Finding]:
        """Whether the hosts answer, where the launcher goes by ssh; a restart does without those that do not, where it may."""
        if self._launch.launcher not in (launchers.PDSH, launchers.SSH):
            return []
        self._places = list(self._launch.places)
        findings = reach([place.host for place in self._places], file)
        bad = {finding.node for finding in failures(findings)}
        if not bad:
            return findings
        if first or not self._launch.min_nodes:
            self._judge(findings, first)
        left = [place for place in self._places if place.host not in bad]
        fits = [_divides(self._launch.config, left[: n + 1]) for n in range(len(left))]
        count = usable_nodes([place.num_ranks for place in left], fits, self._launch.min_nodes)
        if not count:
            self._judge(findings, first)
        self._places = left[:count]
        note(f"rb launch: goes on without {', '.join(sorted(bad))}: {count} of {len(self._launch.places)} nodes")
        return [finding for finding in findings if finding.node not in bad]

    def _start(self, file: Path) -> Launched:
        launch, places = self._launch, self._places
        address, port = launch.meeting
        commands = {
            launchers.PDSH: lambda: launchers.deepspeed_commands(file, places, launch.master_port or 29500),
            launchers.SSH: lambda: launchers.ssh_commands(file, places),
            launchers.SLURM: lambda: launchers.srun_commands(file, places),
            launchers.TORCHRUN: lambda: launchers.torchrun_commands(file, len(places), 0, address, port),
        }[launch.launcher]()
        return Launched(commands, launcher_environment(os.environ))

    def _wait_for_agents(self, hub: Hub, launched: Launched) -> list[RemoteNode]:
        """The nodes; an empty list where the user wants the end before they are there.

        Raises:
            NoAgentError: one does not come.
        """
        end = time.monotonic() + COME_UP_S

        def missing() -> str:
            return ", ".join(place.host for number, place in enumerate(self._places) if number not in hub.nodes)

        while len(hub.nodes) < len(self._places):
            if self._wish.look():
                return []
            if reason := launched.ended():
                if launched.ended_by_request():
                    return []
                time.sleep(1.0)  # the last agent may just have connected
                if len(hub.nodes) < len(self._places):
                    raise NoAgentError(f"{missing()}: no agent came up, {reason}; its lines above say why")
            if time.monotonic() > end:
                raise NoAgentError(
                    f"{missing()}: no agent came up in {COME_UP_S:.0f} s; look whether the node can reach port {hub.port} of this host"
                )
            time.sleep(0.1)
        return [hub.nodes[number] for number in range(len(self._places))]

    def _judge(self, findings: Sequence[Finding], first: bool) -> None:
        """Show the table; ``ValueError`` if something failed."""
        judged = accept(findings, self._launch.accepted)
        failed = failures(judged)
        if failed or (first and verbosity() == NORMAL) or self._launch.check_only:
            note(table(judged))
        if failed:
            more = f" (and {len(failed) - 1} more, above)" if len(failed) > 1 else ""
            raise NotUpError(f"{failed[0].line()}{more}")


def _divides(config: RunConfig, places: Sequence[Place]) -> bool:
    try:
        config.train.layout(sum(place.num_ranks for place in places))
    except ValueError:
        return False
    return True
