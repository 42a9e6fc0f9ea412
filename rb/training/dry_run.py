"""``rb train --dry-run``: what a run would do, from manifests and file headers alone. Loads no weights, writes nothing.

Uses the same code as training: paths and checks of the request, the opened manifests, the schedule, ``build_model`` on the meta device.
So what passes here fails in training only for what no header shows (memory, a damaged shard, a value that is not finite).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rb.checkpoints import checkpoint
from rb.core.config import AUTO, DataConfig, DataSource, RunConfig
from rb.core.output import aligned
from rb.core.run_file import dump_run, to_tree
from rb.core.run_layout import (
    CHECKPOINTS,
    RUN_CONFIG,
    RUN_ENVIRONMENT,
    RUN_JOURNAL,
    RUN_LOG,
    RUN_VALIDATION,
    RUN_WEIGHTS,
)
from rb.data.order import Arrangement
from rb.data.pipeline import TrainingData, open_training_data
from rb.inference.cache_features import check_features
from rb.inference.cache_groups import uses_of_groups
from rb.model.weights.build import build_model
from rb.training.batches import training_transform
from rb.training.extending import length_of
from rb.training.loop import check_request, trainable_counts
from rb.training.micro_batch import bytes_at_hand, choose_layout
from rb.training.run_folder import check_continues, check_new
from rb.training.schedule import Schedule
from rb.training.validate import open_validation_data

NUM_TURNS = 20  # of the schedule, that are shown
BYTES_PER_PARAMETER = 12  # of a checkpoint: the value and AdamW's two moments, fp32


def plan_run(config: RunConfig, world_size: int, resume: Path | None = None) -> dict[str, Any]:
    """What training would do, as a tree of plain values (``rb train --dry-run --json``).

    Args:
        config: the run, its paths found (``open_run`` or ``saved_run``).
        world_size: processes that would train.
        resume: the run folder that would be continued; none for a new one.

    Raises:
        ValueError: whatever would stop training before its first step, as training says it.
    """
    check_request(config, world_size)
    layout = choose_layout(config, world_size, bytes_at_hand())
    data = open_training_data(config.data.train, config.seed, Arrangement.of(config.data))
    held_out = open_validation_data(config.data) if config.validation.every else {}
    samples = {modality: len(data[modality].stream) for modality in config.train.in_order(data)}
    schedule = Schedule(config.train.schedule, samples, config.train.global_batch_size, config.seed)
    folder = resume or Path(config.output_dir) / config.name
    if resume is None:
        check_new(folder)
    built = build_model(config.model, config.seed, "meta")
    check_features(built, config, data)
    found = checkpoint.find(resume) if resume is not None else None
    if found is not None:
        check_continues(found.meta, config, built, data)
    start = found.step if found is not None else 0
    total = length_of(config.train, config.optim, schedule)
    counts = trainable_counts(built.model.parameter_modalities(), built.model.trainable_parameters())
    num_all = sum(parameter.numel() for parameter in built.model.parameters())
    num_trainable = sum(counts.values())
    return {
        "run_folder": str(folder),
        "resume_from_step": start if resume is not None else None,
        "data": {"train": _listed(config.data.train, data), "val": _listed(config.data.val, held_out)},
        "groups": uses_of_groups(data, training_transform(config, built)),
        "batch": {
            "ranks": world_size,
            "micro_batch_size": layout.micro_batch_size,
            "grad_accum_steps": layout.grad_accum_steps,
            "global_batch_size": layout.global_batch_size,
            "contrastive_batch_size": layout.pool_size,
            "qformer_passes": 1 if layout.pool_passes == 1 else 2,
        },
        "order": _order(config.data, data, layout.global_batch_size),
        "schedule": {
            "kind": schedule.kind,
            "samples_per_epoch": schedule.samples_per_epoch,
            "steps_of_first_epoch": schedule.epoch_steps(0),
            "total_steps": total,
            "steps_per_modality": _steps_per_modality(schedule, total),
            "epochs_begun": schedule.epoch_of(total - 1) + 1,
            "first_turns": [schedule.at(step).modality for step in islice(range(start, total), NUM_TURNS)],
        },
        "parameters": {"trainable": counts, "trainable_in_all": num_trainable, "frozen": num_all - num_trainable},
        "weights": built.ledger.lines(built.model),
        "writes": _writes(config, total, num_trainable),
        "config": to_tree(config),
    }


def describe(plan: Mapping[str, Any], config: RunConfig) -> str:
    """The plan for people to read."""
    batch, schedule, parameters = plan["batch"], plan["schedule"], plan["parameters"]
    start = plan["resume_from_step"]
    lines = [f"run folder  {plan['run_folder']} ({'new' if start is None else f'continues after step {start:,}'})", ""]
    for part, title in (("train", "data"), ("val", "validation data")):
        rows = [
            (modality, row["name"], f"{row['samples']:,} samples", f"shown {row['repeat']} x an epoch", row["manifest"])
            for modality, listed in plan["data"][part].items()
            for row in listed
        ]
        lines += [title, *_columns(rows), ""] if rows else []
    lines += [*plan["groups"], ""] if plan["groups"] else []
    lines += [
        f"batch  {batch['global_batch_size']} samples a step: {batch['ranks']} rank(s) x micro-batch {batch['micro_batch_size']}"
        f"{' (auto, on this machine)' if config.train.micro_batch_size == AUTO else ''} "
        f"x {batch['grad_accum_steps']} accumulated",
        f"  ITC and ITM contrast {batch['contrastive_batch_size']} samples"
        + ("" if batch["qformer_passes"] == 1 else "; more than one pass of the ranks, so the Q-Former runs twice"),
        "",
        *_order_lines(plan["order"]),
        f"schedule  {schedule['kind']}, {schedule['total_steps']:,} steps, {schedule['epochs_begun']} epoch(s) begun",
        *_columns(
            [
                (m, f"{schedule['steps_of_first_epoch'][m]:,} steps in the first epoch", f"{steps:,} in all")
                for m, steps in schedule["steps_per_modality"].items()
            ]
        ),
        f"  first turns: {', '.join(schedule['first_turns'])}",
        "",
        f"parameters  {parameters['trainable_in_all']:,} trainable, {parameters['frozen']:,} frozen",
        *_columns([(users, f"{count:,}") for users, count in parameters["trainable"].items()]),
        "",
        "weights",
        *(f"  {line}" for line in plan["weights"]),
        "",
        "would write",
        *_columns([(name, what) for name, what in plan["writes"].items()]),
        "",
        "configuration",
        *(f"  {line}" for line in dump_run(config).splitlines()),
    ]
    return "\n".join(lines) + "\n"


def _listed(
    sources: Mapping[str, Sequence[DataSource]], data: Mapping[str, TrainingData]
) -> dict[str, list[dict[str, Any]]]:
    return {
        modality: [
            {
                "manifest": source.manifest,
                "name": reader.manifest.name,
                "split": reader.manifest.split,
                "samples": min(len(reader), source.first or len(reader)),
                "repeat": source.repeat,
                "digest": reader.digest,
            }
            for source, reader in zip(sources[modality], opened.readers, strict=True)
        ]
        for modality, opened in data.items()
    }


def _order(config: DataConfig, data: Mapping[str, TrainingData], batch_size: int) -> dict[str, Any]:
    """How samples follow each other, and how many sources a step reads and encodes, on average over an epoch."""
    shares = {modality: opened.stream.num_groups / len(opened.stream) for modality, opened in data.items()}
    return {
        "kind": config.order,
        "block_records": config.block_records if config.order == "blocks" else None,
        "window_blocks": config.window_blocks if config.order == "blocks" else None,
        "group_by_source": config.group_by_source,
        "groups_per_epoch": {modality: opened.stream.num_groups for modality, opened in data.items()},
        "sources_per_step": {modality: round(share * batch_size, 1) for modality, share in shares.items()},
    }


def _order_lines(order: Mapping[str, Any]) -> list[str]:
    said = "all samples of an epoch shuffled"
    if order["kind"] == "blocks":
        said = f"blocks of {order['block_records']:,} records shuffled, then what each {order['window_blocks']:,} of them hold"
    if order["group_by_source"] == 1:
        return [f"order  {said}; every caption reads its source", ""]
    rows = [
        (
            modality,
            f"{groups:,} groups an epoch",
            f"about {order['sources_per_step'][modality]:,} sources read and encoded a step",
        )
        for modality, groups in order["groups_per_epoch"].items()
    ]
    return [f"order  {said}; up to {order['group_by_source']} captions of a source together", *_columns(rows), ""]


def _steps_per_modality(schedule: Schedule, total: int) -> dict[str, int]:
    epoch = schedule.epoch_of(total - 1)
    begun = Counter(schedule.at(step).modality for step in range(schedule.total_steps(epoch), total))
    return {modality: steps + begun[modality] for modality, steps in schedule.modality_steps(epoch).items()}


def _writes(config: RunConfig, total: int, num_trainable: int) -> dict[str, str]:
    """Files in the run folder and what they hold."""
    size = num_trainable * BYTES_PER_PARAMETER / 1e6
    train, validation = config.train, config.validation
    written = {
        RUN_CONFIG: "the configuration below",
        RUN_ENVIRONMENT: "versions, machine, commit",
        RUN_WEIGHTS: "where every weight comes from",
        RUN_JOURNAL: f"metrics every {train.log_every} steps",
        RUN_LOG: "log of rank 0",
        CHECKPOINTS: f"every {train.checkpoint_every:,} steps and after step {total:,}, the newest {train.keep_checkpoints} kept; "
        f"about {size:,.1f} MB each",
    }
    if validation.every:
        written[RUN_VALIDATION] = f"a page of captions every {validation.every:,} steps"
    if config.tracking.mlflow:
        written["MLflow"] = f"experiment {config.tracking.experiment}: a copy of the journal"
    return written


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return aligned(rows, len(rows[0]), indent="  ") if rows else []
