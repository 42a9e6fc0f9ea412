"""The training entry: `deepspeed --module rb.train`, `torchrun -m -- rb.train`, or one plain process; and `launch`, which is `rb train`.

usage: --run FILE [section.key=value ...]        start a run
       --resume RUN_DIR [section.key=value ...]  continue one; only what does not change the result may be set

`rb train --dry-run` with the same options prints what the run would do, and writes nothing.

Exit codes: 0 finished; 75 asked to stop (SIGTERM, SIGINT), saved, --resume goes on; 2 wrong request; 3 too many bad steps in a row; 73 the
disk takes no more and the last step is not saved; 1 or above 128: broke off. `rb train` takes the code from what the run itself wrote at its end (`rb/training/run_end.py`).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rb.core import heartbeat
from rb.core.config import LimitsConfig
from rb.core.exit_codes import FINISHED, USER_ERRORS, guarded, leave, wrong_request
from rb.core.output import say, say_json
from rb.core.stopping import StopRequest
from rb.core.verbosity import add_options, set_verbosity


def add_train(parser: argparse.ArgumentParser) -> None:
    """``rb train``."""
    parser.description = (
        "Train RegionBLIP. Exit codes: 0 finished, 75 stopped (saved; --resume goes on), 73 disk full, 2 wrong request."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--run", type=Path, metavar="FILE", dest="run_file", help="run file (YAML), or a name from rb runs list"
    )
    what.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue the run in this folder")
    parser.add_argument(
        "--allow", action="append", default=[], choices=["foundation"], help="accept init_from of another foundation"
    )
    parser.add_argument("--ranks", type=int, help="processes; default: one for each GPU, or one")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, from headers alone; write nothing"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print it as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.max_steps=100")
    parser.set_defaults(run=launch)


def launch(args: argparse.Namespace) -> int:
    """`rb train`: the ranks of this host, started and watched. Returns the exit code, by the run's own end marker."""
    if args.ranks is not None and args.ranks < 1:
        raise ValueError(f"--ranks {args.ranks}: must be at least 1")
    if args.dry_run:
        return _dry_run(args)
    if args.json:
        raise ValueError("--json: goes with --dry-run only")
    what = ["--run", str(args.run_file)] if args.run_file else ["--resume", str(args.resume)]
    what += [option for allowed in args.allow for option in ("--allow", allowed)]
    from rb.core.run_file import load_run
    from rb.core.run_layout import RUN_CONFIG
    from rb.core.run_paths import open_run
    from rb.launching.local import run_here

    if args.resume:
        run_dir, saved = args.resume, args.resume / RUN_CONFIG
        limits = (
            load_run(saved, args.overrides).limits if saved.is_file() else LimitsConfig()
        )  # the ranks say what is wrong
    else:
        config = open_run(args.run_file, args.overrides)
        run_dir, limits = Path(config.output_dir) / config.name, config.limits
    return run_here("rb.train", run_dir, [*what, *args.overrides], args.ranks, limits)


def _dry_run(args: argparse.Namespace) -> int:
    """Print the plan of the run; one process whatever the number of ranks."""
    import torch

    from rb.core.run_paths import open_run
    from rb.training.dry_run import describe, plan_run
    from rb.training.run_folder import saved_run

    config = saved_run(args.resume, args.overrides) if args.resume else open_run(args.run_file, args.overrides)
    plan = plan_run(config, args.ranks or max(1, torch.cuda.device_count()), args.resume)
    if args.json:
        say_json(plan)
    else:
        say(describe(plan, config).rstrip("\n"))
    return FINISHED


def main(argv: Sequence[str] | None = None) -> int:
    """One rank of a training run; with ``--ranks N`` the supervisor of N of them, as `rb train`."""
    heartbeat.begin()
    parser = argparse.ArgumentParser(prog="rb.train")
    add_train(parser)
    add_options(parser)
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the deepspeed launcher's
    args = parser.parse_intermixed_args(argv)
    set_verbosity(args.verbosity)
    if args.ranks is not None or args.dry_run:
        return guarded("rb train", partial(launch, args))
    stop = StopRequest()  # before torch is imported, which takes seconds
    from rb.training.agree import FailedElsewhereError, collective_timeout_s, together

    _complete_environment(args.local_rank)
    from rb.core import dist
    from rb.core.run_paths import open_run
    from rb.training.loop import finish, prepare, start_tracking, take_steps
    from rb.training.run_folder import saved_run

    stop.describe = _collectives
    try:
        dist.init()
        read = partial(saved_run, args.resume) if args.resume else partial(open_run, args.run_file)
        config = together(partial(read, args.overrides))
        stop.patience_s = config.train.timeout_s
        dist.set_timeout(collective_timeout_s(config))
        run = prepare(config, args.resume, args.allow)
        with start_tracking(run, resumed=args.resume is not None) as tracker, run.saver:
            code = take_steps(run, tracker, stop)
            finish(run, tracker, code, stop)
    except FailedElsewhereError as error:
        return error.code
    except USER_ERRORS as error:
        return wrong_request(f"rb train: rank {dist.rank()}" if dist.rank() else "rb train", error)
    dist.shutdown()
    return code


def _collectives() -> str:
    """What torch's record says of this rank, for the report of a hang and for who is to blame (`rb/launching/record.py`)."""
    from rb.core import dist

    begun = f"{heartbeat.BEGUN}{json.dumps(dist.collectives_begun())}"
    return "\n".join(["", "newest collectives:", *dist.recent_collectives(), begun, ""])


def _complete_environment(local_rank: int | None) -> None:
    """What a launcher sets, for a single process without one."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if "RANK" in os.environ:
        return
    from rb.core.ranks_here import free_port

    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone | {"MASTER_PORT": str(free_port())})


if __name__ == "__main__":
    leave(main())
