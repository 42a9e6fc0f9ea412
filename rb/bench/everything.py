"""``rb bench all``: the benchmarks of a machine one after the other, each in a process of its own, within a given time; one JSON document and a table of steps.

    check     whether kernels, attention and engines agree on this device, and ZeRO-2's time and memory (``launch/gpu_check.sh``): on a GPU, or with --small
    full size on a GPU alone: steps of the paper's largest models with random weights, their beam search, farthest point sampling
    score     caption metrics, by metric
    counters  what a rank of 32 executes and receives, counted; needs --run
    generate  beam search beside plain transformers'
    step      real steps, ungrouped and in groups of 4 (``step_speed.py``)
    data      the loader beside webdataset's reader, and beside what the fastest step of this report eats
    compiled  on a GPU alone: a step of OPT-6.7B with train.compile beside one without

A part that fails, or for which no time is left, is named with the reason, and the others go on. With --small everything is tiny: a test of the command.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.bench.ways import BASELINE, COMPILED, FEATURES, NO_ITM, OURS
from rb.core import strict_json
from rb.core.device import usable_device
from rb.core.exit_codes import FAILED, FINISHED
from rb.core.files import write_json
from rb.core.model_config import at_least
from rb.core.output import aligned, figure, note, say, say_json

WAYS = {
    OURS: "ours",
    FEATURES: "from stored features",
    NO_ITM: "without ITM",
    COMPILED: "compiled",
    BASELINE: "LAVIS's",
}
FULL_STEPS = (("opt_6.7b", 16), ("opt_6.7b", 128), ("flant5_xxl", 16), ("flant5_xxl", 64))  # and micro-batch
FULL_CAPTIONS = ((16, 10), (64, 10), (64, 18))  # of OPT-6.7B: images at once, tokens of each caption
SMALL = {"size": "small_opt", "captions": 3, "examples": 4, "sources": 4, "rounds": 1, "no_java": True}


@dataclass(frozen=True)
class Part:
    """A benchmark: the words behind ``rb bench``, or those of a module that writes its report into ``--out FILE``."""

    name: str
    words: tuple[str, ...]
    module: str = ""


def parts_of(args: argparse.Namespace, on_gpu: bool) -> list[Part]:
    """What is run, in order: on a GPU what only a GPU can say comes first."""
    device = ("--device", args.device)
    beside = ("--baseline",) if args.baseline else ()
    run = ("--run", str(args.run_file)) if args.run_file else ("--size", args.size)
    small = ("--rounds", str(args.rounds))
    found = []
    if args.small or on_gpu:
        words = ("--small", "--llm", "small_t5", "--micro-batch", "1") if args.small else ("--micro-batch", "16")
        found.append(Part("check", words, args.check_module))
    if on_gpu and not args.small:
        for size, rows in FULL_STEPS:
            model = ("--size", size, "--micro-batch", str(rows))
            found.append(
                Part(f"gpu, {size}, {rows}", ("step", *model, *small, *device, *beside, "--also", FEATURES, NO_ITM))
            )
        for rows, tokens in FULL_CAPTIONS:
            sizes = ("--examples", str(3 * rows), "--batch-size", str(rows), "--new-tokens", str(tokens))
            found.append(Part(f"gpu, captions, {rows}, {tokens}", ("generate", "--size", "opt_6.7b", *sizes, *device)))
        found.append(Part("fps", ("fps", *device)))
    java = ("--no-java",) if args.no_java else ()
    found.append(Part("score", ("score", "--captions", str(args.captions), *java)))
    if args.run_file:
        found.append(Part("counters", ("step", *run, "--counters")))
    found.append(Part("generate", ("generate", *run, *device, "--examples", str(args.examples))))
    for group in (1, 4):
        words = ("step", *run, *small, *device, *beside, "--group-by-source", str(group))
        found.append(Part(f"step, groups of {group}", words))
    found.append(Part("data", ("data", "--sources", str(args.sources), "--rounds", str(args.rounds))))
    if on_gpu and not args.small:
        # Where launches, not arithmetic, are the limit. Last: a minute or more of it is the compiler's.
        largest = ("--size", "opt_6.7b", "--micro-batch", "16", "--modality", "image_region")
        found.append(Part("gpu, compiled", ("step", *largest, *small, *device, "--also", COMPILED)))
    return found


def run_part(part: Part, rb: Sequence[str], seconds: float) -> dict[str, Any]:
    """The part's report, or why there is none; a check that found a difference has both."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command, said = [*rb, "bench", *part.words, "--json"], " ".join(["rb", "bench", *part.words])
        if part.module:
            command = [sys.executable, "-m", part.module, *part.words, "--out", str(out)]
            said = " ".join(["python", "-m", part.module, *part.words])
        if seconds <= 0:
            return {"command": said, "not_run": "no time was left; give more --minutes"}
        began = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return {"command": said, "not_run": f"not done after {seconds:.0f} s; give more --minutes"}
        report: dict[str, Any] = {"command": said, "wall_seconds": round(time.monotonic() - began, 1)}
        start = min((place for place in map(done.stdout.find, ("{\n", "[\n")) if place >= 0), default=-1)
        text = (out.read_text() if out.exists() else "") if part.module else done.stdout[start:] if start >= 0 else ""
    if text and (part.module or not done.returncode):
        report["found"] = strict_json.parse(text, said)
    if done.returncode or not text:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        report["not_run"] = lines[-1]
    return report


def table_of(found: dict[str, dict[str, Any]]) -> list[str]:
    """All steps of the report, a line for each way to make one."""
    head = ("model", "modality", "micro-batch", "groups", "way", "ms", "samples/s", "GFLOP needed", "MFU", "peak GB")
    rows: list[tuple[str, ...]] = []
    for one in found.values():
        step = one.get("found", {})
        for modality, ours in step.get("modalities", {}).items() if "micro_batch" in step else ():
            for way, title in WAYS.items():
                speed = ours if way == OURS else ours.get(way)
                if speed is None:
                    continue
                sizes = (step["name"], modality, str(step["micro_batch"]), str(step["group_by_source"]), title)
                measured = (figure(speed["ms"]), figure(speed["samples_per_s"]), figure(speed["needed_gflop"]))
                launches = "-" if speed["launches"] is None else f"{speed['launches']:,}"
                counts = (launches, str(speed["host_waits"]))
                rows.append((*sizes, *measured, f"{speed['mfu']:.3f}", f"{speed['peak_mb'] / 1e3:,.3g}", *counts))
    return aligned([(*head, "launches", "waits"), *rows], 5) if rows else []


def cores_for_steps(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Cores that the loader needs for the fastest step of this report: set and group -> cores. The steps are of this device, not of a faster one."""
    steps = [one["found"] for name, one in found.items() if name.startswith(("step", "gpu")) and "found" in one]
    rates = [speed["samples_per_s"] for step in steps for speed in step.get("modalities", {}).values()]
    rows = found.get("data", {}).get("found", [])
    return {
        f"{row['set']}, groups of {row['group_by_source']}": max(rates) / row["samples_per_s"]
        for row in rows
        if rates and row["reader"] == "rb"
    }


def run(args: argparse.Namespace) -> int:
    """Run all parts and print or write the document; FAILED where a part has no figures."""
    at_least("--minutes", args.minutes, 0)
    if args.small:
        vars(args).update(SMALL)
    end = time.monotonic() + 60 * args.minutes
    device = usable_device(args.device)
    found: dict[str, dict[str, Any]] = {}
    for part in parts_of(args, device.type == "cuda"):
        found[part.name] = run_part(part, args.rb, end - time.monotonic())
        one = found[part.name]
        note(f"{part.name}: {one['not_run'] if 'not_run' in one else str(one['wall_seconds']) + ' s'}")
    tree = {"machine": f"{device}, {platform.platform()}", "minutes": args.minutes, "parts": found}
    tree["loader_cores_for_the_fastest_step"] = cores_for_steps(found)
    if args.out:
        write_json(args.out, tree)
        for line in (*table_of(found), f"{args.out} written"):
            say(line)
    else:
        say_json(tree)
    return FAILED if any("not_run" in one for one in found.values()) else FINISHED
