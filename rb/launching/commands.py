"""`rb launch`: a training over several nodes. Reads what the user asked for; `controller.py` does it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.config import RunConfig

if TYPE_CHECKING:
    from rb.launching.launchers import Place

HELP = (
    "Train over several nodes, watched. Starts the run, or goes on with it where its folder holds it already. Exit codes: 0 finished, 2 wrong request, "
    "3 numbers, 4 hang, 5 node lost, 73 no room, 75 stopped and saved, 128 + N a rank was ended by signal N."
)


def add_launch(parser: argparse.ArgumentParser) -> None:
    """``rb launch``."""
    parser.description = HELP
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--hostfile", type=Path, metavar="FILE", help="lines `host slots=8`; goes by ssh")
    how.add_argument("--slurm", action="store_true", help="the nodes of the Slurm job that this command runs in")
    how.add_argument("--torchrun", action="store_true", help="one of several nodes on which this command is given")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="FILE", dest="run_file", help="run file, or a name from rb runs list")
    what.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue the run in this folder")
    parser.add_argument(
        "--launcher",
        choices=("pdsh", "ssh"),
        help="with --hostfile: deepspeed's, by pdsh (default where pdsh is installed), or ssh",
    )
    parser.add_argument(
        "--ranks-per-node", type=int, metavar="N", help="with --slurm, --torchrun: default one for each GPU, or one"
    )
    parser.add_argument("--nodes", type=int, help="with --torchrun: how many")
    parser.add_argument("--node-rank", type=int, metavar="K", help="with --torchrun: number of this one, from 0")
    parser.add_argument(
        "--master-addr", default="", metavar="HOST", help="with --torchrun: node 0, as the others reach it"
    )
    parser.add_argument(
        "--master-port",
        type=int,
        default=0,
        metavar="PORT",
        help="of rank 0 (with --torchrun: of its agents); default: a free one (29500)",
    )
    parser.add_argument(
        "--control-port", type=int, default=0, metavar="PORT", help="of this controller; default: a free one"
    )
    parser.add_argument(
        "--restart", type=int, default=0, metavar="N", help="start again by itself, at most N times, where it broke off"
    )
    parser.add_argument(
        "--min-nodes",
        type=int,
        default=0,
        metavar="M",
        help="with --hostfile: a restart may go on with M nodes or more",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="WHAT",
        help="accept a failed check, or `foundation` as rb train does",
    )
    parser.add_argument(
        "--full", action="store_true", help="read every byte of data and foundation on every node first"
    )
    parser.add_argument("--no-sum", action="store_true", help="leave out the small sum over all ranks before the start")
    parser.add_argument("--check", action="store_true", help="end after the checks")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.max_steps=100")
    parser.set_defaults(run=run_launch)


def run_launch(args: argparse.Namespace) -> int:
    """The controller (``rank_module``, from above this room, is what a rank runs); on nodes of torchrun other than the first, what starts their agents."""
    from rb.launching.controller import Controller
    from rb.launching.job import Wish
    from rb.launching.request import Launch

    launcher = launcher_of(args)
    config, run_dir, what = wanted(args)
    if args.torchrun and args.node_rank:
        from rb.launching.follower import follow

        with Wish() as wish:
            return follow(run_dir, args.nodes, args.node_rank, (args.master_addr, args.master_port or 29500), wish)
    places = places_of(args)
    allow_train = tuple(word for name in args.allow if name == "foundation" for word in ("--allow", name))
    launch = Launch(
        module=args.rank_module,
        launcher=launcher,
        places=places,
        config=config,
        what=what,
        options=(*allow_train, *args.overrides),
        restart=args.restart,
        min_nodes=args.min_nodes,
        accepted=tuple(name for name in args.allow if name != "foundation"),
        full=args.full,
        check_only=args.check,
        try_sum=not args.no_sum,
        control_port=args.control_port,
        master_port=0 if args.torchrun else args.master_port,
        meeting=(args.master_addr, args.master_port or 29500) if args.torchrun else ("", 0),
        run_dir=run_dir,
    )
    with Wish() as wish:
        return Controller(launch, wish).run()


def wanted(args: argparse.Namespace) -> tuple[RunConfig, Path, tuple[str, ...]]:
    """The run, its folder, and the arguments of `rb.train`.

    Raises:
        ValueError: the run cannot be read, or its folder holds another one.
    """
    from rb.core.run_file import load_run
    from rb.core.run_layout import RUN_CONFIG
    from rb.core.run_paths import open_run, resolve_paths, run_places

    def saved(folder: Path) -> RunConfig:
        config = load_run(folder / RUN_CONFIG, args.overrides)
        return resolve_paths(config, *run_places(folder.resolve(), config), init_from=False)

    if args.resume:
        run_dir = Path(os.path.abspath(args.resume))  # noqa: PTH100 (links as they are)
        if not (run_dir / RUN_CONFIG).is_file():
            raise ValueError(f"{args.resume}: no run there ({RUN_CONFIG} is missing); start it with --run FILE")
        return saved(run_dir), run_dir, ("--resume", str(run_dir))
    config = open_run(args.run_file, args.overrides)
    run_dir = Path(config.output_dir) / config.name
    if (run_dir / RUN_CONFIG).is_file():
        changed = _differences(saved(run_dir), config)
        if changed:
            raise ValueError(
                f"{run_dir}: holds a run with other settings ({', '.join(changed[:5])}); go on with it by --resume {run_dir}, "
                "or start another one under a new name (name=...)"
            )
    return config, run_dir, ("--run", str(args.run_file))


def _differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Keys in which two runs differ."""
    from rb.core.run_file import to_tree

    def leaves(tree: object, prefix: str = "") -> dict[str, object]:
        if isinstance(tree, dict) and tree:
            return {
                k: v
                for key, value in tree.items()
                for k, v in leaves(value, f"{prefix}.{key}" if prefix else key).items()
            }
        return {prefix: tree}

    before, now = leaves(to_tree(one)), leaves(to_tree(other))
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key != "init_from")


def launcher_of(args: argparse.Namespace) -> str:
    """Which launcher the options mean; ``ValueError`` where they do not go together, or it is not there."""
    if args.torchrun and (args.nodes is None or args.node_rank is None or not args.master_addr):
        raise ValueError("--torchrun: needs --nodes N, --node-rank K and --master-addr HOST on every node")
    if args.torchrun and not 0 <= args.node_rank < args.nodes:
        raise ValueError(f"--node-rank {args.node_rank}: must lie between 0 and --nodes {args.nodes} - 1")
    if args.launcher == "pdsh" and not shutil.which("pdsh"):
        raise ValueError("--launcher pdsh: pdsh is not installed; install it, or use --launcher ssh")
    if args.hostfile and os.environ.get("CUDA_VISIBLE_DEVICES"):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} is not used on several hosts; unset it, and say slots=N in the hostfile"
        )
    if args.restart < 0 or args.min_nodes < 0:
        raise ValueError(f"--restart {args.restart} and --min-nodes {args.min_nodes}: must not be negative")
    if args.min_nodes and not args.hostfile:
        raise ValueError("--min-nodes: goes with --hostfile; Slurm and torchrun give a job its nodes")
    if args.slurm or args.torchrun:
        return "slurm" if args.slurm else "torchrun"
    return args.launcher or ("pdsh" if shutil.which("pdsh") else "ssh")


def places_of(args: argparse.Namespace) -> tuple[Place, ...]:
    """The nodes, from the hostfile, Slurm or the command line."""
    from rb.launching import launchers

    if args.hostfile:
        from rb.launching.hostfile import read_hostfile

        return tuple(launchers.Place(host.name, host.slots) for host in read_hostfile(args.hostfile))
    if args.torchrun:
        return tuple(
            launchers.Place(f"node {number}", args.ranks_per_node or _own_ranks()) for number in range(args.nodes)
        )
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise ValueError(
            "--slurm: this is not within a Slurm job; submit one with `sbatch launch/slurm.sbatch RUN_FILE`"
        )
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if shown.returncode:
        raise ValueError(f"--slurm: scontrol cannot read SLURM_JOB_NODELIST={nodes}: {shown.stderr.strip()}")
    ranks = args.ranks_per_node or int(os.environ.get("SLURM_GPUS_ON_NODE", "0") or 0) or _own_ranks()
    return tuple(launchers.Place(host, ranks) for host in shown.stdout.split())


def _own_ranks() -> int:
    from rb.core.ranks_here import devices_of_ranks

    return len(devices_of_ranks(None))
