"""The work of ``rb ablate``: a plan's variants trained, predicted and scored over seeds, several side by side; the table after every one of them."""

from __future__ import annotations

import argparse
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace

from rb.ablate import table
from rb.ablate.plan import Variant, find_plan, read_plan
from rb.ablate.runs import train_and_ask
from rb.core.child_commands import FailedError, Processes, StoppedError
from rb.core.exit_codes import FAILED, FINISHED, STOPPED
from rb.core.output import note, say


def run_ablate(args: argparse.Namespace) -> int:
    """Exit codes: 0 all there, 1 a run failed (the others were made), 75 asked to stop."""
    plan = read_plan(find_plan(args.plan))
    seeds, chosen = args.seeds or plan.seeds, plan.chosen(args.only or ())
    # The table is of everything that is there, whatever this call adds.
    plan = replace(plan, seeds=tuple(sorted({*plan.seeds, *seeds})))
    if args.jobs < 1 or args.ranks < 1:
        raise ValueError(f"--jobs {args.jobs}, --ranks {args.ranks}: must be at least 1")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    processes = Processes(args.out / "logs", args.rb)
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
                note(f"rb ablate: error: {name}: {error}")
            table.write(plan, args.out)
    text = table.write(plan, args.out)
    if args.json:
        say((args.out / table.DATA).read_text(encoding="utf-8").rstrip("\n"))
    else:
        say(f"{text}\n-> {args.out / table.TABLE}, {args.out / table.DATA}")
    if stopped:
        note("rb ablate: stopped; the same command goes on")
        return STOPPED
    return FAILED if failed else FINISHED


def _say(started: float, text: str) -> None:
    note(f"== [{time.monotonic() - started:5.0f} s] {text}")
