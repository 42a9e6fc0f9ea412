"""The training entry: `deepspeed --module rb.train`, `torchrun -m -- rb.train`, or one plain process; and `launch`, which is `rb train`.

usage: --run FILE [section.key=value ...]        start a run
       --resume RUN_DIR [section.key=value ...]  continue one; only what does not change the result may be set

`rb train --dry-run` with the same options prints what the run would do, and writes nothing.

Exit codes: 0 finished; 75 asked to stop (SIGTERM, SIGINT), saved, --resume goes on; 2 wrong request; 3 too many bad steps in a row.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rb.core.exit_codes import WRONG_REQUEST, leave


def parser() -> argparse.ArgumentParser:
    """Options of the training process itself."""
    made = argparse.ArgumentParser(prog="rb.train", description="Train RegionBLIP. Exit codes: 0 finished, 75 stopped.")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--run",
        type=Path,
        metavar="FILE",
        help="run file (YAML), or the name of one of the project's own, e.g. toy_opt",
    )
    what.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue the run in this folder")
    made.add_argument(
        "--allow", action="append", default=[], choices=["foundation"], help="accept init_from of another foundation"
    )
    made.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the deepspeed launcher's
    made.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.max_steps=100")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """One rank of a training run."""
    args = parser().parse_intermixed_args(argv)
    from rb.training.agree import FailedElsewhereError, StopRequest, together

    stop = StopRequest()
    for module in ("transformers", "torch.distributed"):  # peft and DeepSpeed use their old names
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    _complete_environment(args.local_rank)
    from rb.core import dist
    from rb.core.run_paths import open_run
    from rb.training.loop import finish, prepare, start_tracking, take_steps
    from rb.training.run_folder import saved_run

    dist.init()
    try:
        read = partial(saved_run, args.resume) if args.resume else partial(open_run, args.run)
        config = together(partial(read, args.overrides))
        dist.set_timeout(config.train.timeout_s)
        run = prepare(config, args.resume, args.allow)
        with start_tracking(run, resumed=args.resume is not None) as tracker:
            code = take_steps(run, tracker, stop)
            finish(run, tracker, code)
    except FailedElsewhereError:
        return WRONG_REQUEST
    except (ValueError, OSError) as error:
        prefix = f"rank {dist.rank()}: " if dist.rank() else ""
        print(f"rb train: {prefix}error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return WRONG_REQUEST
    dist.shutdown()
    return code


def launch(argv: Sequence[str]) -> int:
    """`rb train`: the same options and `--ranks N`, through the deepspeed launcher on this host. Returns the exit code."""
    from rb.core.launcher import launch_ranks

    made = parser()
    made.prog = "rb train"
    made.add_argument("--ranks", type=int, default=None, help="processes; default: one for each GPU, or one")
    made.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, from headers alone; write nothing"
    )
    made.add_argument("--json", action="store_true", help="with --dry-run: print it as JSON")
    args = made.parse_intermixed_args(argv)
    if args.ranks is not None and args.ranks < 1:
        raise ValueError(f"--ranks {args.ranks}: must be at least 1")
    if args.dry_run:
        return _dry_run(args)
    if args.json:
        raise ValueError("--json: goes with --dry-run only")
    what = ["--run", str(args.run)] if args.run else ["--resume", str(args.resume)]
    what += [option for allowed in args.allow for option in ("--allow", allowed)]
    return launch_ranks("rb.train", [*what, *args.overrides], args.ranks)


def _dry_run(args: argparse.Namespace) -> int:
    """Print the plan of the run; one process whatever the number of ranks."""
    import json

    import torch

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft uses its old names
    from rb.core.run_paths import open_run
    from rb.training.dry_run import describe, plan_run
    from rb.training.run_folder import saved_run

    config = saved_run(args.resume, args.overrides) if args.resume else open_run(args.run, args.overrides)
    plan = plan_run(config, args.ranks or max(1, torch.cuda.device_count()), args.resume)
    sys.stdout.write(json.dumps(plan, indent=1) + "\n" if args.json else describe(plan, config))
    return 0


def _complete_environment(local_rank: int | None) -> None:
    """What a launcher sets, for a single process without one."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(alone)


if __name__ == "__main__":
    leave(main())
