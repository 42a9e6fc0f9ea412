"""A plan of evaluations on the tiny model: two checkpoints, of which one may be damaged, the foundation alone, regions and clouds."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from rb.cli import main
from rb.core.config import FoundationConfig
from rb.inference import predicting
from tests.support import exported
from tests.support.processes import finish, start_function
from tests.support.small_data import write_set

TABLES = ("table.txt", "table.json", "table.html")
STEP = f"checkpoints/step_{exported.STEP:07d}"


def write_world(folder: Path, foundation: FoundationConfig) -> Path:
    """Two run folders, sets of regions and clouds, and ``plan.yaml``, whose path it is."""
    exported.make_run(folder, foundation)
    shutil.copytree(folder / "tiny", folder / "other")
    write_set(folder / "regions", "image_region", 12)
    write_set(folder / "clouds", "point_cloud", 6)
    return write_plan(folder, folder / "plan.yaml")


def write_plan(folder: Path, path: Path, **changes: Any) -> Path:
    """The plan with other fields."""
    decode = {"num_beams": 1, "max_new_tokens": 4}
    tree = {
        "models": {
            "tiny": {"checkpoint": f"{folder}/tiny", "paper": "OPT-2.7B"},
            "other run": {"checkpoint": f"{folder}/other/{STEP}"},
            "foundation": {"base": f"{folder}/tiny", "paper": "OPT-2.7B"},
        },
        "tasks": {
            "refcoco": {
                "data": f"{folder}/regions",
                "modality": "image_region",
                "variants": ["ours", "base", "crops", "shuffled"],
                "paper": "RefCOCO",
                "decode": decode,
            },
            "clouds": {"data": f"{folder}/clouds", "modality": "point_cloud", "limit": 4, "decode": decode},
        },
        "metrics": ["CIDEr", "BLEU-4"],
        "batch_size": 4,
    }
    path.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return path


def damage(run_dir: Path) -> None:
    """One byte of its checkpoint's tensors is another."""
    (file,) = (run_dir / STEP).glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def evaluate(plan: Path, out: Path) -> None:
    """``rb evaluate`` as a process of its own; a chunk of predictions is one batch."""
    predicting.CHUNK_BATCHES = 1
    sys.exit(main(["evaluate", "--plan", str(plan), "--out", str(out), "--no-mlflow"]))


def tables(out: Path) -> dict[str, bytes]:
    """The bytes of the three tables."""
    return {name: (out / name).read_bytes() for name in TABLES}


def kill_and_go_on(plan: Path, out: Path, moments: int, seed: int) -> None:
    """Kill the job ``moments`` times, each time shortly after it wrote a file more; then let it finish."""
    draw = random.Random(seed)
    for _ in range(moments):
        before, job = files(out), start_function(evaluate, plan, out)
        while not files(out) - before:
            assert job.poll() is None, job.output()
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.2))
        assert job.poll() is None, "it ended before it was killed"
        job.send(signal.SIGKILL)
        job.wait()
    finish(start_function(evaluate, plan, out))


def files(folder: Path) -> set[Path]:
    """All that lie in it now, with what is being written."""
    return {path for path in folder.rglob("*") if path.is_file()}
