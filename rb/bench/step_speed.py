"""``rb bench step``: real training steps with random inputs, by part, and beside the step of LAVIS (``lavis_step.py``) in the same process.

A step is a forward and backward pass and the optimizer's (torch's AdamW at learning rate 0: the same work, and the weights stay). Steps take
turns, so other work on the machine meets all alike. What counts is processor time on a CPU, never the clock, and the time of the kernels on
a GPU. MFU is the rate of the *needed* FLOPs (``rb/costs/needed.py``) over the rate of a product of square matrices that takes its turn between the
steps: work that nobody needs does not raise it.

Launches are those of this device: on a CPU farthest point sampling is a loop there, where a GPU has one kernel. One process; what ranks tell each other
is counted by ``--counters``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rb.bench.lavis_step import LavisStep
from rb.bench.ways import BASELINE, OURS, Clock, Way, ways_of
from rb.core.batch import Batch
from rb.core.config import AUTO, RunConfig, TrainConfig
from rb.core.device import usable_device
from rb.core.exit_codes import FINISHED
from rb.core.model_config import at_least
from rb.core.output import aligned, figure, say, say_json
from rb.core.run_paths import open_foundation
from rb.costs.executed import Counts
from rb.costs.random_models import SIZES, build_random
from rb.costs.real_step import give_memory_back, with_numbers
from rb.costs.typical_batch import typical_batches
from rb.model.compiling import check_can_compile
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model

ROWS = 8  # samples of a micro-batch where nothing says another number
SQUARE = {"cpu": 1024, "cuda": 8192}  # rows of the matrices whose product is the machine's rate


@dataclass
class Measured:
    """Of one way to make a step of one modality. FLOPs and saved bytes are of a sample, all else of a step.

    Attributes:
        needed_gflop: of the baseline's step as many as of ours, however much it executes.
        mfu: rate of the needed FLOPs over that of the machine's product, both in the same rounds.
        launches: none of a compiled step, whose kernels cannot be seen.
    """

    needed_gflop: float
    mfu: float
    executed_gflop: float
    launches: int | None
    host_waits: int
    saved_mb: float
    peak_mb: float
    ms: float
    ms_low: float
    ms_high: float
    samples_per_s: float


@dataclass
class StepSpeed:
    """Of one modality.

    Attributes:
        samples, sources: of the micro-batch.
        matmul_gflops: rate of a product of matrices on this machine.
        parts: needed and executed GFLOP of a sample, launches, collectives, MB received, ms of the forward pass.
        ratios: of the baseline to ours; ``executed_to_needed`` is the baseline's executed over our needed FLOPs.
    """

    samples: int
    sources: int
    matmul_gflops: float
    ways: dict[str, Measured]
    parts: dict[str, dict[str, float]]
    ratios: dict[str, float] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        own = {name: value for name, value in vars(self).items() if name not in ("ways", "ratios")}
        found = own | vars(self.ways[OURS])
        found |= {name: vars(way) for name, way in self.ways.items() if name != OURS}
        return found | ({"ratios": self.ratios} if self.ratios else {})


def measure(ways: dict[str, Way], modality: str, rows: int, group: int, rounds: int) -> StepSpeed:
    """All ways on one micro-batch, in turns, after one step of each that is not counted."""
    ours = ways[OURS]
    batch = with_numbers(next(typical_batches(ours.model, modality, rows, group)), ours.model).to(ours.model.device)
    batches = {name: way.batch_of(batch) for name, way in ways.items()}
    needs = {name: way.needed(batches[name]) for name, way in ways.items()}
    rates = []
    for way in ways.values():
        way.rounds.clear()
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            ways[name].take_turn(batches[name])
        rates.append(matmul_rate(ours.model.device))
    for way in ways.values():
        way.rounds.pop(0)
    del rates[0]
    counts = {name: way.count(batches[name]) for name, way in ways.items()}
    result = {
        name: _measured(way, batches[name], counts[name], sum(needs[name].values()), rates)
        for name, way in ways.items()
    }
    speed = StepSpeed(
        rows,
        len(batch.inputs),
        statistics.median(rates) / 1e9,
        result,
        _parts(needs[OURS], counts[OURS], ours, rows),
    )
    if BASELINE in ways:
        one, other = result[BASELINE], result[OURS]
        quotients = [a / b for a, b in zip(ways[BASELINE].seconds, ours.seconds, strict=True)]
        speed.ratios = {
            "executed_to_needed": one.executed_gflop / other.needed_gflop,
            "executed": one.executed_gflop / other.executed_gflop,
            "time": statistics.median(quotients),
            "time_low": min(quotients),
            "time_high": max(quotients),
            "saved": one.saved_mb / other.saved_mb,
            "peak": one.peak_mb / other.peak_mb,
        }
        if one.launches is not None and other.launches is not None:
            speed.ratios["launches"] = one.launches / other.launches
    return speed


def _measured(way: Way, batch: Batch, counts: dict[str, Counts], need: float, rates: Sequence[float]) -> Measured:
    rows, seconds = len(batch), statistics.median(way.seconds)
    return Measured(
        needed_gflop=need / rows / 1e9,
        mfu=statistics.median(need / one / rate for one, rate in zip(way.seconds, rates, strict=True)),
        executed_gflop=sum(one.flops for one in counts.values()) / rows / 1e9,
        launches=None if way.graphs else sum(one.launches for one in counts.values()),
        host_waits=sum(one.waits for one in counts.values()),
        saved_mb=way.saved(batch) / rows / 1e6,
        peak_mb=way.peak(batch) / 1e6,
        ms=1e3 * seconds,
        ms_low=1e3 * min(way.seconds),
        ms_high=1e3 * max(way.seconds),
        samples_per_s=rows / seconds,
    )


def _parts(need: dict[str, float], counts: dict[str, Counts], way: Way, rows: int) -> dict[str, dict[str, float]]:
    """Of ours, in the order of the step; the backward pass counts for its part in all but the time."""
    parts = {}
    for name in dict.fromkeys([*need, *counts, *(part for one in way.rounds for part in one)]):
        done = counts.get(name, Counts())
        parts[name] = {
            "needed_gflop": need.get(name, 0.0) / rows / 1e9,
            "executed_gflop": done.flops / rows / 1e9,
            "launches": done.launches,
            "collectives": done.collectives,
            "received_mb": done.received / 1e6,
            "ms": 1e3 * statistics.median(one.get(name, 0.0) for one in way.rounds),
        }
    return parts


def matmul_rate(device: torch.device) -> float:
    """FLOPs a second of one product of square matrices, in the type of a training there; numbers are random, since zeros run faster."""
    size = SQUARE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one = torch.randn(size, size, device=device, dtype=dtype)
    clock = Clock(device)
    with clock.part("product"):
        torch.mm(one, one)
    return 2.0 * size**3 / clock.seconds()["product"]


def build(
    args: argparse.Namespace, device: torch.device
) -> tuple[str, Callable[[], RegionBLIP], TrainConfig, int, int]:
    """Name of what is measured, how its model is built, how it is trained, samples of a micro-batch and size of groups."""
    if not args.run_file:
        if args.size not in SIZES:
            raise ValueError(f"--size {args.size}: must be one of {', '.join(SIZES)}")
        size, dtype = SIZES[args.size], torch.bfloat16 if device.type == "cuda" else torch.float32
        train = TrainConfig()
        return (
            args.size,
            lambda: build_random(size, device, dtype),
            train,
            args.micro_batch or ROWS,
            args.group_by_source or 1,
        )
    config: RunConfig = open_foundation(args.run_file, args.overrides)
    if device.type == "cpu":  # no processor here multiplies bfloat16 fast
        config = replace(config, model=replace(config.model, frozen_dtype="float32"))
    given = config.train.micro_batch_size
    rows = args.micro_batch or (ROWS if given == AUTO else given)
    group = args.group_by_source or config.data.group_by_source
    return config.name, lambda: build_model(config.model, config.seed, device).model, config.train, rows, group


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    found = measure_all(args)
    if args.json:
        say_json(found["json"])
        return FINISHED
    for line in found["lines"]:
        say(line)
    return FINISHED


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """The report of every modality, as JSON and as lines."""
    at_least("--rounds", args.rounds, 1)
    device = usable_device(args.device)
    if device.type == "cpu":
        give_memory_back()
    torch.manual_seed(0)
    name, make, train, rows, group = build(args, device)
    at_least("--micro-batch", rows, 1)
    at_least("--group-by-source", group, 1)
    model = make()
    ways = ways_of(model, args.also, train.compile)
    if args.baseline:
        plain = LavisStep(make(), model)
        ways[BASELINE] = Way(plain.model, plain)
    if train.activation_checkpointing:  # ours alone: the baseline keeps what LAVIS keeps
        model.recompute_activations()
    if ways[OURS].graphs is not None:
        check_can_compile(device)
        model.compile_parts(encoders_alone=train.activation_checkpointing)
    modalities = args.modality or list(model.parts)
    for modality in modalities:
        if modality not in model.parts:
            raise ValueError(f"--modality {modality}: the model trains {', '.join(model.parts)}; name one of these")
    speeds = {modality: measure(ways, modality, rows, group, args.rounds) for modality in modalities}
    head = {
        "name": name,
        "micro_batch": rows,
        "group_by_source": group,
        "rounds": args.rounds,
        "machine": f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}",
        "weights": str(model.blip2.language_model.dtype).removeprefix("torch."),
    }
    lines = [f"{name}, micro-batch {rows}, groups of {group}, {head['weights']}; {head['machine']}"]
    for modality, speed in speeds.items():
        lines += ["", *_lines(modality, speed, device)]
    return {"json": head | {"modalities": {m: speed.tree() for m, speed in speeds.items()}}, "lines": lines}


def _lines(modality: str, speed: StepSpeed, device: torch.device) -> list[str]:
    clock = "ms of the GPU" if device.type == "cuda" else "ms of processor time"
    lines = [
        f"{modality}: {speed.samples} samples of {speed.sources} sources; MFU is of a product's {figure(speed.matmul_gflops)} GFLOP/s"
    ]
    head = (
        "",
        "GFLOP a sample",
        "needed",
        "MFU",
        "launches",
        "host waits",
        "saved MB a sample",
        "peak MB",
        clock,
        "from",
        "to",
        "samples/s",
    )
    rows = [
        (
            name,
            figure(one.executed_gflop),
            figure(one.needed_gflop),
            f"{one.mfu:.3f}",
            "-" if one.launches is None else f"{one.launches:,}",
            f"{one.host_waits}",
            figure(one.saved_mb),
            figure(one.peak_mb),
            figure(one.ms),
            figure(one.ms_low),
            figure(one.ms_high),
            figure(one.samples_per_s),
        )
        for name, one in speed.ways.items()
    ]
    lines += aligned([head, *rows], 1, indent="  ")
    if speed.ratios:
        r = speed.ratios
        launches = f"launches {r['launches']:.2f}; " if "launches" in r else ""
        lines.append(
            f"  baseline to ours: FLOPs {r['executed']:.3f} ({r['executed_to_needed']:.3f} of what is needed), "
            f"time {r['time']:.3f} ({r['time_low']:.3f} to {r['time_high']:.3f}), {launches}"
            f"ours to baseline: saved {1 / r['saved']:.3f}, peak {1 / r['peak']:.3f}"
        )
    names = ("needed_gflop", "executed_gflop", "launches", "collectives", "received_mb", "ms")
    table = [
        (part, *(f"{row[name]:,}" if isinstance(row[name], int) else figure(row[name]) for name in names))
        for part, row in speed.parts.items()
    ]
    return lines + aligned([("part", *names[:-1], clock), *table], 1, indent="  ")
