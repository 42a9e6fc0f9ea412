"""``rb bench step --counters``: what one micro-batch of each modality executes at full size, beside what it needs. No GPU, no data, no weights.

The run's model is made on the meta device; a folder of weights that is not there stands for the public model of its name. One rank of 32 is
played (``rb.core.dist.played``): the model's own gathers are counted as they are called, and those of DeepSpeed's optimizer step by the real
engine over parameters of the run's shapes. ``executed.py``, ``needed.py``, ``typical_batch.py`` and
``on_meta.py`` say what each number means.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from rb.bench.engine_collectives import count_engine
from rb.core import dist
from rb.core.config import AUTO, RunConfig
from rb.core.exit_codes import FINISHED
from rb.core.output import aligned, say, say_json
from rb.core.run_paths import view_run
from rb.costs.executed import Counter, Counts, by_parts
from rb.costs.meta_model import META, training_model_of
from rb.costs.needed import needed
from rb.costs.needed_bytes import needed_received
from rb.costs.on_meta import as_on_a_gpu
from rb.costs.typical_batch import Typical, typical_batches
from rb.model.region_blip import RegionBLIP

RANKS = 32
AUTO_ROWS = 16  # samples of a micro-batch that are counted where the run says ``auto``: the released code's
COLUMNS = ("needed_gflop", "executed_gflop", "launches", "collectives", "received_mb")  # of a part


@dataclass
class StepCount:
    """Of one micro-batch of one modality on one rank, a mean where several were counted.

    Attributes:
        samples: of the micro-batch. sources, subjects: of these.
        needed: FLOPs by part.
        executed: by part.
    """

    samples: int
    sources: float
    subjects: float
    needed: dict[str, float]
    executed: dict[str, Counts]

    def total(self, what: str) -> float:
        """Sum of an attribute of ``Counts`` over the parts."""
        return sum(getattr(counts, what) for counts in self.executed.values())

    @property
    def needed_gflop(self) -> float:
        """For each sample."""
        return sum(self.needed.values()) / self.samples / 1e9

    @property
    def executed_gflop(self) -> float:
        """For each sample."""
        return self.total("flops") / self.samples / 1e9

    def summary(self) -> dict[str, float | int]:
        """The five figures."""
        return {
            "needed_gflop": _digits(self.needed_gflop),
            "executed_gflop": _digits(self.executed_gflop),
            "launches": round(self.total("launches")),
            "collectives": round(self.total("collectives")),
            "received_mb": _digits(self.total("received") / 1e6),
        }


def _digits(value: float) -> float:
    """Six digits, since a toy's model has thousandths of what a full one has."""
    return float(f"{value:.6g}")


def count_step(
    model: RegionBLIP, modality: str, micro_batch: int, group: int, batches: int = 1, typical: Typical | None = None
) -> StepCount:
    """Count one micro-batch, or the mean of several, of data with the means ``typical``; none: of the paper's set."""
    found = Counter()
    wanted: dict[str, float] = {}
    sources = subjects = 0
    pool = micro_batch * dist.world_size()
    for batch in islice(typical_batches(model, modality, micro_batch, group, typical=typical), batches):
        sources += len(batch.inputs)
        subjects += len(batch) if batch.subjects is None else len(batch.subjects)
        for part, flops in needed(model, batch, pool).items():
            wanted[part] = wanted.get(part, 0.0) + flops / batches
        on_meta = batch.to(META)
        model.zero_grad(set_to_none=True)
        with as_on_a_gpu(batch.text_mask.sum(1)), by_parts(found), found:
            model(on_meta).total.backward()
    mean = {part: Counts(**{k: v / batches for k, v in asdict(c).items()}) for part, c in found.found.parts.items()}
    return StepCount(micro_batch, sources / batches, subjects / batches, wanted, mean)


@dataclass
class RunCount:
    """Of every modality that a run trains, by name.

    Attributes:
        steps: with the run's groups.
        ungrouped: the model's part without groups; empty where the run has none.
        needed_received: bytes by part (``needed_bytes.py``).
    """

    steps: dict[str, StepCount]
    ungrouped: dict[str, StepCount]
    needed_received: dict[str, dict[str, float]]

    def grouped_share(self, modality: str) -> float:
        """What is executed with groups, in parts of what is without."""
        return self.steps[modality].executed_gflop / self.ungrouped[modality].executed_gflop

    def needed_mb(self, modality: str) -> dict[str, float]:
        """What a rank must receive, by part and together."""
        parts = {part: _digits(value / 1e6) for part, value in self.needed_received[modality].items()}
        return parts | {"total": _digits(sum(self.needed_received[modality].values()) / 1e6)}

    def received_to_needed(self, modality: str) -> float:
        """Bytes that a rank receives, in parts of those that it must."""
        return self.steps[modality].total("received") / sum(self.needed_received[modality].values())


def micro_batch_of(config: RunConfig) -> int:
    """The micro-batch that is counted."""
    return AUTO_ROWS if config.train.micro_batch_size == AUTO else config.train.micro_batch_size


def count_run(config: RunConfig, batches: int = 1) -> RunCount:
    """Count a rank of ``RANKS``. Once in a process, which DeepSpeed does not leave as it was."""
    model, group = training_model_of(config), config.data.group_by_source

    def counted(size: int) -> dict[str, StepCount]:
        rows = micro_batch_of(config)
        return {m: count_step(model, m, rows, size, batches) for m in config.model.train_modalities}

    with dist.played(RANKS):
        rows, gradients = micro_batch_of(config), config.train.gradient_communication
        must = {m: needed_received(model, m, rows, RANKS, gradients) for m in config.model.train_modalities}
        found = RunCount(counted(group), counted(1) if group > 1 else {}, must)
        for modality, parts in count_engine(model, config.train, config.optim, rows).items():
            found.steps[modality].executed.update(parts)
    return found


def run(args: argparse.Namespace) -> int:
    """Count and print."""
    config = view_run(args.run_file, args.overrides)
    found = count_run(config, args.batches)
    if args.json:
        say_json(_tree(found))
        return FINISHED
    say(
        f"{config.name}: micro-batch {micro_batch_of(config)}, groups of {config.data.group_by_source}, a rank of {RANKS}; "
        "GFLOP a sample, all else a step"
    )
    for modality in found.steps:
        say("")
        for line in _lines(modality, found):
            say(line)
    return FINISHED


def _tree(found: RunCount) -> dict[str, Any]:
    steps = found.steps.items()
    tree: dict[str, Any] = {"modalities": {modality: count.summary() for modality, count in steps}}
    tree["parts"] = {
        m: {part: dict(zip(COLUMNS, row, strict=True)) for part, *row in _parts(count)} for m, count in steps
    }
    tree["batches"] = {
        m: {"samples": one.samples, "sources": one.sources, "subjects": one.subjects} for m, one in steps
    }
    tree["needed_received_mb"] = {m: found.needed_mb(m) for m in found.steps}
    tree["received_to_needed"] = {m: round(found.received_to_needed(m), 4) for m in found.steps}
    if found.ungrouped:
        tree["grouped_to_ungrouped"] = {m: round(found.grouped_share(m), 4) for m in found.steps}
    return tree


def _parts(count: StepCount) -> list[tuple[str, float, float, int, int, float]]:
    """Part and ``COLUMNS``."""
    scale = count.samples * 1e9
    rows = []
    for name in dict.fromkeys([*count.needed, *count.executed]):
        done = count.executed.get(name, Counts())
        flops = _digits(count.needed.get(name, 0.0) / scale), _digits(done.flops / scale)
        rows.append((name, *flops, round(done.launches), round(done.collectives), _digits(done.received / 1e6)))
    return rows


def _lines(modality: str, found: RunCount) -> list[str]:
    count = found.steps[modality]
    summary = count.summary()
    lines = [
        f"{modality}: needed {summary['needed_gflop']:,} of {summary['executed_gflop']:,} GFLOP executed "
        f"({count.needed_gflop / count.executed_gflop:.3f}), {summary['launches']:,} launches, {summary['collectives']} collectives, "
        f"{summary['received_mb']:,} MB received",
        f"  needed MB received: {', '.join(f'{part} {mb:,}' for part, mb in found.needed_mb(modality).items())}; "
        f"{found.received_to_needed(modality):.2f} times that received",
        f"  {count.samples} samples of {count.sources:g} sources and {count.subjects:g} subjects",
    ]
    if found.ungrouped:
        whole = found.ungrouped[modality].executed_gflop
        lines.append(f"  {found.grouped_share(modality):.3f} of the {whole:,.2f} GFLOP without groups")
    rows = [(part, *(f"{value:,}" for value in row)) for part, *row in _parts(count)]
    return lines + aligned([("part", *COLUMNS), *rows], 1, indent="  ")
