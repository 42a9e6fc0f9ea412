"""``rb data index|verify|exclude|stats|diff``: adopt others' tars, check a set, leave out what other sets hold, count what is in it, compare two."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rb.core.exit_codes import FAILED, FINISHED
from rb.core.modality import MODALITIES
from rb.core.output import add_json, say, say_json
from rb.core.threads import default_workers
from rb.core.urls import Location, location_argument

if TYPE_CHECKING:
    from rb.data.formats import Manifest


def add_index(parser: argparse.ArgumentParser) -> None:
    """``rb data index``."""
    from rb.data.prepare.common import add_exif  # loads Pillow

    parser.description = "Write index and manifest for WebDataset tars (docs/formats.md says what must be in them)."
    parser.add_argument("folder", type=Path, help="the folder of the .tar files")
    parser.add_argument("--modality", required=True, choices=tuple(MODALITIES), help="what the set is for")
    parser.add_argument("--name", help="name of the set (default: the folder's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing index and manifest")
    add_exif(parser)
    parser.add_argument("--workers", type=int, default=default_workers(), help="threads that decode")
    add_json(parser)
    parser.set_defaults(run=run_index)


def run_index(args: argparse.Namespace) -> int:
    """Adopt the tars of a folder."""
    from rb.data.formats import MANIFEST_FILE
    from rb.data.shards import adopt

    _say(
        adopt(args.folder, args.modality, args.name, args.overwrite, args.exif, args.workers),
        args.folder / MANIFEST_FILE,
        args.json,
    )
    return FINISHED


def add_verify(parser: argparse.ArgumentParser) -> None:
    """``rb data verify``."""
    parser.add_argument("manifest", type=location_argument, help="a manifest.json, or its folder; a path or a URL")
    parser.add_argument("--decode", action="store_true", help="decode every picture and cloud to its end, too")
    against = "another split: no source, and no picture that looks the same, may be in both; may be given again"
    parser.add_argument(
        "--against", type=location_argument, action="append", default=[], metavar="MANIFEST", help=against
    )
    parser.add_argument("--workers", type=int, default=default_workers(), help="threads that decode")
    add_json(parser)
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    """Compare every byte of a set with its digests; with the options, its media and other splits too. FAILED if anything is found."""
    from rb.data.compare_sets import check_whole, first_few, shared
    from rb.data.formats import find_manifest
    from rb.data.shards import verify_shards

    manifest = verify_shards(args.manifest)
    faults = check_whole(args.manifest, args.workers) if args.decode else []
    found = [shared(other, args.manifest, args.workers) for other in args.against]
    if args.json:
        more: dict[str, Any] = {"not decoded": faults} if args.decode else {}
        if args.against:
            more["shared"] = [{"with": str(one.first), "ids": one.ids, "media": one.media} for one in found]
        _say(manifest, find_manifest(args.manifest), True, more=more)
    else:
        _say(manifest, find_manifest(args.manifest), False, "; every byte is as written")
        for fault in faults:
            say(fault)
        for one in found:
            pairs = [f"{mine} as {theirs}" for theirs, mine in one.media]
            say(f"shared with {one.first}: {len(one.ids):,} sources, {len(pairs):,} more that look the same")
            for what, names in (("in both", one.ids), ("looks the same", pairs)):
                if names:
                    say(f"  {what}: {first_few(names)}")
        if not all(one.empty for one in found):
            others = " --against ".join(quote(str(one.first.parent)) for one in found if not one.empty)
            say(f"without them: `rb data exclude {quote(str(args.manifest))} --against {others} --out NEW`")
    return FAILED if faults or not all(one.empty for one in found) else FINISHED


def add_exclude(parser: argparse.ArgumentParser) -> None:
    """``rb data exclude``."""
    parser.description = (
        "Write a set again without the sources that other sets hold, as `rb data verify --against` finds them."
    )
    parser.add_argument("manifest", type=location_argument, help="a manifest.json, or its folder; a path or a URL")
    against = "a set of which nothing may be left, such as a test set; may be given again"
    parser.add_argument(
        "--against", type=location_argument, action="append", required=True, metavar="MANIFEST", help=against
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder for shards, index and manifest")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are in --out already")
    parser.add_argument("--workers", type=int, default=default_workers(), help="threads that decode")
    add_json(parser)
    parser.set_defaults(run=run_exclude)


def run_exclude(args: argparse.Namespace) -> int:
    """Leave out of a set what others hold."""
    from rb.data.exclude import exclude
    from rb.data.formats import MANIFEST_FILE

    manifest, count = exclude(args.manifest, args.against, args.out, args.overwrite, args.workers)
    _say(manifest, args.out / MANIFEST_FILE, args.json, f"; {count:,} sources left out", {"left_out": count})
    return FINISHED


def add_stats(parser: argparse.ArgumentParser) -> None:
    """``rb data stats``."""
    parser.description = (
        "Images or clouds, objects, texts, words, regions and their sizes, of each set and of all together."
    )
    parser.add_argument(
        "manifests",
        nargs="+",
        type=location_argument,
        metavar="MANIFEST",
        help="a manifest.json, or its folder; a path or a URL",
    )
    add_json(parser)
    parser.set_defaults(run=run_stats)


def run_stats(args: argparse.Namespace) -> int:
    """Count what is in sets."""
    from rb.data.stats import as_text, collect

    found = collect(args.manifests)
    if args.json:
        say_json(found)
    else:
        say(as_text(found))
    return FINISHED


def add_diff(parser: argparse.ArgumentParser) -> None:
    """``rb data diff``."""
    parser.description = "Which sources differ between two sets: missing, other media, other boxes or captions."
    parser.add_argument("first", type=location_argument, help="a manifest.json, or its folder; a path or a URL")
    parser.add_argument("second", type=location_argument, help="another")
    add_json(parser)
    parser.set_defaults(run=run_diff)


def run_diff(args: argparse.Namespace) -> int:
    """Compare two sets. FAILED if they differ, as ``diff`` does."""
    from rb.data.compare_sets import difference, first_few

    found = difference(args.first, args.second)
    lists = {
        f"only in {args.first}": found.only_first,
        f"only in {args.second}": found.only_second,
        "other media": found.media,
        "other objects, boxes or captions": found.annotations,
    }
    if args.json:
        say_json(lists | {"changes": dict(found.changes), "equal": found.equal})
    else:
        say(f"{found.equal:,} sources are equal")
        for what, names in lists.items():
            if names:
                say(f"{what}: {len(names):,} sources: {first_few(names)}")
        if found.changes:
            say(f"  in {args.second}: {', '.join(f'{what} {count:,}' for what, count in found.changes.items())}")
    return FINISHED if found.empty else FAILED


def _say(
    manifest: Manifest, path: Location, as_json: bool, end: str = "", more: Mapping[str, Any] | None = None
) -> None:
    if as_json:
        about = {"manifest": str(path), "name": manifest.name, "modality": manifest.modality, "split": manifest.split}
        say_json(about | {"counts": manifest.counts, "shards": len(manifest.shards)} | dict(more or {}))
        return
    counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items())
    say(
        f"{path}: {manifest.name}, {manifest.modality}, {manifest.split}: {counts} in {len(manifest.shards)} shards{end}"
    )
