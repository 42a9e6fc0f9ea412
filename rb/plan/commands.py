"""``rb plan``: its arguments, and the plan as text or JSON."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rb.core.device import add_device
from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, aligned, say, say_json
from rb.plan.factors import CARDS, FACTORS, GPUS_OF_A_NODE, Card

if TYPE_CHECKING:
    from rb.plan.planning import Line, Plan


def add_plan(parser: argparse.ArgumentParser) -> None:
    """``rb plan``."""
    parser.description = "Say what a run will take on GPUs of a kind: steps, hours, memory, bytes, cores. Needs no GPU, weights or data; about a minute."
    parser.add_argument("--run", required=True, dest="run_file", metavar="FILE", help="run file, or a project's run")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="in all")
    parser.add_argument("--kind", choices=sorted(CARDS), help="of GPU; without it give the next three")
    parser.add_argument("--memory-gb", type=float, metavar="GB", help="memory of a GPU, 10^9 bytes")
    parser.add_argument("--teraflops", type=float, metavar="TF", help="its rate of dense bf16 products")
    parser.add_argument("--bandwidth-gbs", type=float, metavar="GB/s", help="bandwidth of its memory")
    parser.add_argument("--gpus-per-node", type=int, default=GPUS_OF_A_NODE, metavar="N", help=f"({GPUS_OF_A_NODE})")
    parser.add_argument(
        "--network-gbs",
        type=float,
        default=FACTORS["network"].good,
        metavar="GB/s",
        help="between nodes (22: one adapter of 200 Gb/s)",
    )
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.group_by_source=4")
    parser.set_defaults(run=run_plan)


def add_bench_plan(parser: argparse.ArgumentParser) -> None:
    """``rb bench plan``."""
    parser.description = "Make real micro-batches on this device, and compare FLOPs, saved bytes and peak memory with what rb plan says of them."
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", dest="run_file", metavar="FILE", help="run file whose foundation is here")
    what.add_argument(
        "--size", choices=("medium_opt", "medium_t5"), default="medium_opt", help="a model that is made up (medium_opt)"
    )
    parser.add_argument("--micro-batch", type=int, default=8, metavar="N", help="samples (8)")
    add_device(parser)
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --run: e.g. model.num_points=512")
    parser.set_defaults(run=run_bench_plan)


def run_bench_plan(args: argparse.Namespace) -> int:
    """Compare and print."""
    from rb.plan.checking import run

    return run(args)


def run_plan(args: argparse.Namespace) -> int:
    """Plan and print."""
    card = _card(args)
    for name in ("gpus", "gpus_per_node", "network_gbs"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be above 0")
    from rb.core.run_paths import view_run
    from rb.plan.planning import Machines, plan_of

    machines = Machines(args.kind or "other", card, args.gpus, args.gpus_per_node, args.network_gbs)
    config = view_run(args.run_file, args.overrides)
    plan = plan_of(config, machines)
    if args.json:
        say_json({"run": config.name} | plan.tree())
        return FINISHED
    for line in text_of(config.name, plan):
        say(line)
    return FINISHED


def _card(args: argparse.Namespace) -> Card:
    given = {name: getattr(args, name) for name in ("memory_gb", "teraflops", "bandwidth_gbs")}
    if args.kind is None and None in given.values():
        raise ValueError(
            f"--kind: say which GPU ({', '.join(sorted(CARDS))}), or give --memory-gb, --teraflops and --bandwidth-gbs of another"
        )
    for name, value in given.items():
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be above 0")
    known = CARDS[args.kind] if args.kind else Card(0, 0, 0, "given")
    return Card(
        args.memory_gb or known.gigabytes,
        args.teraflops or known.teraflops,
        args.bandwidth_gbs or known.bandwidth,
        "given" if any(given.values()) else known.source,
    )


def text_of(name: str, plan: Plan) -> list[str]:
    """The plan for people."""
    layout, machines = plan.layout, plan.machines
    head = (
        f"{name} on {machines.gpus} x {machines.kind}: {layout.global_batch_size} samples a step = {layout.world_size} ranks x micro-batch "
        f"{layout.micro_batch_size} x {layout.grad_accum_steps} accumulated; ITC and ITM contrast {layout.pool_size}"
    )
    rows = [(line.name, line.of, _number(line), line.unit, line.how, line.note) for line in plan.lines]
    factors = [
        (key, f"{one.good:g} to {one.bad:g}" if one.good != one.bad else f"{one.good:g}", one.unit, one.source)
        for key, one in FACTORS.items()
    ]
    return [head, "", *aligned(rows, 6), "", "factors", *aligned(factors, 4, indent="  ")]


def _number(line: Line) -> str:
    def one(value: float) -> str:
        return f"{value:,.0f}" if value >= 1000 or float(value).is_integer() else f"{value:.3g}"

    return one(line.low) if line.low == line.high else f"{one(line.low)} to {one(line.high)}"
