"""``rb ablate``: a plan's variants trained, predicted and scored over seeds, several side by side; the table after every one of them."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from rb.ablate import table
from rb.ablate.plan import Variant, read_plan
from rb.ablate.runs import FailedError, Processes, StoppedError, train_and_ask
from rb.core.exit_codes import FAILED, FINISHED, STOPPED


def run_ablate(args: argparse.Namespace) -> int:
    """Exit codes: 0 all there, 1 a run failed (the others were made), 75 asked to stop."""
    plan = read_plan(args.plan)
    seeds, chosen = args.seeds or plan.seeds, plan.chosen(args.only or ())
    # The table is of everything that is there, whatever this call adds.
    plan = replace(plan, seeds=tuple(sorted({*plan.seeds, *seeds})))
    if args.jobs < 1 or args.ranks < 1:
        raise ValueError(f"--jobs {args.jobs}, --ranks {args.ranks}: must be at least 1")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    processes = Processes(args.out / "logs")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: processes.stop())
    started, failed, stopped = time.monotonic(), [], False
    # Seed after seed, so that a table of one seed is complete first.
    turns = [(variant, seed) for seed in seeds for variant in chosen]

    def work(variant: Variant, seed: int) -> float:
        if not processes.stopped:
            _say(started, f"{variant.name}, seed {seed}: begins")
        return train_and_ask(plan, variant, seed, args.out, args.ranks, processes)

    with ThreadPoolExecutor(args.jobs) as pool:
        futures: dict[Future[float], str] = {
            pool.submit(work, variant, seed): f"{variant.name}, seed {seed}" for variant, seed in turns
        }
        for done, future in enumerate(as_completed(futures), 1):
            name = futures[future]
            try:
                _say(started, f"[{done}/{len(turns)}] {name}: {future.result():.0f} s")
            except StoppedError:
                stopped = True
            except (FailedError, ValueError, OSError) as error:
                failed.append(name)
                sys.stderr.write(f"rb ablate: error: {name}: {error}\n")
            table.write(plan, args.out)
    sys.stdout.write(f"{table.write(plan, args.out)}\n-> {args.out / table.TABLE}, {args.out / table.DATA}\n")
    if stopped:
        sys.stderr.write("rb ablate: stopped; the same command goes on\n")
        return STOPPED
    return FAILED if failed else FINISHED


def _say(started: float, text: str) -> None:
    sys.stdout.write(f"== [{time.monotonic() - started:5.0f} s] {text}\n")
    sys.stdout.flush()


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``rb ablate``."""
    parser = commands.add_parser("ablate", help="train, predict and score variants of a run over seeds, and tabulate")
    parser.add_argument("--plan", type=Path, required=True, help="YAML file; launch/ablations/ has the project's own")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, logs and table; may hold a part")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these variants (and the first)")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the plan's")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of one training")
    parser.set_defaults(run=run_ablate)
