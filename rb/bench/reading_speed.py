"""``rb bench data``: how fast sources are read, checked, decoded and made a model's inputs, beside webdataset's own reader on the same tars.

Readers take turns in one process of one thread, so that other work on the machine meets all of them alike; what counts is processor time.

    webdataset           reads shards from start to end, decodes each source once for all its captions, and checks nothing; images are resized by the
                         model's own transform, clouds stay as they are stored
    webdataset, framed   the same, and clouds are put into the cloud's frame by the model's own transform: then its inputs are ours
    rb                   reads what a training with `data.group_by_source` reads: by the index, in shuffled order, every record compared with its
                         digest and every file decoded strictly; a source is decoded once for each group of its captions

Nothing is augmented unless asked for, and no text becomes tokens.

Without manifests, sets of four kinds are made. Of a set at a URL the first round finds an empty cache of shards, the other rounds what it left
there; webdataset does not take part.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from webdataset import WebDataset

from rb.bench import reading_sets
from rb.core import progress
from rb.core.config import DataConfig, DataSource
from rb.core.environment import variables
from rb.core.exit_codes import FINISHED
from rb.core.modality import modality_spec
from rb.core.model_config import at_least
from rb.core.output import aligned, say, say_json
from rb.core.urls import Location, Url
from rb.data.byte_cache import FOLDER
from rb.data.formats import RECORD_EXTENSION, Manifest, find_manifest, read_manifest, require_captions, require_media
from rb.data.order import Arrangement
from rb.data.pipeline import TrainingData, open_training_data
from rb.data.samples import SampleTransform
from rb.sources.images import EXTENSIONS as IMAGE_EXTENSIONS
from rb.sources.images import ImageTransform
from rb.sources.points import EXTENSION as POINTS_EXTENSION
from rb.sources.points import PointTransform, decode_points

IMAGE_SIDE = 224  # of the model's input
WEBDATASET, FRAMED, OURS = "webdataset", "webdataset, framed", "rb"


@dataclass(frozen=True)
class Speed:
    """One row of the table.

    Attributes:
        set: its kind, or its manifest.
        captions: samples of a source.
        reader: ``webdataset``, ``webdataset, framed`` or ``rb``.
        group_by_source: of ours; none for webdataset, which takes all of a source.
        samples_per_s, sources_per_s: for each second of processor time, medians over rounds.
        ratio: samples/s over webdataset's of the same round, the median; none without webdataset.
        source_ratio: the same of sources/s.
        reading: share of the time that reading and checking take, without decoding.
        cores: of ours, that give ``--needs`` samples/s; none where nothing is said.
        first_wall, wall: samples for each second of the clock: in the first round, and the median of the others.
    """

    set: str
    captions: float
    reader: str
    group_by_source: int | None
    samples_per_s: float
    sources_per_s: float
    ratio: float | None
    source_ratio: float | None
    reading: float
    cores: float | None
    first_wall: float
    wall: float


@dataclass(frozen=True)
class Turn:
    """What one walk of a reader took."""

    samples: int
    sources: int
    cpu_s: float
    wall_s: float


class Reader:
    """A way to read a set, and its turns so far: up to the model's inputs, and without decoding.

    Args:
        walk: reads some sources, decoded or not; the samples that they make, and how often a source was read.
    """

    def __init__(self, name: str, group_by_source: int | None, walk: Callable[[bool], tuple[int, int]]) -> None:
        self.name, self.group_by_source, self._walk = name, group_by_source, walk
        self.turns: list[Turn] = []
        self.undecoded: list[Turn] = []

    def take_turn(self) -> None:
        """Both ways once."""
        for decode, turns in ((True, self.turns), (False, self.undecoded)):
            wall, cpu = time.perf_counter(), time.process_time()
            samples, sources = self._walk(decode)
            turns.append(Turn(samples, sources, time.process_time() - cpu, time.perf_counter() - wall))


def webdataset_readers(folder: Path, manifest: Manifest, transform: SampleTransform, num_sources: int) -> list[Reader]:
    """Webdataset on the shards of a folder: its tar reader, its decoders of pictures, npy and JSON."""
    urls = [str(folder / entry.file) for entry in manifest.shards]
    own = transform.of_source[modality_spec(manifest.modality).source]
    images = isinstance(own, ImageTransform)
    media = (*IMAGE_EXTENSIONS, POINTS_EXTENSION)

    def walk(decode: bool, framed: bool) -> tuple[int, int]:
        samples = sources = 0
        found: Any = WebDataset(urls, shardshuffle=False)
        if decode:  # members of these kinds only: its decoder would also unpickle
            found = found.decode("pilrgb", only=[*media, RECORD_EXTENSION])
        for sample in islice(found, num_sources):
            sources += 1
            if not decode:
                continue
            decoded = next(sample[name] for name in media if name in sample)
            record = sample[RECORD_EXTENSION]
            if framed:
                boxes = [item["box"] for item in record["objects"]]
                inputs, _ = own(decoded, boxes, sample["__key__"], (sample["__key__"],))
            else:
                inputs = own(decoded) if images else torch.from_numpy(decoded)
            captions = [text for item in record["objects"] for text in item["captions"]] or record["captions"]
            samples += len([(inputs, caption) for caption in captions])
        return samples, sources

    plain = Reader(WEBDATASET, None, lambda decode: walk(decode, framed=False))
    return [plain] if images else [plain, Reader(FRAMED, None, lambda decode: walk(decode, framed=True))]


def our_reader(data: TrainingData, transform: SampleTransform, n: int, batch_size: int, num_sources: int) -> Reader:
    """A training's own way through the first positions of its stream, micro-batch by micro-batch."""
    stream = data.stream
    batches = max(1, round(len(stream) / stream.num_groups * num_sources / batch_size))

    def walk(decode: bool) -> tuple[int, int]:
        samples = sources = 0
        for start in range(0, batches * batch_size, batch_size):
            for group, group_start, shown in data.groups(range(start, start + batch_size)):
                if decode:
                    transform.training_samples(group, stream.modality, group_start, shown)
                samples += len(group[shown])
                sources += 1
        return samples, sources

    return Reader(OURS, n, walk)


def measure(place: Location, name: str, args: argparse.Namespace) -> list[Speed]:
    """All readers of one set, in turns."""
    manifest = read_manifest(place)
    require_media(manifest, place)
    require_captions(manifest, place)
    readers: list[Reader] = []
    with tempfile.TemporaryDirectory() as caches:
        for n in dict.fromkeys((1, *args.group_by_source)):
            arrangement = Arrangement.of(DataConfig(group_by_source=n, order=args.order))
            with variables({FOLDER: f"{caches}/{n}"}):  # for what stores fetch
                data = open_training_data({manifest.modality: [DataSource(str(place))]}, 0, arrangement)
            opened = data[manifest.modality]
            transform = transform_of(opened, args.augment)
            if not (readers or isinstance(place, Url)):
                readers += webdataset_readers(place.parent, manifest, transform, args.sources)
            readers.append(our_reader(opened, transform, n, args.batch_size, args.sources))
        for _ in progress.bar(range(args.rounds + 1), desc=name, unit="round"):
            for reader in readers:
                reader.take_turn()
    captions = manifest.counts["samples"] / manifest.counts["records"]
    return [_speed(name, captions, reader, readers[0], args.needs) for reader in readers]


def _speed(name: str, captions: float, reader: Reader, first: Reader, needs: float) -> Speed:
    """The first round is not counted: files and code are not at hand yet."""
    turns = list(zip(reader.turns, reader.undecoded, first.turns, strict=True))[1:]
    beside = first.name == WEBDATASET  # not of a store
    begun = reader.turns[0]
    rate = median(turn.samples / turn.cpu_s for turn, _, _ in turns)
    return Speed(
        name,
        captions,
        reader.name,
        reader.group_by_source,
        rate,
        median(turn.sources / turn.cpu_s for turn, _, _ in turns),
        median(t.samples / t.cpu_s / (w.samples / w.cpu_s) for t, _, w in turns) if beside else None,
        median(t.sources / t.cpu_s / (w.sources / w.cpu_s) for t, _, w in turns) if beside else None,
        median(u.cpu_s / u.sources / (t.cpu_s / t.sources) for t, u, _ in turns),
        needs / rate if needs and reader.name == OURS else None,
        begun.samples / begun.wall_s,
        median(turn.samples / turn.wall_s for turn, _, _ in turns),
    )


def transform_of(data: TrainingData, augment: bool) -> SampleTransform:
    """A model's that reads as many points as the first cloud of the set has."""
    source, first = modality_spec(data.stream.modality).source, data.readers[0].record(0)
    if first.extension in IMAGE_EXTENSIONS:
        return SampleTransform({source: ImageTransform(IMAGE_SIDE)}, augment)
    points = decode_points(first.media, first.where)
    return SampleTransform({source: PointTransform(points.shape[0], points.shape[1], allow_few_points=True)}, augment)


def run(args: argparse.Namespace) -> int:
    """Measure every set and print the readers beside each other."""
    for name in ("sources", "rounds", "batch_size"):
        at_least(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    torch.set_num_threads(1)
    found: list[Speed] = []
    for given in args.manifests:
        place = find_manifest(given)
        found += measure(place, str(place), args)
    if not args.manifests:
        with tempfile.TemporaryDirectory() as temporary:
            for number, kind in enumerate(reading_sets.KINDS):
                folder = Path(temporary) / f"set-{number}"
                reading_sets.write(folder, kind, args.sources)
                found += measure(find_manifest(folder), kind.name, args)
    if args.json:
        say_json([asdict(row) for row in found])
        return FINISHED
    say(
        f"samples and sources for each second of processor time, medians of {args.rounds} rounds of about {args.sources} sources; "
        f"order {args.order}, batches of {args.batch_size}{', augmented' if args.augment else ''}"
    )
    head = (
        "set",
        "reader",
        "group",
        "samples/s",
        "of webdataset's",
        "sources/s",
        "of webdataset's",
        "reading",
        "cores",
        "first, wall",
        "then, wall",
    )
    say("\n".join(aligned([head, *map(_cells, found)], 2)))
    say(f"one thread, torch {torch.__version__}, {platform.platform()}")
    return FINISHED


def _cells(row: Speed) -> Sequence[str]:
    return (
        row.set,
        row.reader,
        str(row.group_by_source or "all"),
        f"{row.samples_per_s:,.0f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.sources_per_s:,.0f}",
        "" if row.source_ratio is None else f"{row.source_ratio:.2f}",
        f"{row.reading:.0%}",
        "" if row.cores is None else f"{row.cores:.1f}",
        f"{row.first_wall:,.0f}",
        f"{row.wall:,.0f}",
    )
