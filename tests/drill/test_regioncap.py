"""RegionCap-10M's size through its converter: 10.8 million rows in random order are streamed, grouped and checked; 100,000 are written."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_data import image_bytes

ROOT = Path(__file__).resolve().parents[2]
# 5,400 rows an image, 0.5 MB of text: more than 1 MiB of one image is rejected.
IMAGES, ROWS, WRITTEN, MOST_MB = 2000, 10_800_000, 100_000, 2000
WORDS = [
    "a",
    "man",
    "in",
    "black",
    "shirt",
    "riding",
    "brown",
    "horse",
    "on",
    "the",
    "left",
    "of",
    "red",
    "car",
    "near",
    "large",
    "window",
    "with",
    "two",
    "small",
    "dogs",
]
# Runs a command and says what it took: the peak of its memory is the child's own.
RUN = """import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "out": done.stdout, "err": done.stderr[-2000:], "mb": used.ru_maxrss // 1024,
                  "cpu": used.ru_utime + used.ru_stime}))"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every 1,000th row is none; small images stand in for CC12M's."""
    folder = tmp_path_factory.mktemp("regioncap")
    (folder / "images").mkdir()
    for number in range(IMAGES):
        (folder / f"images/{number:09d}.png").write_bytes(image_bytes(number % 16))
    for name, rows in (("ten_million.json", ROWS), ("hundred_thousand.json", WRITTEN)):
        rng = random.Random(0)
        with (folder / name).open("w") as file:
            file.write("[")
            for number in range(rows):
                x, y, image = rng.uniform(0, 8), rng.uniform(0, 8), rng.randrange(IMAGES)
                caption = '""' if number % 1000 == 7 else f'"{" ".join(rng.choices(WORDS, k=9))}"'
                file.write(
                    f'{", " if number else ""}{{"image": "{image:09d}.png", "bbox": [{x:.2f}, {y:.2f}, 2.5, 3.25], "caption": {caption}}}'
                )
            file.write("]")
    return folder


def converted(raw: Path, name: str, *more: str) -> tuple[dict[str, Any], str]:
    """(what the command answers, its figures in a line)."""
    command = [
        sys.executable,
        "-m",
        "rb.cli",
        "prepare",
        "regioncap",
        "--raw",
        str(raw),
        "--annotations",
        name,
        "--json",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(raw)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command, "--out", str(raw / "out"), *more],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["code"] == 0, report["err"]
    seconds = time.monotonic() - began
    size = (raw / name).stat().st_size / 1e6
    print(
        f"{name} {' '.join(more)}: {size:,.0f} MB, {seconds:.0f} s, {report['cpu']:.0f} CPU s, peak {report['mb']:,} MB"
    )
    assert report["mb"] < MOST_MB
    return json.loads(report["out"]), report["out"]


def test_ten_million_rows_are_checked_within_2_gb(raw: Path) -> None:
    answer, _ = converted(raw, "ten_million.json", "--dry-run")
    assert (answer["read"], answer["used"]) == (ROWS, ROWS - ROWS // 1000)
    assert answer["rejected"] == {"no_caption": ROWS // 1000}
    assert answer["notes"]["images"] == IMAGES
    assert not (raw / "out").exists()


def test_a_hundred_thousand_rows_are_written(raw: Path) -> None:
    answer, _ = converted(raw, "hundred_thousand.json")
    assert (answer["read"], answer["used"]) == (WRITTEN, WRITTEN - WRITTEN // 1000)
    manifest = json.loads((raw / "out/manifest.json").read_text())
    assert manifest["counts"]["samples"] == WRITTEN - WRITTEN // 1000
    assert manifest["counts"]["records"] == IMAGES
