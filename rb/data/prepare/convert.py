"""The one loop of all converters: reads items by threads, writes shards, goes on after a kill, reports. ``rb prepare NAME`` runs it.

Knows no data set. After each closed shard the set's hidden folder holds how far the work was (`rb.data.unfinished`).
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rb
from rb.core.output import note, say, say_json
from rb.data.formats import MANIFEST_FILE, read_manifest
from rb.data.prepare.common import Conversion, Tally, attempt
from rb.data.prepare.plan import Plan, RawSet
from rb.data.unfinished import Work

if TYPE_CHECKING:
    from rb.data.shard_writer import SetWriter

ALL = "all"


@dataclass(frozen=True)
class Writing:
    """How sets are written: everything that does not change what is in them, and ``work`` as of `ShardWriter`."""

    overwrite: bool = False
    workers: int = 1
    dry_run: bool = False
    work: Work | None = None
    max_shard_bytes: int = 500_000_000


def convert(plan: Plan, out: Path, writing: Writing = Writing()) -> Tally:
    """One split to the folder ``out``; the counts.

    Raises:
        ValueError: no item could be used, ``out`` is not empty, or what the converter says of its raw files.
    """
    with _writer(plan, out, writing) as writer:
        conversion = Conversion(writer, plan.unit, plan.notes)
        items = plan.collect(conversion)
        earlier, done = writer.begin(), 0
        if earlier is not None:
            done = earlier.position
            conversion.tally.restore(earlier.counts)
        rest = itertools.islice(items, done, None)
        title = f"{plan.name} {plan.split}"
        for number, (item, content) in enumerate(
            attempt(plan.read, rest, len(items), title, writing.workers, done), done
        ):
            writer.mark(number, conversion.tally.counts())
            plan.write(conversion, item, content)
        plan.finish(conversion)
        return conversion.finish()


def _writer(plan: Plan, out: Path, writing: Writing) -> AbstractContextManager[SetWriter]:
    from rb.data.shard_writer import DryRun, ShardWriter  # loads torch, which parsers need not wait for

    if writing.dry_run:
        return DryRun(plan.modality, plan.split, plan.exif)
    return ShardWriter(
        out,
        plan.name,
        plan.modality,
        plan.split,
        max_shard_bytes=writing.max_shard_bytes,
        overwrite=writing.overwrite,
        exif=plan.exif,
        work=writing.work,
    )


def run(converter: Any, args: argparse.Namespace) -> int:
    """``rb prepare NAME``: one split to ``--out``, or with ``--split all`` each to a folder there."""
    if args.shard_mb < 1:
        raise ValueError(f"--shard-mb {args.shard_mb}: must be at least 1")
    options = {name: getattr(args, name) for name in inspect.signature(converter.open_raw).parameters}
    folder = options.get("raw")
    if folder is not None and not folder.is_dir():
        problem = "is a file; give the folder that it lies in" if folder.exists() else "no such folder"
        raise ValueError(f"--raw {folder}: {problem}. It should look like this:\n{converter.LAYOUT}")
    raw: RawSet = converter.open_raw(**options)
    if raw.title:
        note(raw.title)
    said = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in options.items()}
    asked = getattr(args, "split", ALL)  # one's own data has no such option
    splits, whole = choose_splits(raw.splits, asked), asked == ALL
    if whole and (args.out / MANIFEST_FILE).exists():
        raise ValueError(
            f"--out {args.out}: holds a set of shards; give a folder for the folders of the splits ({', '.join(splits)})"
        )
    answers = []
    for split in splits:
        out = args.out / split if whole else args.out
        about = {"converter": args.converter, "options": said, "split": split, "shard_mb": args.shard_mb}
        answers.append(_one(raw, split, out, about, args))
    if args.json:
        say_json(answers if whole else answers[0])
    return 0


def choose_splits(there: tuple[str, ...], asked: str | None) -> tuple[str, ...]:
    """The splits to convert of those that are there; ``train`` where nothing is asked for, or the only one."""
    if not there:  # the plan says what is missing
        return ("train" if asked in (None, ALL) else str(asked),)
    if asked == ALL:
        return there
    if asked is None and "train" not in there:
        if len(there) != 1:
            raise ValueError(f"--split: choose one of {', '.join((*there, ALL))}")
        return there
    return (asked or "train",)


def _one(raw: RawSet, split: str, out: Path, about: dict[str, Any], args: argparse.Namespace) -> Any:
    """One split, with its report; a set that the same command finished before stays as it is."""
    plan = raw.plan(split)
    title = f"{plan.name}, split {plan.split}"
    work = Work(about | {"rb": rb.__version__}, raw.files)
    if not args.overwrite and not args.dry_run and work.made(out):
        counts = read_manifest(out).counts
        note(f"{out}: is finished already ({counts['samples']:,} samples); --overwrite makes it again")
        return {"title": title, "manifest": str(out / MANIFEST_FILE), "finished_already": True}
    tally = convert(plan, out, Writing(args.overwrite, args.workers, args.dry_run, work, args.shard_mb * 1_000_000))
    if not args.json:
        end = (
            "nothing was written (--dry-run)" if args.dry_run else f"-> {out / MANIFEST_FILE}, rejected.jsonl beside it"
        )
        say(f"{tally.table(title)}\n  {end}")
    manifest = None if args.dry_run else str(out / MANIFEST_FILE)
    return {"title": title, "unit": tally.unit, **tally.counts(), "manifest": manifest}
