"""``rb replay``: one step of a run once more, and which sample and which loss term are not finite. What it finds is in `replay.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rb.core.exit_codes import FAILED, FINISHED
from rb.core.output import add_json, aligned, say, say_json

if TYPE_CHECKING:
    from rb.training.replay import Found, Replay

MOST_NAMES = 5  # of parameters and samples in a text; --json has all
LONGEST_CAPTION = 60


def add_replay(parser: argparse.ArgumentParser) -> None:
    """``rb replay``."""
    parser.description = (
        "Make one step of a run again, in one process and without writing anything, and say which sample and which loss term are not "
        "finite. Exit codes: 0 all is finite, 1 something is not, 2 wrong request."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run folder")
    parser.add_argument("step", type=int, metavar="STEP", help="as in log and journal; the first is 1")
    parser.add_argument(
        "--from-checkpoint",
        action="store_true",
        help="use the newest checkpoint before the step as it is; by default the steps between are made first",
    )
    add_json(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.foundation.blip2=FOLDER")
    parser.set_defaults(run=run_replay)


def run_replay(args: argparse.Namespace) -> int:
    """Replay and print; FAILED where something is not finite."""
    from rb.core import dist
    from rb.training.replay import replay

    try:
        result = replay(args.run_dir, args.step, args.overrides, args.from_checkpoint)
    finally:
        dist.shutdown()
    if args.json:
        say_json(as_json(result))
    else:
        say("\n".join(as_text(result)))
    return FINISHED if result.finite else FAILED


def as_json(result: Replay) -> dict[str, Any]:
    """All of it, as plain values; numbers that are not finite are the texts that the journal has."""
    from rb.tracking.journal import encoded

    layout = result.layout
    return {
        "step": result.step,
        "modality": result.modality,
        "finite": result.finite,
        "layout": {
            "ranks": layout.world_size,
            "micro_batches_of_a_rank": layout.grad_accum_steps,
            "micro_batch_size": layout.micro_batch_size,
            "contrastive_batch_size": layout.pool_size,
        },
        "state": {
            "checkpoint": str(result.state) if result.state else None,
            "step": result.state_step,
            "steps_made": result.made,
            "steps_left_out": result.left_out,
            "parameters_not_finite": list(result.bad_parameters),
        },
        "read": [[{"id": one, "position": position} for one, position in rank] for rank in result.read],
        "losses": [encoded(rank) for rank in result.losses],
        "grad_norm": encoded({"": result.grad_norm})[""],
        "journal": [encoded(row) for row in result.recorded if row],
        "terms_not_finite": result.bad_terms,
        "gradients_not_finite": list(result.bad_gradients),
        "samples": [_sample(one) for one in result.suspects],
    }


def _sample(one: Found) -> dict[str, Any]:
    return {
        "id": one.id,
        "stage": one.why.stage,
        "terms": list(one.why.terms),
        "gradients": list(one.why.parameters),
        "rank": one.rank,
        "micro_batch": one.micro_step,
        "row": one.why.row,
        "position": one.position,
        "caption": one.caption,
        "manifest": str(one.manifest),
    }


def as_text(result: Replay) -> list[str]:
    """Lines for people."""
    layout = result.layout
    lines = [
        f"step {result.step} ({result.modality}): {layout.world_size} rank(s) x {layout.grad_accum_steps} micro-batch(es) of "
        f"{layout.micro_batch_size}, ITC and ITM contrast {layout.pool_size}",
        f"state: {result.state or 'the beginning of the run'}, after step {result.state_step}; {result.made} step(s) made from there"
        + (
            f"; {result.left_out} step(s) left out, so the state is older than the step's was"
            if result.left_out
            else ""
        ),
        "",
        *_table(result),
        "",
        f"gradient norm {result.grad_norm:.6g}",
    ]
    if result.finite:
        return [*lines, "all losses and gradients are finite"]
    for rank, terms in enumerate(result.bad_terms):
        if terms:
            lines.append(f"rank {rank}: not finite: {', '.join(terms)}")
    if result.bad_gradients:
        only = "" if any(result.bad_terms) else "only the gradient is not finite, "
        lines.append(f"{only}gradient of {_some(result.bad_gradients)}")
    if result.bad_parameters:
        lines.append(f"the state itself is not finite: {_some(result.bad_parameters)}")
    if not result.suspects:
        lines.append("no single sample is at fault")
    elif len(result.suspects) == layout.global_batch_size > 1:
        lines.append(
            f"all {len(result.suspects)} samples of the step are at fault: the parameters are the likely cause, not the samples"
        )
    else:
        lines += [line for one in result.suspects for line in _lines(one)]
    return lines


def _lines(one: Found) -> list[str]:
    """What one sample does."""
    caption = one.caption if len(one.caption) <= LONGEST_CAPTION else one.caption[:LONGEST_CAPTION] + "..."
    why = [f"  not finite from its {one.why.stage} on" if one.why.stage not in ("loss", "gradient") else ""]
    why += [f"  losses that it makes not finite: {', '.join(one.why.terms)}"] if one.why.terms else []
    why += [f"  only in the gradient of {_some(one.why.parameters)}"] if one.why.parameters else []
    return [
        f"sample {one.id} (rank {one.rank}, micro-batch {one.micro_step}, row {one.why.row}, position {one.position}), {caption!r}, in {one.manifest}",
        *filter(None, why),
    ]


def _table(result: Replay) -> list[str]:
    """A row for each rank, then what the journal has."""
    names = list(result.losses[0])
    rows = [(f"rank {rank}", losses) for rank, losses in enumerate(result.losses)]
    recorded = [row for row in result.recorded if row]
    if len(recorded) == 1:
        ranks = len(result.losses)
        rows.append(("mean", {name: sum(losses[name] for losses in result.losses) / ranks for name in names}))
        rows.append(("journal", dict(recorded[0])))
    else:
        rows += [(f"journal, rank {rank}", dict(losses)) for rank, losses in enumerate(recorded)]
    cells = [(title, *(f"{losses[name]:.6g}" if name in losses else "-" for name in names)) for title, losses in rows]
    return aligned([("", *names), *cells], 1)


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
