"""Micro-batches without data: lengths of captions, objects of a source and captions of an object drawn from a stored table.

The draws are those of a stand-in for the real set: sources with their objects and captions, their samples in groups by the rule of
``rb/data/groups.py`` (c samples of a source make ceil(c / n) groups of even sizes, members drawn), groups shuffled, micro-batches cut from
them. Nothing else of a batch matters to a count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import torch

from rb.core.batch import Batch, numbered
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION, modality_spec
from rb.core.seeding import generator
from rb.costs.random_models import PROMPT_TOKENS
from rb.model.blip2_config import llm_config_of
from rb.model.region_blip import RegionBLIP
from rb.sources.table import source_of


@dataclass(frozen=True)
class Typical:
    """Means over the training set of a modality.

    Attributes:
        qformer_tokens: of a caption, [CLS] and [SEP] among them.
        llm_tokens: of a caption, start and end among them.
        objects: of a source.
        captions: of an object.
        samples: of an epoch.
    """

    qformer_tokens: float
    llm_tokens: float
    objects: float
    captions: float
    samples: int


# Tokens as in the model of performance that the project started from. RefCOCO, google's split: 113,000 captions of 40,000 objects in 19,213
# images; Cap3D: one caption of an object; ScanRefer: 36,665 captions, 4.67 of each of 14 objects of a scene (arXiv 1912.08830), shown twice;
# image: COCO, 5 captions of an image.
TYPICAL = {
    IMAGE: Typical(12, 12, 1, 5, 566_000),
    IMAGE_REGION: Typical(6, 7, 2.08, 2.83, 113_000),
    POINT_CLOUD: Typical(20, 20, 1, 1, 640_000),
    POINT_CLOUD_REGION: Typical(24, 24, 14, 4.67, 73_330),
}


@dataclass(frozen=True)
class _Sample:
    group: int
    source: int
    subject: int  # an object of a source
    qformer_tokens: int
    llm_tokens: int  # with the end token, without the start


def typical_batches(
    model: RegionBLIP, modality: str, rows: int, group: int, seed: int = 0, typical: Typical | None = None
) -> Iterator[Batch]:
    """Micro-batches of ``rows`` samples on the meta device but for their masks and numbers, whose real ones a count needs.

    Args:
        group: ``data.group_by_source``.
        typical: means of the data; none: those of the paper's set.
    """
    stream = _stream(modality, typical or TYPICAL[modality], group, model.config.max_text_tokens, seed)
    while True:
        yield _batch(model, modality, [next(stream) for _ in range(rows)])


def longest_batch(model: RegionBLIP, modality: str, rows: int) -> Batch:
    """The micro-batch that takes the most memory: captions as long as the run allows, each of another source."""
    longest = model.config.max_text_tokens
    return _batch(model, modality, [_Sample(row, row, row, longest, longest) for row in range(rows)])


def _batch(model: RegionBLIP, modality: str, samples: Sequence[_Sample]) -> Batch:
    spec, config, rows = modality_spec(modality), model.config, len(samples)
    kind = "encoder_decoder" if llm_config_of(model.blip2.config).is_encoder_decoder else "decoder"
    pieces, source_rows = np.unique([sample.group for sample in samples], return_inverse=True)
    shared = len(pieces) < rows
    about = torch.tensor([sample.group << 32 | sample.subject for sample in samples])
    subject_rows, subjects = numbered(about) if shared else (None, None)
    llm_mask = _mask([sample.llm_tokens for sample in samples])
    text_mask = _mask([sample.qformer_tokens for sample in samples], config.max_text_tokens)
    return Batch(
        modality=modality,
        ids=[f"{modality}-{row}" for row in range(rows)],
        inputs=_inputs(model, modality, len(pieces)),
        boxes=torch.empty(rows, config.box_dim(modality), device="meta") if spec.regional else None,
        text_ids=text_mask,
        text_mask=text_mask,
        llm_ids=llm_mask,
        llm_mask=llm_mask,
        prompt_ids=torch.ones(1, PROMPT_TOKENS[kind], dtype=torch.int64),
        object_keys=torch.tensor([sample.subject for sample in samples]),
        caption_keys=torch.arange(rows),
        itm_uniforms=torch.zeros(rows, 2),
        positions=list(range(rows)),
        source_rows=torch.from_numpy(source_rows) if shared else None,
        subject_rows=subject_rows,
        subjects=subjects,
        source_keys=torch.tensor([sample.source for sample in samples]),
    )


def _stream(modality: str, typical: Typical, group: int, longest: int, seed: int) -> Iterator[_Sample]:
    """Endless samples, those of a group beside each other."""
    rng = generator("typical batch", modality, seed)
    sources, subjects, numbers = count(), count(), count()

    def groups_of_a_source() -> Iterator[list[_Sample]]:
        source = next(sources)
        objects = [next(subjects) for _ in range(1 + rng.poisson(typical.objects - 1))]
        described = [subject for subject in objects for _ in range(1 + rng.poisson(typical.captions - 1))]
        for piece in np.array_split(rng.permutation(described), -(-len(described) // group)):
            number = next(numbers)
            means = (typical.qformer_tokens, typical.llm_tokens - 1)  # the start token is the prompt's
            yield [_Sample(number, source, int(s), *(_length(rng, mean, longest) for mean in means)) for s in piece]

    while True:  # sources that are shuffled together are far more than a micro-batch holds
        groups = [group for _ in range(500) for group in groups_of_a_source()]
        yield from chain.from_iterable(groups[place] for place in rng.permutation(len(groups)))


def _length(rng: np.random.Generator, mean: float, longest: int) -> int:
    """Tokens of a caption, cut at the longest: a word and an end token at least."""
    return int(min(2 + rng.poisson(mean - 2), longest))


def _mask(lengths: list[int], width: int | None = None) -> torch.Tensor:
    """1 where there is a token, [B, width], or [B, the longest]."""
    columns = torch.arange(width or max(lengths))
    return (columns < torch.tensor(lengths)[:, None]).long()


def _inputs(model: RegionBLIP, modality: str, rows: int) -> torch.Tensor:
    """What the encoder reads, as a loader hands it on, without numbers."""
    source, config = source_of(modality), model.config
    if not source.point_encoder:
        side = model.blip2.vision_model.embeddings.image_size
        return torch.empty(rows, 3, side, side, dtype=torch.uint8, device="meta")
    channels = model.of(modality).points().config.in_channels
    scene = modality_spec(modality).regional and config.num_scene_points
    return torch.empty(rows, scene or config.num_points, channels, device="meta")
