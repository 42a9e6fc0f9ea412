"""The checks before a training, over the nodes of a job: asks every node at once, and gives what `checks.py` makes of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rb.core.config import LimitsConfig
from rb.core.exit_codes import FINISHED
from rb.core.run_file import to_tree
from rb.core.run_layout import CHECKPOINTS, STEP_PREFIX
from rb.launching.checks import compare
from rb.launching.facts import make_request
from rb.launching.findings import EVERYWHERE, FAILED, OK, Finding
from rb.launching.hub import RemoteNode
from rb.launching.job import Job, Wish
from rb.launching.launchers import Place
from rb.launching.reach import probe_hosts
from rb.launching.request import Launch
from rb.launching.secrets import check_secrets

FACTS_S = 120.0  # for looking at a node; a shared disk may be slow
FULL_FACTS_S = 4 * 3600.0  # for reading every byte of data and foundation
SUM_S = 120.0  # for starting ranks, meeting, and one small sum


def reach(hosts: Sequence[str], job_file: Path) -> list[Finding]:
    """Whether ssh gets to every host, and finds Python, package and run folder there."""
    return probe_hosts(hosts, Path(os.getcwd()), sys.executable, job_file)  # noqa: PTH109 (links as they are)


def survey(nodes: Sequence[RemoteNode], places: Sequence[Place], launch: Launch, wish: Wish) -> list[Finding]:
    """What every node says of itself, judged and compared; secrets on the command line."""
    overrides = [word for word in launch.options if "=" in word]
    findings = check_secrets(overrides, to_tree(launch.config))
    names = [place.host for place in places]
    requests = []
    size = saved_bytes(launch.run_dir)
    for number, (node, place) in enumerate(zip(nodes, places, strict=True)):
        ports = [launch.master_port] if launch.master_port and number == 0 else []
        wanted = make_request(
            launch.config, place.num_ranks, launch.run_dir, ports=ports, full=launch.full, checkpoint_bytes=size
        )
        requests.append(wanted)
        node.ask_facts(requests[-1])
    _wait(
        lambda: all(node.facts is not None or node.poll().gone for node in nodes),
        FULL_FACTS_S if launch.full else FACTS_S,
        wish,
    )
    facts = {}
    for name, node in zip(names, nodes, strict=True):
        if node.facts is None:
            why = node.poll().gone or f"did not answer in {FACTS_S:.0f} s"
            findings.append(
                Finding(name, "reach", FAILED, why, "look at the disks that hold data and run folder there")
            )
        else:
            facts[name] = node.facts
    return [*findings, *(compare(facts, requests[0]) if facts else [])]


def saved_bytes(run_dir: Path) -> int | None:
    """Size of the newest checkpoint of a run that goes on. None for a new run: it needs the model, which needs torch (`rb doctor --run` has it)."""
    newest = max((run_dir / CHECKPOINTS).glob(f"{STEP_PREFIX}*"), default=None)  # numbers have leading zeros
    try:
        return sum(file.stat().st_size for file in newest.iterdir()) if newest else None
    except OSError:  # it is being deleted
        return None


def try_sum(
    nodes: Sequence[RemoteNode],
    counts: Sequence[int],
    launch: Launch,
    wish: Wish,
    address: str,
    port: int,
    own: Sequence[Mapping[str, str]],
) -> list[Finding]:
    """A small sum over all ranks of the job, by the process group that the training will use."""
    limits = replace(LimitsConfig(), start_s=SUM_S, training_s=SUM_S, node_s=launch.config.limits.node_s)
    ended = Job(nodes, counts, limits, wish, own_variables=own).run("rb.launching.probe", [], address, port, {})
    if ended.code == FINISHED or wish.look():
        return [Finding(EVERYWHERE, "allreduce", OK, f"{sum(counts)} ranks computed a sum")]
    culprits = ended.verdict.culprits if ended.verdict else ()
    where = nodes[culprits[0].node].host if culprits else EVERYWHERE
    why = ended.verdict.sentence if ended.verdict else f"ended with code {ended.code}"
    remedy = "look at the lines above; open all ports between the nodes, and see whether GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME name the right interface"
    return [Finding(where, "allreduce", FAILED, why, remedy)]


def _wait(done: Callable[[], bool], seconds: float, wish: Wish) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end and not wish.look():
        time.sleep(0.05)
