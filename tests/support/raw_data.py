"""Helpers of the converters' tests: what a set of shards holds, what was rejected, small image files, the command line."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rb.cli import main as rb
from rb.data.formats import Rejected, read_rejected
from rb.data.prepare.common import Tally
from rb.data.prepare.convert import Writing
from rb.data.prepare.convert import convert as convert_plan
from rb.data.tars import scan_shard


def found(out: Path):
    """Everything in a set of shards, by source id."""
    return {item.record.source_id: item for path in sorted(out.glob("*.tar")) for item in scan_shard(path)}


def reasons(out: Path) -> Counter:
    return Counter(row.reason for row in read_rejected(out / "rejected.jsonl"))


def rejected_rows(out: Path) -> list[Rejected]:
    return read_rejected(out / "rejected.jsonl")


def jpeg(width=32, height=24, kind="JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(stream, kind)
    return stream.getvalue()


def noise_jpeg(seed: int, width: int = 64, height: int = 64) -> bytes:
    """A picture that does not compress, about 4 kB for the default size; another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def convert(
    module: Any, raw: Path, out: Path, split: str, workers: int = 1, overwrite: bool = False, **options: Any
) -> Tally:
    """One split of the raw folder of the converter ``module``; ``options`` of its ``open_raw``."""
    return convert_plan(module.open_raw(raw, **options).plan(split), out, Writing(overwrite, workers))


def cli_run(*argv: str) -> int:
    """The command line of a converter or, as "toy-raw", of the toy world."""
    return rb(["toy", "raw", *argv[1:]] if argv[0] == "toy-raw" else list(argv))
