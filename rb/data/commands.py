"""``rb data index DIR``: adopt WebDataset tars that others made. ``rb data verify MANIFEST``: compare a set with its digests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.exit_codes import FINISHED
from rb.core.modality import MODALITIES
from rb.core.output import add_json, say, say_json

if TYPE_CHECKING:
    from rb.data.formats import Manifest


def add_index(parser: argparse.ArgumentParser) -> None:
    """``rb data index``."""
    parser.description = "Write index and manifest for WebDataset tars (docs/formats.md says what must be in them)."
    parser.add_argument("folder", type=Path, help="the folder of the .tar files")
    parser.add_argument("--modality", required=True, choices=tuple(MODALITIES), help="what the set is for")
    parser.add_argument("--name", help="name of the set (default: the folder's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing index and manifest")
    add_json(parser)
    parser.set_defaults(run=run_index)


def run_index(args: argparse.Namespace) -> int:
    """Adopt the tars of a folder."""
    from rb.data.formats import MANIFEST_FILE
    from rb.data.shards import adopt

    _say(adopt(args.folder, args.modality, args.name, args.overwrite), args.folder / MANIFEST_FILE, args.json)
    return FINISHED


def add_verify(parser: argparse.ArgumentParser) -> None:
    """``rb data verify``."""
    parser.add_argument("manifest", type=Path, help="a manifest.json, or its folder")
    add_json(parser)
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    """Compare every byte of a set with its digests."""
    from rb.data.formats import find_manifest
    from rb.data.shards import verify_shards

    _say(verify_shards(args.manifest), find_manifest(args.manifest), args.json, "; every byte is as written")
    return FINISHED


def _say(manifest: Manifest, path: Path, as_json: bool, more: str = "") -> None:
    if as_json:
        about = {"manifest": str(path), "name": manifest.name, "modality": manifest.modality, "split": manifest.split}
        say_json(about | {"counts": manifest.counts, "shards": len(manifest.shards)})
        return
    counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items())
    say(
        f"{path}: {manifest.name}, {manifest.modality}, {manifest.split}: {counts} in {len(manifest.shards)} shards{more}"
    )
