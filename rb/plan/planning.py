"""The plan of a run on so many GPUs of a kind: steps from the run's own schedule, FLOPs, launches and bytes from the counters, time from factors.

A step of a modality takes, with a micro-batches accumulated and F FLOPs, L launches and B received bytes for each:

    compute   a F / (rate x utilisation)
    launches  (a L + those of the optimizer) x time of a launch
    weights   a x 2 x bytes of the frozen weights / bandwidth: read once forward, once backward
    exchange  bytes a step / rate of the network (one node: of NVLink)

Its time is the largest of the first three, plus, at the slow end, the exchange, as if nothing of it ran beside the rest. What each line
of a plan rests on is said beside it: measured, counted (exact for the batches and shapes that are counted) or predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rb.bench.engine_collectives import count_engine
from rb.bench.step_counters import StepCount, count_step
from rb.core import dist
from rb.core.config import AUTO, RunConfig
from rb.core.modality import modality_spec
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.costs.memory import Memory, MemoryModel, largest_that_fits, room_of
from rb.model.weights.build import text_processor
from rb.plan.factors import FACTORS, GPUS_OF_A_NODE, Card
from rb.plan.sets import SetFacts, facts_of
from rb.sources.table import source_of
from rb.training.dry_run import BYTES_PER_PARAMETER
from rb.training.extending import length_of
from rb.training.micro_batch import memory_model
from rb.training.schedule import Schedule

COUNTED, MEASURED, PREDICTED = "counted", "measured", "predicted"
ONE_COLLECTIVE_PART = ("engine", "loop")  # parts of a count that a step has once, not once a micro-batch


@dataclass(frozen=True)
class Machines:
    """What the run is planned for.

    Attributes:
        gpus: in all.
        gpus_of_a_node: of these.
        network: GB/s between two nodes.
    """

    kind: str
    card: Card
    gpus: int
    gpus_of_a_node: int = GPUS_OF_A_NODE
    network: float = FACTORS["network"].good

    @property
    def several_nodes(self) -> bool:
        """Whether ranks are on more than one node."""
        return self.gpus > self.gpus_of_a_node


@dataclass(frozen=True)
class Line:
    """One statement of a plan.

    Attributes:
        name: of the quantity.
        of: the modality that it describes; "" where it describes the run.
        low, high: a range; equal where it is one number.
        how: measured, counted or predicted.
        note: on what it rests.
    """

    name: str
    of: str
    low: float
    high: float
    unit: str
    how: str
    note: str = ""


@dataclass(frozen=True)
class Times:
    """Seconds of a step of a modality, good and bad end."""

    compute: tuple[float, float]
    launches: tuple[float, float]
    weights: float
    exchange: float

    @property
    def whole(self) -> tuple[float, float]:
        """Of the step."""
        good, bad = (max(c, n, self.weights) for c, n in zip(self.compute, self.launches, strict=True))
        return good, bad + self.exchange


@dataclass(frozen=True)
class Plan:
    """All that is known of a run before it starts.

    Attributes:
        layout: of a step. largest: the one with the largest micro-batch that fits; none where not even one sample does.
        steps: of each modality, in all.
    """

    machines: Machines
    layout: StepLayout
    largest: StepLayout | None
    steps: dict[str, int]
    counts: dict[str, StepCount]
    times: dict[str, Times]
    memory: dict[str, Memory]
    lines: list[Line]

    def tree(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "machines": asdict(self.machines),
            "batch": asdict(self.layout) | {"grad_accum_steps": self.layout.grad_accum_steps},
            "largest_micro_batch": self.largest.micro_batch_size if self.largest else None,
            "lines": [asdict(line) for line in self.lines],
            "factors": {name: asdict(factor) for name, factor in FACTORS.items()},
        }


def tokenizers_of(config: RunConfig) -> TextProcessor | None:
    """The foundation's tokenizers; none where its folders are not here."""
    here = (Path(config.model.foundation.blip2) / "config.json").is_file()
    return text_processor(config.model) if here else None


def plan_of(config: RunConfig, machines: Machines) -> Plan:
    """Plan a run. Once in a process, as DeepSpeed's counts leave it.

    Raises:
        ValueError: the sizes do not divide over the GPUs; a foundation that is neither here nor known; data that training would refuse.
    """
    facts = facts_of(config, tokenizers_of(config))
    schedule = Schedule(
        config.train.schedule, {m: f.samples for m, f in facts.items()}, config.train.global_batch_size, config.seed
    )
    total = length_of(config.train, config.optim, schedule)
    steps = steps_of(schedule, total)
    room, memory = room_of(int(machines.card.gigabytes * 1e9)), memory_model(config, machines.gpus)
    possible = replace(config.train, micro_batch_size=AUTO).layouts(machines.gpus)
    largest = largest_that_fits(possible, memory.peak, room)
    layouts = config.train.layouts(machines.gpus)
    layout = layouts[0] if len(layouts) == 1 else largest or possible[-1]
    counts = _counts(config, facts, layout, memory.model)
    taken = {modality: memory.of(modality, layout) for modality in facts}
    times = {modality: _times(counts[modality], layout, taken[modality], machines) for modality in facts}
    plan = Plan(machines, layout, largest, steps, counts, times, taken, [])
    plan.lines.extend(_lines(config, plan, facts, schedule, memory, room))
    return plan


def steps_of(schedule: Schedule, total: int) -> dict[str, int]:
    """Steps of each modality among the first ``total``."""
    epoch = schedule.epoch_of(total - 1)
    begun = Counter(schedule.at(step).modality for step in range(schedule.total_steps(epoch), total))
    return {modality: steps + begun[modality] for modality, steps in schedule.modality_steps(epoch).items()}


def _counts(config: RunConfig, facts: Mapping[str, SetFacts], layout: StepLayout, model: Any) -> dict[str, StepCount]:
    group, rows = config.data.group_by_source, layout.micro_batch_size
    with dist.played(layout.world_size):
        counts = {m: count_step(model, m, rows, group, typical=fact.typical) for m, fact in facts.items()}
        for modality, parts in count_engine(model, config.train, config.optim, rows).items():
            if modality in counts:
                counts[modality].executed.update(parts)
    return counts


def _of_micro_batch(count: StepCount, layout: StepLayout, what: str) -> float:
    """Its ``flops`` or ``launches``; a pool that is read twice adds the Q-Former's forward pass, a third of its part."""
    again = getattr(count.executed["qformer"], what) / 3 if layout.pool_passes > 1 else 0.0
    return count.total(what) + again


def _received(count: StepCount, layout: StepLayout) -> float:
    """Bytes that a rank receives in a step: the engine's once, the losses' with every micro-batch."""
    once = sum(count.executed[part].received for part in ONE_COLLECTIVE_PART)
    return once + (count.total("received") - once) * layout.grad_accum_steps


def _times(count: StepCount, layout: StepLayout, memory: Memory, machines: Machines) -> Times:
    accumulated, card = layout.grad_accum_steps, machines.card
    share, launch, engine = FACTORS["utilisation"], FACTORS["launch"], FACTORS["engine_launches"].good
    flops = accumulated * _of_micro_batch(count, layout, "flops") / (card.teraflops * 1e12)
    launches = (accumulated * _of_micro_batch(count, layout, "launches") + engine) * 1e-6
    rate = machines.network if machines.several_nodes else FACTORS["nvlink"].good
    return Times(
        (flops / share.good, flops / share.bad),
        (launches * launch.good, launches * launch.bad),
        accumulated * 2 * memory.weights / (card.bandwidth * 1e9),
        _received(count, layout) / (rate * 1e9) if machines.gpus > 1 else 0.0,
    )


def _lines(
    config: RunConfig, plan: Plan, facts: Mapping[str, SetFacts], schedule: Schedule, memory: MemoryModel, room: int
) -> list[Line]:
    lines, layout, machines = [], plan.layout, plan.machines

    def say(name: str, of: str, unit: str, how: str, low: float, high: float | None = None, note: str = "") -> None:
        lines.append(Line(name, of, low, low if high is None else high, unit, how, note))

    first = schedule.epoch_steps(0)
    for modality, fact in facts.items():
        how = PREDICTED if fact.stand_in else COUNTED
        stands = "the paper's set stands in for a manifest that is not here" if fact.stand_in else "manifests"
        say("samples of an epoch", modality, "samples", how, fact.samples, note=stands)
        say("steps of the first epoch", modality, "steps", how, first[modality], note=stands)
        say("steps", modality, "steps", how, plan.steps[modality], note=stands)
        say(
            "tokens of a caption in the LLM",
            modality,
            "tokens",
            COUNTED if fact.lengths else PREDICTED,
            fact.typical.llm_tokens,
            note="captions of the manifests" if fact.lengths else "mean of the paper's set",
        )
        say(
            "an epoch encodes a source",
            modality,
            "times",
            how,
            fact.repeated,
            note=f"data.group_by_source={config.data.group_by_source}; {stands}",
        )
    for modality, count in plan.counts.items():
        say(
            "executed",
            modality,
            "GFLOP/sample",
            COUNTED,
            _of_micro_batch(count, layout, "flops") / layout.micro_batch_size / 1e9,
        )
        say(
            "of that padded or repeated",
            modality,
            "share",
            COUNTED,
            1 - sum(count.needed.values()) / _of_micro_batch(count, layout, "flops"),
        )
        say("launches of a micro-batch", modality, "launches", COUNTED, _of_micro_batch(count, layout, "launches"))
        say(
            "received by a rank in a step",
            modality,
            "MB",
            COUNTED,
            _received(count, layout) / 1e6,
            note="between nodes" if machines.several_nodes else "inside the node",
        )
    _time_lines(plan, facts, say)
    for modality, taken in plan.memory.items():
        say(
            "peak memory",
            modality,
            "GB",
            PREDICTED,
            taken.total / 1e9,
            note=f"longest captions: weights {taken.weights / 1e9:.1f}, engine {taken.engine / 1e9:.1f}, step {taken.step / 1e9:.1f} "
            f"(saved {taken.saved / 1e9:.1f}), pool {taken.pool / 1e9:.1f}",
        )
    say("room for it", "", "GB", PREDICTED, room / 1e9, note=f"of {machines.card.gigabytes} GB, {machines.card.source}")
    if plan.largest:
        peak = max(memory.of(modality, plan.largest).total for modality in facts)
        share = layout.global_batch_size // machines.gpus
        say(
            "largest micro-batch that fits",
            "",
            "samples",
            PREDICTED,
            plan.largest.micro_batch_size,
            note=f"of a rank's share of {share}",
        )
        say("peak memory with it", "", "GB", PREDICTED, peak / 1e9)
    else:
        say("largest micro-batch that fits", "", "samples", PREDICTED, 0, note="not even one sample fits")
    capacity = memory.capacity(room, machines.gpus)
    say("samples of a pass that the memory holds", "", "samples", PREDICTED, capacity, note="whatever divides")
    trained = sum(parameter.numel() for parameter in memory.model.trainable_parameters().values())
    size = trained * BYTES_PER_PARAMETER / 1e9
    say("a checkpoint", "", "MB", COUNTED, size * 1e3)
    say(
        "a step waits for a checkpoint at most",
        "",
        "s",
        PREDICTED,
        size / FACTORS["copy"].good,
        note=f"every {config.train.checkpoint_every:,} steps",
    )
    return lines


def _time_lines(plan: Plan, facts: Mapping[str, SetFacts], say: Any) -> None:
    layout, machines = plan.layout, plan.machines
    hours = [0.0, 0.0]
    for modality, times in plan.times.items():
        good, bad = times.whole
        say("a step takes", modality, "ms", PREDICTED, 1e3 * good, 1e3 * bad)
        hours = [hours[0] + plan.steps[modality] * good / 3600, hours[1] + plan.steps[modality] * bad / 3600]
        say("exchange, exposed at most", modality, "share", PREDICTED, 0.0, times.exchange / bad)
        a_sample = [seconds / layout.grad_accum_steps / layout.micro_batch_size for seconds in times.compute]
        launches = [seconds / layout.grad_accum_steps for seconds in times.launches]
        say(
            "launches set the pace below a micro-batch of",
            modality,
            "samples",
            PREDICTED,
            launches[0] / a_sample[1],
            launches[1] / a_sample[0],
            note=f"here {layout.micro_batch_size}",
        )
        rate = layout.global_batch_size / machines.gpus * facts[modality].encoded / facts[modality].samples
        core = FACTORS[_kind(modality)]
        slow, fast = sorted((core.good, core.bad))
        say(
            "cores that read, for each GPU",
            modality,
            "cores",
            PREDICTED,
            rate / bad / fast,
            rate / good / slow,
            note=core.source,
        )
    say("time", "", "hours", PREDICTED, *hours)
    say("time of all GPUs", "", "GPU-hours", PREDICTED, *(hour * machines.gpus for hour in hours))


def _kind(modality: str) -> str:
    """Row of ``FACTORS`` for reading its sources."""
    if not source_of(modality).point_encoder:
        return "image"
    return "scene" if modality_spec(modality).regional else "object"
