"""`rb doctor`: the checks before a launch for this host alone, with a small sum over its ranks. What several nodes must share needs the checks of `rb launch`."""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

from rb.core.config import RunConfig
from rb.core.exit_codes import FAILED as FOUND_FAULTS
from rb.core.exit_codes import FINISHED
from rb.core.install import import_path
from rb.core.output import add_json, say, say_json
from rb.core.ranks_here import NO_DEVICE, VISIBLE, free_port
from rb.core.run_file import to_tree
from rb.core.run_layout import RUN_CONFIG
from rb.core.strict_json import parse
from rb.launching.checks import compare
from rb.launching.facts import make_request, node_facts
from rb.launching.findings import FAILED, OK, Finding, failures, table
from rb.launching.machine import OF_RANKS
from rb.launching.secrets import check_secrets

SUM_S = 120.0  # for starting the ranks, meeting, and the sum
OF_A_RUN = ("data", "foundation", "memory", "batch")  # say nothing without a run


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """``rb doctor``."""
    parser.description = (
        "Check this host for training: versions, GPUs, memory, disks, network, a small sum over its ranks; with --run also the run's "
        "data, foundation and room. Exit code 1 where a check failed. Caption metrics have their own check, rb metrics doctor."
    )
    parser.add_argument(
        "--run", type=Path, metavar="FILE", dest="run_file", help="run file, run folder, or a name from rb runs list"
    )
    parser.add_argument("--ranks", type=int, help="processes; default: one for each GPU, or one")
    parser.add_argument("--full", action="store_true", help="read every byte of data and foundation")
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run, e.g. output_dir=/scratch/runs")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Print what was found; the exit code says whether a check failed."""
    if args.ranks is not None and args.ranks < 1:
        raise ValueError(f"--ranks {args.ranks}: must be at least 1")
    if args.run_file is None and args.overrides:
        raise ValueError(f"{args.overrides[0]}: changes a run; name it with --run")
    facts, findings = examine(args.run_file, args.overrides, args.ranks, args.full)
    if args.json:
        say_json({"facts": facts, "findings": [finding.to_tree() for finding in findings]})
    else:
        say(table(findings))
    return FOUND_FAULTS if failures(findings) else FINISHED


def examine(
    run_file: Path | None, overrides: list[str], ranks: int | None, full: bool
) -> tuple[dict[str, Any], list[Finding]]:
    """The facts of this host, and what they mean.

    Args:
        run_file: of the run that is to be trained; none to look at the host alone.
        overrides: of the run.
        ranks: that would train here; none is one for each GPU, or one.
        full: read every byte of data and foundation.

    Raises:
        ValueError: the run file cannot be read, or names what is not there.
    """
    from rb.core.run_paths import open_run

    config = open_run(run_file, overrides) if run_file else RunConfig()
    run_dir = Path(config.output_dir).absolute() / config.name
    request = make_request(config, ranks or 1, run_dir, full=full)
    facts = node_facts(request)
    usable = int(facts["gpus"].get("usable") or 0)
    if ranks is None and usable > 1:
        ranks = usable
        facts = node_facts(request := request | {"ranks": ranks})
    host, ranks = socket.gethostname(), ranks or 1
    found = check_secrets(overrides, to_tree(config))
    if run_file:
        found += _plan(config, ranks, run_dir, facts, host)
    found += [f for f in compare({host: facts}, request) if run_file or f.check not in OF_A_RUN]
    return facts, [*found, try_sum(ranks, usable > 0, host)]


def _plan(config: RunConfig, ranks: int, run_dir: Path, facts: dict[str, Any], host: str) -> list[Finding]:
    """What the dry run says; it also tells the size of a checkpoint, which the facts of the disk need."""
    broken = [row["problem"] for part in ("data", "foundation") for row in facts[part].values() if row.get("problem")]
    if broken:
        return []  # these findings say it better
    from rb.training.dry_run import BYTES_PER_PARAMETER, plan_run

    resume = run_dir if (run_dir / RUN_CONFIG).is_file() else None
    try:
        plan = plan_run(config, ranks, resume)
    except (ValueError, OSError) as error:
        return [Finding(host, "run", FAILED, str(error))]
    size = plan["parameters"]["trainable_in_all"] * BYTES_PER_PARAMETER
    facts["disk"]["needed"] = size * (config.train.keep_checkpoints + 1)
    return [Finding(host, "run", OK, f"{plan['schedule']['total_steps']:,} steps, checkpoints of {size / 1e6:,.1f} MB")]


def try_sum(ranks: int, on_gpus: bool, host: str, seconds: float = SUM_S) -> Finding:
    """A sum over ``ranks`` processes of this host, by a real process group; none of them is left."""
    port = free_port()
    kept = {name: value for name, value in import_path().items() if name not in OF_RANKS}
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not on_gpus:
        shared[VISIBLE] = NO_DEVICE
    command = [sys.executable, "-m", "rb.launching.probe", "--timeout", str(seconds / 2)]
    processes: list[Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(Path(folder, f"{rank}.out"), Path(folder, f"{rank}.err")) for rank in range(ranks)]
        try:
            for rank, (out, err) in enumerate(outputs):
                own = kept | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with out.open("wb") as out_file, err.open("wb") as err_file:
                    processes.append(Popen(command, env=own, stdout=out_file, stderr=err_file))
            end = time.monotonic() + seconds
            while any(p.poll() is None for p in processes) and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        wrong = _failed_rank(processes, outputs)
        if wrong:
            remedy = "see whether the variables GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the right interface, and look at nvidia-smi"
            return Finding(host, "allreduce", FAILED, wrong, remedy)
        tree = parse(outputs[0][0].read_bytes().splitlines()[-1], "the sum")
    times = ", ".join(f"{1000 * s:.0f}" for s in tree["sum_s"])
    return Finding(host, "allreduce", OK, f"{tree['ranks']} rank(s), {tree['backend']}, 1 MiB in {times} ms")


def _failed_rank(processes: list[Popen[bytes]], outputs: list[tuple[Path, Path]]) -> str:
    """The first rank that says why it failed; empty where none did."""
    codes = [process.returncode for process in processes]
    if not any(codes):
        return ""
    rank = next((r for r, code in enumerate(codes) if code > 0), next(r for r, code in enumerate(codes) if code))
    lines = outputs[rank][1].read_text(errors="replace").strip().splitlines()
    said = lines[-1] if lines and codes[rank] > 0 else f"rank {rank}: no answer within the time limit"
    return said if said.startswith("rank ") else f"rank {rank}: {said}"
