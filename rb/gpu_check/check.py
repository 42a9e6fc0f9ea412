"""The paper's models in full size with random weights on one GPU; prints as it goes, writes one JSON file. Started by ``python -m rb.gpu_check``.

For each LLM: kernels used by attention, other implementations against SDPA, ZeRO-2 against plain torch, time and memory. Needs no
checkpoint, no data and no network. Without the packages of ZeRO-2 (``rb/gpu_check/needs.py``) that half is left out, which is said first. A part that
fails is left out and reported, and the others are kept. Exit code 1: something did not agree, or failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from rb.core import dist
from rb.core.batch import Batch
from rb.core.exit_codes import FAILED, FINISHED, WRONG_REQUEST, wrong_request
from rb.core.files import write_whole
from rb.costs.memory import MemoryModel
from rb.costs.random_models import SIZES, Size, build_random, random_batch
from rb.gpu_check import attention, steps
from rb.gpu_check.needs import ZERO2, missing
from rb.gpu_check.sampling import check_sampling
from rb.model.region_blip import RegionBLIP

FULL, SMALL = ("opt_6.7b", "flant5_xxl"), ("small_opt", "small_t5")
COMPARED_ROWS, COMPARED_ROUNDS = 4, 2  # micro-batch and rounds over the modalities of the comparison
BEGUN = time.perf_counter()
ATTENTION, ENGINE = "attention", steps.ENGINE  # parts that may be left out

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """All checks. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rb.gpu_check", description="Full-size models on one GPU.")
    parser.add_argument("--llm", nargs="+", choices=list(SIZES), help=f"models to build; default {' '.join(FULL)}")
    parser.add_argument("--micro-batch", nargs="+", type=int, help="sizes to time; default 16 128")
    parser.add_argument(
        "--small", action="store_true", help="tiny models and batches, also on a CPU: a test of the check"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON file of all that is printed")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.small:
        say("gpu_check: error: no CUDA device; --small runs on a CPU", sys.stderr)
        return WRONG_REQUEST
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft uses its old names
    try:
        join_alone()
    except ValueError as error:
        return wrong_request("gpu_check", error)
    lacking = missing(ZERO2)
    if lacking:
        say(
            f"ZeRO-2 will be left out: not installed: {', '.join(lacking)}; give launch/gpu_check.sh --wheels DIR, its first lines say how"
        )
    device = dist.device()
    report: dict[str, Any] = {"machine": machine(device), "models": {}}
    say(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    sizes = sorted(args.micro_batch or ((2, 4) if args.small else (16, 128)))
    failed = not sampling_agrees(device, report)
    for name in args.llm or (SMALL if args.small else FULL):
        failures: dict[str, str] = {}
        found = attempt(name, failures, partial(check_model, name, SIZES[name], device, sizes, lacking))
        part, good = found if found is not None else ({"not_run": failures}, False)
        failed |= not good
        report["models"][name] = part
        write(args.out, report)  # after each model, so that a crash of the next loses nothing
    say(f"{args.out} written; {'SOMETHING DID NOT AGREE OR FAILED' if failed else 'all agree'}")
    dist.shutdown()
    return FAILED if failed else FINISHED


def sampling_agrees(device: torch.device, report: dict[str, Any]) -> bool:
    """Whether the kernel for farthest point sampling picks torch's points, or there is none; prints, and writes into ``report``."""
    failures: dict[str, str] = {}
    found = attempt("farthest point sampling", failures, partial(check_sampling, device)) or []
    report["sampling"] = [asdict(one) for one in found] or {"not_run": failures or f"no kernel on {device.type}"}
    for one in found:
        say(
            f"farthest point sampling of {one.clouds} x {one.points}, {one.picks} picks: kernel {one.kernel_ms:.2f} ms, "
            f"torch {one.torch_ms:.2f} ms, equal picks {_verdict(one.equal)}"
        )
    if not found:
        say(f"farthest point sampling: by torch, no kernel on {device.type}")
    return not failures and all(one.equal for one in found)


def check_model(
    name: str, size: Size, device: torch.device, micro_batches: Sequence[int], lacking: Sequence[str] = ()
) -> tuple[dict[str, Any], bool]:
    """Everything about one model; prints, and returns what was found and whether all agreed.

    Args:
        lacking: packages that ZeRO-2 needs and that are not installed.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = build_random(size, device, dtype)
    modalities = tuple(model.parts)
    held = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    trained = {
        m: sum(p.numel() for n, p in model.trainable_parameters().items() if m in model.parameter_modalities()[n])
        for m in modalities
    }
    say(f"\n{name}: {held:.2f} GB of weights, {dtype}; trainable, shared ones with each: {trained}")

    batches = [
        random_batch(size, m, COMPARED_ROWS, device, seed) for seed in range(COMPARED_ROUNDS) for m in modalities
    ]
    failures: dict[str, str] = {}
    used, equal = attempt(ATTENTION, failures, partial(check_attention, model, batches[: len(modalities)])) or ([], [])
    start = steps.snapshot(model)
    expected = steps.trace(model, steps.plain_torch(model), batches)
    steps.restore(model, start)
    step = steps.plain_torch(model)
    control = steps.trace(model, step, batches)
    compared = [steps.compare("torch against itself", control, expected, dtype)]
    memory = steps.memory_model(size, dtype, max(micro_batches))
    timings = time_all(model, steps.TORCH, step, size, micro_batches, memory)
    not_run = {}
    if lacking:
        not_run[ENGINE] = f"not installed: {', '.join(lacking)}"
        say(f"  ZeRO-2: not run: {not_run[ENGINE]}")
    else:
        steps.restore(model, start)
        engine = partial(check_engine, model, batches, expected, dtype, size, micro_batches, memory)
        both, measured = attempt(ENGINE, failures, engine) or ([], [])
        compared, timings = [*compared, *both], [*timings, *measured]
    for one in compared:
        say(
            f"  {one.name}, {len(batches)} steps: losses {one.loss_difference:.1e} (at most {one.loss_tolerance:.0e}), "
            f"updated parameters {one.update_difference:.1e} (at most {one.update_tolerance:.0e}) {_verdict(one.ok)}"
        )
    found = {
        "weights_gb": held,
        "trainable": trained,
        "attention": [asdict(one) for one in used],
        "equal_to_sdpa": [asdict(one) | {"ok": one.ok} for one in equal],
        "compared": [asdict(one) | {"ok": one.ok} for one in compared],
        "timings": [asdict(one) | {"samples_per_s": one.samples_per_s} for one in timings],
        "not_run": not_run | failures,
    }
    good = all(one.ok for one in equal) and all(one.ok for one in compared) and not failures
    release(model)
    return found, good


def attempt(part: str, failures: dict[str, str], work: Callable[[], T]) -> T | None:
    """``work()``; where it fails, its traceback is printed, ``failures`` holds why, and the result is none: the other parts go on."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 (whatever a library of another version raises: it is reported)
        failures[part] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        say(f"  {part}: not run: it failed with {failures[part]}")
        return None


def check_attention(
    model: RegionBLIP, batches: list[Batch]
) -> tuple[list[attention.PartReport], list[attention.Equality]]:
    """The kernels that attention uses, and other implementations against SDPA."""
    used = attention.kernels_used(model, batches)
    for one in used:
        say(
            f"  attention of {one.part}: {_counts(one.kinds) or 'none seen'}"
            + (f" [{_counts(one.kernels)}]" if one.kernels else "")
        )
    equal = attention.equal_to_sdpa(model, batches)
    for same in equal:
        say(
            f"  {same.part}, {same.implementation} against sdpa: {same.difference:.1e} (at most {same.tolerance:.0e}) {_verdict(same.ok)}"
        )
    if not any(same.implementation == "flash_attention_2" for same in equal):
        say("  flash-attn: not tried (not installed, or no GPU)")
    return used, equal


def check_engine(
    model: RegionBLIP,
    batches: Sequence[Batch],
    expected: steps.Trace,
    dtype: torch.dtype,
    size: Size,
    micro_batches: Sequence[int],
    memory: MemoryModel,
) -> tuple[list[steps.Comparison], list[steps.Timing]]:
    """ZeRO-2 against plain torch, and its time and memory."""
    on_gpu = model.device.type == "cuda"
    zero, engine = steps.zero2(model, "ds_configs/zero2.json" if on_gpu else "ds_configs/zero2_cpu.json")
    try:
        compared = steps.compare(f"{ENGINE} against torch", steps.trace(model, zero, list(batches)), expected, dtype)
        return [compared], time_all(model, ENGINE, zero, size, micro_batches, memory)
    finally:
        engine.close()


def time_all(
    model: RegionBLIP, engine: str, step: steps.Step, size: Size, micro_batches: Sequence[int], memory: MemoryModel
) -> list[steps.Timing]:
    """A row for each micro-batch and modality, printed as it is measured."""
    rows = []
    for micro_batch in micro_batches:
        for modality in model.parts:
            predicted = steps.predicted_gb(memory, engine, modality, micro_batch)
            row = steps.time_steps(model, engine, step, size, modality, micro_batch, predicted)
            rows.append(row)
            speed = (
                "does not fit"
                if row.ms_per_step is None
                else f"{row.ms_per_step:.1f} ms/step, {row.samples_per_s:.1f} samples/s"
            )
            peak = "not measured" if row.peak_gb is None else f"{row.peak_gb:.1f} GB"
            say(
                f"  {engine}, {modality}, micro-batch {micro_batch}: {speed}, peak {peak} (predicted at most {row.predicted_gb:.1f})"
            )
            model.zero_grad(set_to_none=True)
            if row.ms_per_step is None and engine != steps.TORCH:
                say(
                    f"  {engine}: the rest is left out, DeepSpeed cannot continue after a step that did not fit in memory"
                )
                return rows
    return rows


def machine(device: torch.device) -> dict[str, Any]:
    """Device and versions."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": gpu.name if gpu else "CPU",
        "memory_gb": round(gpu.total_memory / 1e9, 1) if gpu else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def join_alone() -> None:
    """A process group of one, which DeepSpeed wants."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
    dist.init()


def release(model: RegionBLIP) -> None:
    """Give the device's memory back before the next model: the weights themselves, whoever still holds the modules."""
    for parameter in model.parameters():
        parameter.grad = None
        parameter.data = torch.empty(0)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def write(path: Path, report: dict[str, Any]) -> None:
    """The report so far, whole or not at all."""
    write_whole(path, json.dumps(report, indent=1) + "\n")  # may hold NaN: then that is the finding


def say(line: str, stream: Any = None) -> None:
    """One line, at once, with the seconds since the start."""
    head, text = ("\n", line[1:]) if line.startswith("\n") else ("", line)
    print(f"{head}[{time.perf_counter() - BEGUN:5.0f} s] {text}", file=stream or sys.stdout, flush=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _verdict(ok: bool) -> str:
    return "ok" if ok else "DIFFERENT"
