"""``rb cache-groups``: the groups of points that a run's point encoder finds in every cloud of a set, stored beside the clouds.

Nothing else of the set changes, so it serves whatever the set served. A reader uses the groups where they are those that it would find
(``Source.groups_unused``), and finds its own elsewhere. No weights are needed: the run file says which encoder, and its file of which sizes it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from rb.core.config import RunConfig
from rb.core.files import check_room
from rb.core.modality import modality_spec
from rb.data.formats import Manifest, require_media
from rb.data.index import ManifestReader
from rb.data.pipeline import TrainingData
from rb.data.samples import SampleTransform
from rb.data.shard_writer import ShardWriter
from rb.data.unfinished import Work
from rb.inference.cache_features import Caching, each_encoded
from rb.inference.load import example_transform
from rb.model.point_encoder import group_index
from rb.model.weights.build import Built
from rb.sources.groups import encode_groups
from rb.sources.table import source_of


def cache_groups(job: Caching, config: RunConfig, built: Built, out: Path, device: torch.device | str) -> Manifest:
    """Write a set again with the groups of its clouds' points; goes on behind the last finished shard where an earlier process was killed.

    Args:
        built: its sizes are enough: a model on the meta device.
        device: where the groups are found.

    Raises:
        ValueError: the set has no clouds, or not as many points a cloud as the run reads.
        CannotWriteError: the disk has no room.
    """
    reader = job.reader
    reader.use_groups = False  # older ones are replaced
    about = reader.manifest
    require_media(about, reader.path)
    source, regional = source_of(about.modality), modality_spec(about.modality).regional
    encoder = built.model.point_encoder
    if not source.point_encoder or encoder is None:
        raise ValueError(
            f"{reader.path}: holds {about.modality}, whose points the model of this run does not group; give a set of clouds, and "
            "a run file whose model.train_modalities has point_cloud or point_cloud_region"
        )
    transform, how = example_transform(built, config.seed).of_source[source.name], encoder.config.grouping
    groups = transform.group_set(regional)

    def encode(points: Tensor) -> Tensor:
        return group_index(points[..., :3].to(device), how)

    check_room(out, sum(entry.bytes for entry in about.shards) + about.counts["records"] * groups.num_bytes)
    with ShardWriter(
        out,
        about.name,
        about.modality,
        about.split,
        max_shard_bytes=job.max_shard_bytes,
        overwrite=job.overwrite,
        work=Work({"command": "cache-groups", "made_from": reader.digest, "groups": asdict(groups)}),
        groups=groups,
    ) as writer:
        writer.reject_as(reader.path)
        earlier = writer.begin()
        numbers = range(earlier.position if earlier else 0, about.counts["records"])
        rows = each_encoded(job, transform, numbers, "groups", encode)
        for number, (loaded, index) in enumerate(rows, numbers.start):
            writer.mark(number, {})
            writer.write(loaded.record, loaded.media, loaded.extension, encode_groups(index.numpy(), groups))
    reader.close()
    assert writer.manifest is not None
    return writer.manifest


def uses_of_groups(data: Mapping[str, TrainingData], transform: SampleTransform) -> list[str]:
    """``use_of_groups`` of every set of a training that stores some."""
    said = [use_of_groups(one, modality, transform) for modality, opened in data.items() for one in opened.readers]
    return [line for line in said if line is not None]


def use_of_groups(reader: ManifestReader, modality: str, transform: SampleTransform) -> str | None:
    """A line that says whether the groups that a set stores are used, or why not; none where it stores none."""
    about = reader.manifest.groups
    if about is None:
        return None
    source = source_of(modality)
    regional = modality_spec(modality).regional
    reason = source.groups_unused(transform.of_source[source.name], about, regional, transform.augment)
    if not reader.use_groups:
        reason = f"not all sets of {modality} store the same"
    return f"{reader.path}: its stored groups of points " + (
        "are used" if reason is None else f"are not used: {reason}"
    )
