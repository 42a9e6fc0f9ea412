"""``rb data index DIR``: adopt WebDataset tars that others made. ``rb data verify MANIFEST``: compare a set with its digests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rb.core.modality import MODALITIES
from rb.data.formats import MANIFEST_FILE, Manifest, find_manifest


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """``rb data index`` and ``rb data verify``; returns where rooms above add theirs (``rb data show``)."""
    data = commands.add_parser("data", help="shards: adopt, verify, look at").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    index = data.add_parser(
        "index", help="write index and manifest for WebDataset tars (docs/formats.md says what must be in them)"
    )
    index.add_argument("folder", type=Path, help="the folder of the .tar files")
    index.add_argument("--modality", required=True, choices=tuple(MODALITIES), help="what the set is for")
    index.add_argument("--name", help="of the set; the folder's name where not given")
    index.add_argument("--overwrite", action="store_true", help="replace an index and a manifest that are there")
    index.set_defaults(run=_index)
    verify = data.add_parser("verify", help="compare every file of a set with its sha256")
    verify.add_argument("manifest", type=Path, help="a manifest.json, or its folder")
    verify.set_defaults(run=_verify)
    return data


def _index(args: argparse.Namespace) -> int:
    from rb.data.shards import adopt

    _say(adopt(args.folder, args.modality, args.name, args.overwrite), args.folder / MANIFEST_FILE)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from rb.data.shards import verify_shards

    _say(verify_shards(args.manifest), find_manifest(args.manifest), "; every byte is as written")
    return 0


def _say(manifest: Manifest, path: Path, more: str = "") -> None:
    counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items())
    sys.stdout.write(
        f"{path}: {manifest.name}, {manifest.modality}, {manifest.split}: {counts} in {len(manifest.shards)} shards{more}\n"
    )
