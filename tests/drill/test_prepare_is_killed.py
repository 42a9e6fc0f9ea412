"""`rb prepare` killed at random moments, again and again, until it ends: the set has the same bytes as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.raw_data import noise_jpeg

ROOT = Path(__file__).resolve().parents[2]
IMAGES, MOST_RUNS = 12_000, 200


def wait_for_shards(process: subprocess.Popen[str], state: Path, number: int) -> bool:
    """Until so many more shards are finished: true; false if the process ends before."""
    seen = written(state)
    while number and process.poll() is None:
        time.sleep(0.01)
        now = written(state)
        number -= now != seen
        seen = now
    return not number


def written(state: Path) -> int:
    return state.stat().st_mtime_ns if state.exists() else 0


def test_kills_at_random_moments(tmp_path: Path) -> None:
    raw, rng = tmp_path / "raw", random.Random(0)
    (raw / "val2014").mkdir(parents=True)
    entries = []
    for i in range(IMAGES):
        name = f"COCO_val2014_{i:012d}.jpg"
        if i % 50:  # the others are missing, so that there are rejected rows in every shard
            (raw / "val2014" / name).write_bytes(noise_jpeg(i))
        entries.append(
            {
                "filepath": "val2014",
                "filename": name,
                "cocoid": i,
                "split": "train",
                "sentences": [{"raw": f"cube {i}"}],
            }
        )
    (raw / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    command = [
        sys.executable,
        "-m",
        "rb.cli",
        "prepare",
        "coco",
        "--raw",
        str(raw),
        "--shard-mb",
        "1",
        "--workers",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    shards = len(list((tmp_path / "whole").glob("*.tar")))
    killed = went_on = 0
    out, state = tmp_path / "set", tmp_path / ".set.unfinished/state.json"
    for _ in range(MOST_RUNS):
        process = subprocess.Popen([*command, "--out", str(out)], env=environment, stderr=subprocess.PIPE, text=True)
        if wait_for_shards(process, state, rng.randint(1, 8)):
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        said = process.communicate()[1]
        went_on += "finished shards are kept and verified" in said
        if process.returncode == 0:
            break
        killed += 1
        if out.exists():  # killed on the way out
            break
    assert out.exists(), said
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert went_on >= killed - 1 > 4
    print(f"{IMAGES:,} images, {shards} shards; killed {killed} times, gone on {went_on} times, bytes equal")
