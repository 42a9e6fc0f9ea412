"""``rb cache-features``: what the frozen encoder of a run makes of every source of a set, as shards that training lists in place of the set.

Each source is encoded once, and its record keeps its captions, objects and place, so that a run of the features has the samples of a run of the
sources, in the same order. Only where a source looks the same every time: nothing is augmented, mirrored or drawn. What decides the
features stands in their manifest (``FeatureSet``); training compares it with its own model (``check_features``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rb.core import progress
from rb.core.config import RunConfig
from rb.core.files import check_room
from rb.core.modality import modality_spec
from rb.core.output import note
from rb.core.threads import in_order
from rb.data.formats import Manifest, Record, require_captions, require_media
from rb.data.index import Loaded, ManifestReader
from rb.data.pipeline import TrainingData
from rb.data.samples import varied_by
from rb.data.shard_writer import ShardWriter
from rb.data.unfinished import Work
from rb.inference.load import example_transform
from rb.model.frozen import UNKNOWN, encoder_settings
from rb.model.weights.build import Built
from rb.sources.feature_set import FeatureSet
from rb.sources.features import DTYPES, EXTENSION, encode_features
from rb.sources.source import Draws
from rb.sources.table import source_of

RECORD_OVERHEAD = 4096  # bytes of a record beside its features: tar headers, captions, boxes


@dataclass(frozen=True)
class Caching:
    """What is cached, and how.

    Attributes:
        reader: the set whose sources are encoded.
        dtype: of the stored features, ``float32`` or ``bfloat16``.
        batch_size: sources that are encoded at once.
        workers: threads that read and decode.
        overwrite: replace an older set.
    """

    reader: ManifestReader
    dtype: str = "bfloat16"
    batch_size: int = 16
    workers: int = 1
    overwrite: bool = False
    max_shard_bytes: int = 500_000_000


def cache_features(job: Caching, config: RunConfig, built: Built, out: Path) -> Manifest:
    """Encode every source of a set and write the folder ``out``; goes on behind the last finished shard where an earlier process was killed.

    Raises:
        ValueError: the run shows a source differently from time to time, or the set cannot be read by the model.
        CannotWriteError: the disk has no room for the features.
    """
    about = job.reader.manifest
    require_captions(about, job.reader.path)
    require_media(about, job.reader.path)
    setting = varied_by(about.modality, config.data.augment, config.data.mirror)
    if setting is not None:
        raise ValueError(
            f"{job.reader.path}: {setting} shows its sources differently every time, so their features cannot be stored; "
            "train without it: data.augment=false"
        )
    transform = example_transform(built, config.seed).of_source[source_of(about.modality).name]
    settings = feature_settings(built, about.modality, transform)
    made = {"command": "cache-features", "made_from": job.reader.digest, "dtype": job.dtype, "settings": settings}
    with torch.no_grad():
        _, first, _ = next(_encoded(job, built, transform, range(1)))
        features = FeatureSet(job.dtype, list(first.shape), job.reader.digest, settings)
        num_bytes = about.counts["records"] * (features.num_bytes + RECORD_OVERHEAD)
        note(
            f"{out}: {about.counts['records']:,} sources of {features.num_bytes / 1e3:,.0f} kB ({job.dtype}, {' x '.join(map(str, features.shape))}), "
            f"at most {num_bytes / 1e9:,.2f} GB"
        )
        check_room(out, num_bytes)
        with ShardWriter(
            out,
            about.name,
            about.modality,
            about.split,
            max_shard_bytes=job.max_shard_bytes,
            overwrite=job.overwrite,
            exif=about.exif,
            work=Work(made),
            features=features,
        ) as writer:
            earlier = writer.begin()
            numbers = range(earlier.position if earlier else 0, about.counts["records"])
            for number, (record, tensor, frame) in enumerate(_encoded(job, built, transform, numbers), numbers.start):
                if not torch.isfinite(tensor).all():
                    raise ValueError(
                        f"{job.reader.path}: the features of {record.source_id!r} are not finite; exclude it"
                    )
                writer.mark(number, {})
                writer.write(record, encode_features(tensor, frame), EXTENSION)
    job.reader.close()
    assert writer.manifest is not None
    return writer.manifest


def feature_settings(built: Built, modality: str, transform: Any) -> dict[str, Any]:
    """All that decides the frozen features of a modality, by name, ready for JSON; ``ValueError`` where they cannot be stored."""
    source = source_of(modality)
    own = source.frozen_settings(transform, modality_spec(modality).regional)
    if own is None:
        raise ValueError(
            f"features of {modality} cannot be stored: its source, {source.name}, does not say what decides them"
        )
    return {**own, **encoder_settings(built.model, modality)}


def check_features(built: Built, config: RunConfig, data: Mapping[str, TrainingData]) -> None:
    """Whether the feature sets that a run lists are what its own encoder would make of its own inputs; reads no shard.

    Raises:
        ValueError: names the set and the first difference.
    """
    transforms = example_transform(built, config.seed).of_source
    for modality, opened in data.items():
        sets = [(reader.path, reader.manifest.features) for reader in opened.readers]
        if all(about is None for _, about in sets):
            continue
        setting = varied_by(modality, config.data.augment, config.data.mirror)
        settings = feature_settings(built, modality, transforms[source_of(modality).name])
        for path, about in sets:
            assert about is not None, "check_same_kind"
            if setting is not None:
                raise ValueError(
                    f"{path}: holds frozen features, and {setting} would change what the encoder reads; set data.augment=false, "
                    "or list the set that they were made from"
                )
            if settings["encoder"] == UNKNOWN:
                settings |= {name: about.settings.get(name) for name in ("encoder", "encoder_dtype")}
            difference = about.difference(settings)
            if difference is not None:
                raise ValueError(
                    f"{path}: its features were made with {difference}; make them again with `rb cache-features`, or list the set "
                    "that they were made from"
                )


def _encoded(
    job: Caching, built: Built, transform: Any, numbers: range
) -> Iterator[tuple[Record, Tensor, Tensor | None]]:
    """Record, features [P, V] and frame of some records, in order."""
    about, model = job.reader.manifest, built.model
    source = source_of(about.modality)

    def encode(inputs: Tensor) -> Tensor:
        return model.frozen_features(about.modality, inputs.to(model.device)).to(DTYPES[job.dtype])

    for loaded, features in each_encoded(job, transform, numbers, "features", encode):
        yield loaded.record, features, source.frame(loaded.stored)


def each_encoded(
    job: Caching, transform: Any, numbers: range, what: str, encode: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Loaded, Tensor]]:
    """Some records of a set in order, and for each its row of what ``encode`` makes of a batch of inputs; threads decode some batches ahead.

    Raises:
        ValueError: ``what`` cannot be stored, as the input is not the same every time.
    """
    about = job.reader.manifest
    source, regional = source_of(about.modality), modality_spec(about.modality).regional

    def decode(loaded: Loaded) -> Tensor:
        drawn = source.drawn(transform, loaded.stored, regional)
        if drawn is not None:
            raise ValueError(
                f"{loaded.where}: a draw says {drawn}, another one for every sample, so its {what} cannot be stored; "
                "prepare clouds of as many points as the model reads, or set model.num_points (of scenes: model.num_scene_points)"
            )
        # Every box gives the same input, as nothing is drawn; that there is one makes a cloud a scene.
        boxes = [loaded.record.objects[0].box] if regional else []
        return source.read(transform, loaded.stored, boxes, Draws(("cache", loaded.record.source_id)))[0]

    decoded = in_order(decode, map(job.reader.record, numbers), job.workers, ahead=2 * job.batch_size + job.workers)
    title = f"{about.name} {about.split}"
    with progress.bar(total=about.counts["records"], initial=numbers.start, desc=title, unit="source", delay=5) as bar:
        while rows := list(itertools.islice(decoded, job.batch_size)):
            encoded = encode(torch.stack([inputs for _, inputs in rows])).cpu()
            for (loaded, _), own in zip(rows, encoded, strict=True):
                yield loaded, own
                bar.update()
