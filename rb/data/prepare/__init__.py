"""Converters from public data sets as they are shipped to shards: one file per data set, one row in ``DATASETS``.

``rb prepare NAME --raw DIR --out DIR`` makes one manifest of one split. Nothing is silently lost: what cannot be used is listed with its
reason in ``rejected.jsonl``, and counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rb.data.prepare import coco, objaverse, refcoco, scanrefer
from rb.data.prepare.common import default_workers


@dataclass(frozen=True)
class Dataset:
    """One row: its line of help, the raw layout, its options, its command (returns the exit code)."""

    help: str
    layout: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


DATASETS: dict[str, Dataset] = {
    "coco": Dataset("COCO captions, Karpathy's split: whole images", coco.LAYOUT, coco.add_arguments, coco.run),
    "refcoco": Dataset(
        "RefCOCO, RefCOCO+, RefCOCOg: regions of images", refcoco.LAYOUT, refcoco.add_arguments, refcoco.run
    ),
    "objaverse": Dataset(
        "Objaverse clouds (ULIP, PointLLM) with Cap3D captions: whole objects",
        objaverse.LAYOUT,
        objaverse.add_arguments,
        objaverse.run,
    ),
    "scanrefer": Dataset(
        "ScanRefer on ScanNet: regions of scenes, with 3D boxes",
        scanrefer.LAYOUT,
        scanrefer.add_arguments,
        scanrefer.run,
    ),
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``rb prepare NAME``."""
    prepare = commands.add_parser("prepare", help="raw data sets to shards")
    names = prepare.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, dataset in DATASETS.items():
        parser = names.add_parser(
            name,
            help=dataset.help,
            description=f"{dataset.help}.\n\n{dataset.layout}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--raw", type=Path, required=True, help="the folder of the raw files")
        parser.add_argument("--out", type=Path, required=True, help="a new folder for shards, index and manifest")
        parser.add_argument("--overwrite", action="store_true", help="replace shards that are in --out already")
        parser.add_argument("--workers", type=int, default=default_workers(), help="threads that read and decode")
        dataset.add_arguments(parser)
        parser.set_defaults(run=dataset.run)
