"""``python -m rb.toy.pretraining --out DIR``: pre-trains the toy foundation, stage by stage, and writes it in the public checkpoints' forms.

Stages: vision, language, points and T5's language (independent; two at a time, one thread each), then the bridge (Q-Former and text branch),
its settling, OPT's speech and T5, both behind the settled bridge; export and scores. A finished stage is kept in ``DIR/work``, so an interrupted run continues
where it stopped; ``--scale`` shortens all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rb.core.files import whole_file
from rb.core.strict_json import read
from rb.core.tensor_files import read_tensor_file
from rb.toy.pretraining.bridge import new_bridge, train_bridge, trained_bridge
from rb.toy.pretraining.export import write_foundation
from rb.toy.pretraining.language import train_language
from rb.toy.pretraining.points import train_points
from rb.toy.pretraining.score import score_foundation
from rb.toy.pretraining.speech import train_speech
from rb.toy.pretraining.t5 import settle_t5, train_t5_language
from rb.toy.pretraining.vision import train_vision

# Steps, and how many scenes, documents or clouds to learn from.
STAGES: dict[str, tuple[int, int]] = {
    "vision": (1400, 8000),
    "language": (800, 12000),
    "points": (800, 2500),
    "bridge": (1200, 8000),
    "settle": (250, 8000),
    "speech": (400, 8000),
    "t5_language": (800, 12000),
    "t5_settle": (1000, 8000),
}
_ALONE: dict[str, Callable[[int, int], tuple[dict[str, Tensor], dict[str, float]]]] = {
    "vision": train_vision,
    "language": train_language,
    "points": train_points,
    "t5_language": train_t5_language,
}
_AFTER = ("bridge", "settle", "speech", "t5_settle")  # each needs those before it
_LEAST = 128  # scenes or clouds: two whole batches
_LEAST_DOCUMENTS = 300  # of which 200 are held out
_TIED = "lm_head.weight"  # OPT's output matrix is its embedding, T5's is not


def _finished(work: Path, stage: str, steps: int) -> bool:
    """Whether a stage is there with this number of steps."""
    record = work / f"{stage}.json"
    if not (record.is_file() and (work / f"{stage}.safetensors").is_file()):
        return False
    return bool(read(record)["steps"] == steps)


def _keep(
    work: Path, stage: str, steps: int, weights: dict[str, Tensor], scores: dict[str, float], began: float
) -> None:
    """Weights first, then the JSON file that marks them as complete."""
    own = {k: v for k, v in weights.items() if stage.startswith("t5_") or not k.endswith(_TIED)}
    with whole_file(work / f"{stage}.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in own.items()}, temporary)
    record = {"steps": steps, "seconds": round(time.monotonic() - began), "scores": scores}
    (work / f"{stage}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _run_after(stage: str, work: Path, steps: int, amount: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One of the stages that start from files of earlier ones."""

    def kept(name: str) -> dict[str, Tensor]:
        return read_tensor_file(work / f"{name}.safetensors")

    if stage == "t5_settle":
        return settle_t5(trained_bridge(kept("settle")), kept("t5_language"), steps, amount)
    if stage == "bridge":
        bridge, scores = train_bridge(new_bridge(kept("vision"), kept("language")), steps, amount)
    elif stage == "settle":
        bridge, scores = train_bridge(trained_bridge(kept("bridge")), steps, amount, settle=True)
    else:
        bridge, scores = train_speech(trained_bridge(kept("settle")), steps, amount)
    return {name: value.detach().clone() for name, value in bridge.state_dict().items()}, scores


def run_stage(stage: str, work: Path, scale: float) -> None:
    """One stage, unless it is there already."""
    torch.set_num_threads(1)
    least = _LEAST_DOCUMENTS if stage.endswith("language") else _LEAST
    steps, amount = round(STAGES[stage][0] * scale) or 1, max(least, round(STAGES[stage][1] * scale))
    if _finished(work, stage, steps):
        return
    began = time.monotonic()
    if stage in _ALONE:
        weights, scores = _ALONE[stage](steps, amount)
    else:
        weights, scores = _run_after(stage, work, steps, amount)
    _keep(work, stage, steps, weights, scores, began)


def pretrain(out: Path, scale: float = 1.0, num_scenes: int = 400) -> dict[str, Any]:
    """All stages, export and scores; returns what ``scores.json`` holds."""
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(run_stage, stage, work, scale) for stage in _ALONE]:
            job.result()
    for stage in _AFTER:
        run_stage(stage, work, scale)
    return finish(out, work, num_scenes)


def finish(out: Path, work: Path, num_scenes: int) -> dict[str, Any]:
    """Export of the finished stages in ``work``, and scores of what was written; without T5 while its last stage is not there."""
    stages = {s: read(work / f"{s}.json") for s in STAGES if (work / f"{s}.json").is_file()}
    bridge = trained_bridge(read_tensor_file(work / "speech.safetensors"))
    t5 = read_tensor_file(work / "t5_settle.safetensors") if "t5_settle" in stages else None
    write_foundation(out, bridge.eval(), read_tensor_file(work / "points.safetensors"), t5)
    tree: dict[str, Any] = {"stages": stages}
    for llm, prefix in (("opt", ""), ("t5", "t5_")):
        if llm == "opt" or t5:
            tree[f"{prefix}scores"], tree[f"{prefix}examples"] = score_foundation(out, num_scenes, llm)
    (out / "scores.json").write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return tree


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pre-train the toy foundation.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the foundation and, under work/, its stages"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the steps and scenes, to try the chain (1.0)"
    )
    arguments = parser.parse_args()
    tree = pretrain(arguments.out, arguments.scale)
    sys.stdout.write(json.dumps(tree["scores"], indent=2) + "\n")


if __name__ == "__main__":
    main()
