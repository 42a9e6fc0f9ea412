"""The work of ``rb evaluate``: the cells of a plan by this process, or shared among several; then the table.

With ``--watch`` the checkpoints of a run are the models, each as soon as it is written.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from rb.core import dist
from rb.core.child_commands import FailedError, Processes, StoppedError
from rb.core.exit_codes import FAILED, FINISHED, STOPPED
from rb.core.files import check_writable
from rb.core.output import note, say, say_json
from rb.core.stopping import PARENT_VARIABLE, Parents
from rb.jobs import table
from rb.jobs.plan import Cell, Plan, find_plan, read_plan
from rb.jobs.results import Results
from rb.jobs.track import log_table
from rb.jobs.watch import watch
from rb.jobs.work import Worker

LOGS = "logs"


def run_evaluate(args: argparse.Namespace) -> int:
    """Exit codes: 0 every cell is scored, 1 some failed (the others are there), 75 asked to stop."""
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: must be at least 1")
    if args.watch is not None and (args.only or args.list or args.jobs > 1):
        raise ValueError("--watch: takes checkpoint after checkpoint; leave --only, --list and --jobs out")
    plan = read_plan(find_plan(args.plan))
    if args.watch is None and not plan.cells:
        raise ValueError(f"{plan.path}: models: none that a task's variants ask for; give one, or use --watch RUN_DIR")
    cells = plan.chosen(args.only)
    if args.list:
        _list(plan, args.json)
        return FINISHED
    if args.out is None:
        raise ValueError("--out: name the folder for predictions, scores and the table")
    out = args.out.resolve()
    check_writable(out / table.DATA)
    _end_with_parent()
    if args.watch is not None:
        return _finish(*watch(plan, args.watch.resolve(), out, not args.no_mlflow), args)
    results = Results(plan, out)
    code = evaluate(results, cells, args)
    return _finish(results, plan.cells if not args.only else cells, args) or code


def evaluate(results: Results, cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """Make what is missing of these cells, by this process or by several; FINISHED, or STOPPED where it was asked to stop."""
    if args.jobs == 1 or len({cell.model for cell in cells}) == 1:
        dist.init()
        Worker(results.plan, results, not args.no_mlflow).work(cells)
        return FINISHED
    return _share(results, cells, args)


def _share(results: Results, cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """Each model's cells by a process of its own, ``--jobs`` of them at a time; on GPUs each has one."""
    processes = Processes(results.out / LOGS, args.rb)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: processes.stop())
    gpus = _gpus()
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(args.jobs):
        slots.put(slot)

    def work(model: str) -> None:
        own = [cell for cell in cells if cell.model == model]
        slot = slots.get()
        try:
            command = [
                *processes.rb,
                "evaluate",
                "--plan",
                str(results.plan.path),
                "--out",
                str(results.out),
                "--only",
                *(c.name for c in own),
            ]
            processes.run(
                model.replace("/", "_"),
                [*command, *(["--no-mlflow"] if args.no_mlflow else [])],
                {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else None,
            )
        except FailedError as error:
            _note_death(results, own, error)
        finally:
            slots.put(slot)

    stopped = False
    with ThreadPoolExecutor(args.jobs) as pool:
        for future in [pool.submit(work, model) for model in dict.fromkeys(cell.model for cell in cells)]:
            try:
                future.result()
            except StoppedError:
                stopped = True
    return STOPPED if stopped else FINISHED


def _note_death(results: Results, cells: Sequence[Cell], error: FailedError) -> None:
    """A process that ended with FAILED has noted its cells' causes; for one that broke off it is done here."""
    if error.code == FAILED:
        return
    for cell in cells:
        record = results.record(cell)
        if not results.is_scored(cell) and not record.cause:
            ended = f"by signal {-error.code}" if error.code < 0 else f"with exit code {error.code}"
            results.note(
                cell, replace(record, cause=f"its process ended {ended}; the last lines of its log are on stderr")
            )
    note(f"rb evaluate: error: {error}")


def _finish(results: Results, cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """Write and print the table; FAILED where a cell of this call is not scored."""
    entries = table.write(results, results.plan.cells)
    if not args.no_mlflow and not args.only:
        log_table(results.out, results.plan, entries)
    if args.json:
        say_json(table.as_data(results.plan, entries))
    else:
        say(f"{table.as_text(results.plan, entries)}\n-> {results.out / table.TEXT}, {table.DATA}, {table.PAGE}")
    return FINISHED if all(results.is_scored(cell) for cell in cells) else FAILED


def _list(plan: Plan, as_json: bool) -> None:
    if as_json:
        say_json([cell.name for cell in plan.cells])
        return
    for number, cell in enumerate(plan.cells):
        say(f"{number}  {cell.name}")


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [name for name in given.split(",") if name]
        if given is not None
        else [str(number) for number in range(torch.cuda.device_count())]
    )


def _end_with_parent() -> None:
    """A process that ``--jobs`` started ends when that one is gone, however it was ended: chunks and cells that are whole are kept."""
    if PARENT_VARIABLE not in os.environ:
        return
    parents = Parents(launched=False)

    def look() -> None:
        while not parents.gone():
            time.sleep(0.5)
        os._exit(STOPPED)

    threading.Thread(target=look, daemon=True, name="end with parent").start()
