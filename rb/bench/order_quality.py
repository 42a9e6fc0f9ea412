"""``rb bench order``: `data.order: blocks` against the full order, each with and without groups: how well they shuffle, and how they read.

One epoch is walked by positions; no record is read, and no clock is needed. A made-up set stands for one that is not at hand.

    sources a batch   different records in a batch: what is decoded and encoded
    twice             share of batches in which two groups (without groups: two samples) are of one record
    distance          mean distance of neighbouring groups in the order of the shards, relative to neighbours drawn at random
    seeks             reads that do not begin where the one before ended, for a reader that takes record by record
    run               bytes that such a reader takes from one seek to the next
    pieces            seeks of a reader that takes a block of records for each one that it lacks, and has room for two windows
    read              what this reader takes, in times of the set
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rb.core import progress
from rb.core.config import ORDERS, DataConfig
from rb.core.exit_codes import FINISHED
from rb.core.modality import IMAGE
from rb.core.model_config import at_least
from rb.core.output import aligned, say, say_json
from rb.data.index import ManifestReader
from rb.data.order import Arrangement, Stream
from rb.data.pipeline import groups_of

WINDOWS_KEPT = 2  # a batch at the end of a window also has samples of the next one


@dataclass(frozen=True)
class Shards:
    """What is known of a manifest without reading it.

    Attributes:
        samples: [S] the record of each sample.
        lengths: [R] bytes of each record.
        follows: [R] whether a record begins where the one before it ends.
    """

    samples: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    follows: NDArray[np.bool_]

    @classmethod
    def of_manifest(cls, path: Path) -> tuple[str, Shards]:
        """Its modality, and itself."""
        reader = ManifestReader(path)
        groups_of(reader, len(reader), Arrangement(2))  # refuses an index whose records are not in order
        records = reader.index.records
        ends = records["offset"] + records["length"]
        follows = (records["shard"][1:] == records["shard"][:-1]) & (records["offset"][1:] == ends[:-1])
        shards = cls(reader.index.samples["record"], records["length"].astype(np.int64), np.append(False, follows))
        return reader.manifest.modality, shards

    @classmethod
    def made_up(cls, num_records: int, captions: int, record_bytes: int) -> Shards:
        """Equal records in one long shard."""
        samples = np.repeat(np.arange(num_records, dtype=np.uint32), captions)
        return cls(samples, np.full(num_records, record_bytes), np.arange(num_records) > 0)


@dataclass(frozen=True)
class Quality:
    """One row of the table; ``seeks`` and ``pieces`` are of a whole epoch."""

    order: str
    group_by_source: int
    sources_a_batch: float
    batches_with_a_source_twice: float
    relative_distance: float
    seeks: int
    run_bytes: float
    pieces: int
    times_read: float


def measure(modality: str, sets: Sequence[Shards], arrangement: Arrangement, batch_size: int, most: int) -> Quality:
    """The first epoch, or the windows within its first ``most`` samples, whose seeks are multiplied up to an epoch."""
    groups = [arrangement.groups(one.samples) if arrangement.needs_groups else None for one in sets]
    stream = Stream(modality, [len(one.samples) for one in sets], [1] * len(sets), 0, arrangement, groups)
    starts = np.cumsum([0] + [len(one.lengths) for one in sets])
    lengths, follows = (np.concatenate([getattr(one, name) for one in sets]) for name in ("lengths", "follows"))
    walked = min(max(most, batch_size), len(stream))
    if walked < len(stream):
        walked = stream.window_start(walked) or walked  # a part of a window would be read as if it were whole
    walked = walked // batch_size * batch_size
    if not walked:
        raise ValueError(f"--batch-size {batch_size}: the set has only {len(stream)} samples; give a smaller one")
    position, batches, taken = 0, [list[int]() for _ in range(walked // batch_size)], list[int]()
    with progress.bar(total=walked, desc=f"{arrangement.order}, {arrangement.group_by_source}") as bar:
        while position < walked:
            place = stream.locate(position)
            record = int(starts[place.manifest]) + int(sets[place.manifest].samples[place.sample])
            end = min(place.group_start + len(place.group), walked)
            for batch in range(position // batch_size, -(-end // batch_size)):
                batches[batch].append(record)
            taken.append(record)
            bar.update(end - position)
            position = end
    records, scale = np.array(taken), len(stream) / walked
    seeks, run = _one_by_one(records, lengths, follows)
    pieces, times = _by_pieces(records, lengths, arrangement, scale)
    return Quality(
        arrangement.order,
        arrangement.group_by_source,
        float(np.mean([len(set(batch)) for batch in batches])),
        float(np.mean([len(set(batch)) < len(batch) for batch in batches])),
        float(np.abs(np.diff(records)).mean() / _random_distance(sets, arrangement.group_by_source)),
        round(seeks * scale),
        run,
        round(pieces * scale),
        times,
    )


def _random_distance(sets: Sequence[Shards], n: int) -> float:
    """Mean distance of two groups drawn at random, in records: 2 sum_i W_i (G - W_i) / (G (G - 1)), W_i being the groups up to record i."""
    counts = np.concatenate([np.bincount(one.samples, minlength=len(one.lengths)) for one in sets])
    up_to = np.cumsum(-(-counts // n)).astype(np.float64)
    total = up_to[-1]
    return float(2 * (up_to * (total - up_to)).sum() / (total * (total - 1)))


def _one_by_one(
    records: NDArray[np.int64], lengths: NDArray[np.int64], follows: NDArray[np.bool_]
) -> tuple[int, float]:
    """Seeks, and bytes for each of them."""
    on = (np.diff(records) == 1) & follows[records[1:]]
    seeks = 1 + int((~on).sum())
    return seeks, float(lengths[records].sum() / seeks)


def _by_pieces(
    records: NDArray[np.int64], lengths: NDArray[np.int64], arrangement: Arrangement, scale: float
) -> tuple[int, float]:
    """Pieces that are taken, and their bytes in times of the set."""
    size = arrangement.block_records
    of_piece = np.add.reduceat(lengths, np.arange(0, len(lengths), size))
    kept, taken = OrderedDict[int, None](), list[int]()
    for piece in (records // size).tolist():
        if piece not in kept:
            taken.append(piece)
            if len(kept) >= WINDOWS_KEPT * arrangement.window_blocks:
                kept.popitem(last=False)
        kept[piece] = None
        kept.move_to_end(piece)
    return len(taken), float(of_piece[taken].sum() * scale / lengths.sum())


def run(args: argparse.Namespace) -> int:
    """Walk four orders of each modality and print them beside each other."""
    for name in ("batch_size", "records", "captions", "record_bytes", "samples"):
        at_least(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    sets: dict[str, list[Shards]] = {}
    for path in args.manifests:
        modality, shards = Shards.of_manifest(path)
        sets.setdefault(modality, []).append(shards)
    found = []
    for modality, listed in sets.items() or (
        (IMAGE, [Shards.made_up(args.records, args.captions, args.record_bytes)]),
    ):
        rows = [
            measure(modality, listed, _arrangement(args, n, order), args.batch_size, args.samples)
            for n in dict.fromkeys((1, args.group_by_source))
            for order in ORDERS
        ]
        found += [{"modality": modality, **asdict(row)} for row in rows]
        if not args.json:
            _print(modality, listed, rows, args)
    if args.json:
        say_json(found)
    return FINISHED


def _arrangement(args: argparse.Namespace, n: int, order: str) -> Arrangement:
    sizes = {"block_records": args.block_records, "window_blocks": args.window_blocks}
    return Arrangement.of(DataConfig(group_by_source=n, order=order, **sizes))


def _print(modality: str, sets: Sequence[Shards], rows: Sequence[Quality], args: argparse.Namespace) -> None:
    num_records = sum(len(one.lengths) for one in sets)
    num_samples, num_bytes = sum(len(one.samples) for one in sets), sum(int(one.lengths.sum()) for one in sets)
    say(
        f"{modality}: {num_samples:,} samples of {num_records:,} records, {num_bytes / 1e9:,.1f} GB; batches of {args.batch_size}; "
        f"blocks of {args.block_records} records, {args.window_blocks} in a window"
    )
    head = ("order", "group", "sources a batch", "twice", "distance", "seeks", "run, MB", "pieces", "read")
    say("\n".join(aligned([head, *map(_cells, rows)], 1)))


def _cells(row: Quality) -> tuple[str, ...]:
    return (
        row.order,
        str(row.group_by_source),
        f"{row.sources_a_batch:.1f}",
        f"{row.batches_with_a_source_twice:.1%}",
        f"{row.relative_distance:.3f}",
        f"{row.seeks:,}",
        f"{row.run_bytes / 1e6:.2f}",
        f"{row.pieces:,}",
        f"{row.times_read:.2f} x",
    )
