"""``rb bench all``: the benchmarks of a machine one after the other, each in a process of its own, within a given time; one JSON document.

    step      real steps, ungrouped and in groups of 4 (``step_speed.py``)
    counters  what a rank of 32 executes and receives, counted; needs --run
    generate  beam search beside plain transformers'
    data      the loader beside webdataset's reader, and beside what the fastest step of this report eats
    score     caption metrics, by metric
    fps, gpu  on a GPU alone: farthest point sampling, and steps of full-size models with random weights

Whether kernels and engines agree on a GPU is what ``launch/gpu_check.sh`` says. A part that fails, or for which no time is left, is named with the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rb.core import strict_json
from rb.core.device import usable_device
from rb.core.exit_codes import FAILED, FINISHED
from rb.core.files import write_json
from rb.core.model_config import at_least
from rb.core.output import note, say, say_json

FULL_SIZE = (("opt_6.7b", 16), ("opt_6.7b", 128), ("flant5_xxl", 16), ("flant5_xxl", 64))  # and micro-batch


@dataclass(frozen=True)
class Part:
    """A benchmark: what stands behind ``rb bench``."""

    name: str
    words: tuple[str, ...]


def parts_of(args: argparse.Namespace, on_gpu: bool) -> list[Part]:
    """What is run, in order, the quick ones first."""
    device = ("--device", args.device)
    beside = ("--baseline",) if args.baseline else ()
    run = ("--run", str(args.run_file)) if args.run_file else ("--size", args.size)
    small = ("--rounds", str(args.rounds))
    java = ("--no-java",) if args.no_java else ()
    found = [Part("score", ("score", "--captions", str(args.captions), *java))]
    if args.run_file:
        found.append(Part("counters", ("step", *run, "--counters")))
    found.append(Part("generate", ("generate", *run, *device, "--examples", str(args.examples))))
    for group in (1, 4):
        words = ("step", *run, *small, *device, *beside, "--group-by-source", str(group))
        found.append(Part(f"step, groups of {group}", words))
    found.append(Part("data", ("data", "--sources", str(args.sources), "--rounds", str(args.rounds))))
    if on_gpu:
        found.append(Part("fps", ("fps", *device)))
        for size, rows in FULL_SIZE:
            words = ("step", "--size", size, "--micro-batch", str(rows), *small, *device, *beside)
            found.append(Part(f"gpu, {size}, {rows}", words))
    return found


def run_part(part: Part, rb: Sequence[str], seconds: float) -> dict[str, Any]:
    """The part's report, or why there is none."""
    command = [*rb, "bench", *part.words, "--json"]
    said = " ".join(["rb", "bench", *part.words])
    if seconds <= 0:
        return {"command": said, "not_run": "no time was left; give more --minutes"}
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"command": said, "not_run": f"not done after {seconds:.0f} s; give more --minutes"}
    report: dict[str, Any] = {"command": said, "wall_seconds": round(time.monotonic() - began, 1)}
    start = min((place for place in map(done.stdout.find, ("{\n", "[\n")) if place >= 0), default=-1)
    if done.returncode or start < 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return report | {"not_run": lines[-1]}
    return report | {"found": strict_json.parse(done.stdout[start:], said)}


def cores_for_steps(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Cores that the loader needs for the fastest step of this report: set and group -> cores. The steps are of this device, not of a faster one."""
    steps = [one["found"] for name, one in found.items() if name.startswith(("step", "gpu")) and "found" in one]
    rates = [speed["samples_per_s"] for step in steps for speed in step["modalities"].values()]
    rows = found.get("data", {}).get("found", [])
    return {
        f"{row['set']}, groups of {row['group_by_source']}": max(rates) / row["samples_per_s"]
        for row in rows
        if rates and row["reader"] == "rb"
    }


def run(args: argparse.Namespace) -> int:
    """Run all parts and print or write the document; FAILED where a part has no figures."""
    at_least("--minutes", args.minutes, 0)
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
        say(f"{args.out} written")
    else:
        say_json(tree)
    return FAILED if any("not_run" in one for one in found.values()) else FINISHED
