"""Converters from public data sets as they are shipped to shards: one file per data set, one row in ``DATASETS``.

``rb prepare NAME --raw DIR --out DIR`` makes one manifest of one split, or of each with ``--split all``. Nothing is silently lost: what
cannot be used is listed with its reason in ``rejected.jsonl``, and counted.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.output import add_json
from rb.core.threads import default_workers

SHARD_MB = 500


@dataclass(frozen=True)
class Dataset:
    """One row.

    Attributes:
        help: its line of help.
        module: the converter's file, imported when it is asked for. It has ``LAYOUT`` (the raw folder), ``add_arguments`` (its options) and
            ``open_raw``, whose parameters are named like the options and which returns a `plan.RawSet`.
        raw: whether it reads one folder of raw files, ``--raw``, and knows splits, ``--split``; else every split that it finds is made.
    """

    help: str
    module: str
    raw: bool = True

    def converter(self) -> Any:
        """The converter's module."""
        return importlib.import_module(self.module)


DATASETS: dict[str, Dataset] = {
    "coco": Dataset("COCO captions (Karpathy's split, COCO's own, Flickr30k): whole images", "rb.data.prepare.coco"),
    "nocaps": Dataset("nocaps captions with domains: whole images", "rb.data.prepare.nocaps"),
    "refcoco": Dataset("RefCOCO, RefCOCO+, RefCOCOg: regions of images", "rb.data.prepare.refcoco"),
    "regioncap": Dataset("RegionCap-10M, and every list of regions in RegionBLIP's form", "rb.data.prepare.regioncap"),
    "visual_genome": Dataset(
        "Visual Genome's regions: DenseCap's splits, GRiT's files, GLaMM's test set", "rb.data.prepare.visual_genome"
    ),
    "flickr_entities": Dataset(
        "Flickr30k Entities: the phrases of sentences with their boxes", "rb.data.prepare.flickr_entities"
    ),
    "objaverse": Dataset(
        "Objaverse clouds with captions of Cap3D or PointLLM: whole objects", "rb.data.prepare.objaverse"
    ),
    "scanrefer": Dataset("ScanRefer on ScanNet: regions of scenes, with 3D boxes", "rb.data.prepare.scanrefer"),
    "scan2cap": Dataset(
        "ScanRefer's descriptions on boxes that a detector proposes, for prediction", "rb.data.prepare.scan2cap"
    ),
    "vqav2": Dataset("VQAv2: questions about images, with their answers", "rb.data.prepare.vqav2"),
    "modelnet40": Dataset("ModelNet40: whole objects, the class as the caption", "rb.data.prepare.modelnet40"),
    "custom": Dataset("your own images or clouds, with captions in a table", "rb.data.prepare.custom", raw=False),
}


def add_prepare(name: str, parser: argparse.ArgumentParser) -> None:
    """``rb prepare NAME``."""
    dataset = DATASETS[name]
    converter = dataset.converter()
    parser.description = f"{dataset.help}.\n\n{converter.LAYOUT}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if dataset.raw:
        parser.add_argument("--raw", type=Path, required=True, help="the folder of the raw files")
        parser.add_argument("--split", help="a split, or all: each to its folder in --out (default: train)")
    converter.add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for shards, index and manifest")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are in --out already")
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, count it, write nothing")
    parser.add_argument("--workers", type=int, default=default_workers(), help="threads that read and decode")
    size = f"of a shard, in megabytes; a killed conversion goes on at the last full one (default: {SHARD_MB})"
    parser.add_argument("--shard-mb", type=int, default=SHARD_MB, metavar="MB", help=size)
    add_json(parser)
    parser.set_defaults(run=_run, converter=name)


def _run(args: argparse.Namespace) -> int:
    from rb.data.prepare.convert import run

    return run(DATASETS[args.converter].converter(), args)
