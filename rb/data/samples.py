"""From a stored row to a ``Sample``: media read and transformed by their source, caption cleaned.

Samples of one record that are shown together are read together: their media are decoded and transformed once. Training and prediction
differ here and nowhere else: training draws and augments, keyed by (seed, modality, position of the group); prediction is the same every
time, and knows all references.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rb.core.batch import Sample
from rb.core.modality import modality_spec
from rb.core.text import clean_caption, one_line
from rb.data.formats import QUESTIONS, Record, require_captions, require_media, sample_id
from rb.data.index import Loaded, ManifestReader
from rb.data.mirrors import NEVER, draw_mirror
from rb.sources.features import FeatureReader
from rb.sources.source import Draws
from rb.sources.table import source_of

Box = tuple[float, ...]


@dataclass(frozen=True)
class SampleTransform:
    """How stored rows become a model's inputs.

    Attributes:
        of_source: by the name of the source, what its row in ``rb/sources/table.py`` made for the model.
        augment: augment when training.
        seed: of the run; keys every draw.
        raw_captions: modalities that train on captions as they were written.
        mirror: modality -> which samples are mirrored when training, if ``augment``: a rule of ``data.mirror``.
        dropped_points: ``data.dropped_points``.
    """

    of_source: Mapping[str, Any]
    augment: bool = True
    seed: int = 0
    raw_captions: tuple[str, ...] = ()
    mirror: Mapping[str, str] = field(default_factory=dict)
    dropped_points: str = "first"

    def training_sample(self, loaded: Loaded, modality: str, position: int) -> Sample:
        """The sample at ``position`` of the modality's stream; ``FormatError`` if its media cannot be used."""
        return self.training_samples([loaded], modality, position)[0]

    def training_samples(
        self, group: Sequence[Loaded], modality: str, group_start: int, shown: slice = slice(None)
    ) -> list[Sample]:
        """Samples of one group, which all see one input; ``FormatError`` if its media cannot be used.

        One draw augments it, and one mirrors it if that leaves all captions of the group true. Both, and the choice of points, look at the
        whole group, so samples that are read apart from the rest see the same input.

        Args:
            group: all samples of the group, of one record, in the order of the stream.
            group_start: position in the modality's stream of the first.
            shown: those that are wanted.
        """
        key = (self.seed, modality, group_start)
        captions = [loaded.caption for loaded in group]
        axes: tuple[str, ...] = ()
        if self.augment:
            axes, captions = self._mirror(modality, captions, key)
        draws = Draws(key, self.augment, axes, self.dropped_points)
        regional = modality_spec(modality).regional
        inputs, numbers = self._read(
            group[0], modality, draws, [_box_of(loaded) for loaded in group] if regional else []
        )
        written = one_line if modality in self.raw_captions else clean_caption
        places = range(group_start, group_start + len(group))
        made = []
        for loaded, caption, place in list(zip(group, captions, places, strict=True))[shown]:
            box = numbers[_box_of(loaded)] if regional else None
            made.append(self._sample(loaded, modality, inputs, box, written(caption), place))
        return made

    def prediction_sample(
        self, loaded: Loaded, modality: str, crop: float | None = None, box_of: int | None = None
    ) -> Sample:
        """One example, as of ``prediction_samples``."""
        return self.prediction_samples([loaded], modality, crop, [box_of])[0]

    def prediction_samples(
        self,
        examples: Sequence[Loaded],
        modality: str,
        crop: float | None = None,
        box_of: Sequence[int | None] | None = None,
    ) -> list[Sample]:
        """Examples of one record without any draw of the run. All see one input, but each its own crop.

        Args:
            crop: only the inside of the object's box, widened by this share of the box on every side (sources with ``can_crop``).
            box_of: for each, the number of another object of the record, whose box the model is given; everything else stays the example's own.
        """
        first, regional = examples[0], modality_spec(modality).regional
        draws = Draws(("predict", first.record.source_id))
        boxes: list[Box | None] = [None] * len(examples)
        if regional:
            others = box_of or [None] * len(examples)
            boxes = [
                _box_of(own) if other is None else tuple(own.record.objects[other].box)
                for own, other in zip(examples, others, strict=True)
            ]
        if crop is None:
            # With all boxes of the record, whichever of them are asked about: so an example sees the same input among any others.
            known = [tuple(item.box) for item in first.record.objects] if regional else []
            inputs, numbers = self._read(first, modality, draws, known)
            return [
                self._sample(own, modality, inputs, None if box is None else numbers[box])
                for own, box in zip(examples, boxes, strict=True)
            ]
        made = []
        for own, box in zip(examples, boxes, strict=True):
            inputs, numbers = self._read(own, modality, draws, [] if box is None else [box], (_box_of(own), crop))
            made.append(self._sample(own, modality, inputs, None if box is None else numbers[box]))
        return made

    def _mirror(
        self, modality: str, captions: Sequence[str], key: tuple[object, ...]
    ) -> tuple[tuple[str, ...], list[str]]:
        """Axes to mirror along, and the captions as they are true of the mirrored input."""
        rule = self.mirror.get(modality, NEVER)
        axes = source_of(modality).mirror_axes(modality_spec(modality).up)
        if rule == NEVER:
            return (), list(captions)
        if not axes:
            raise ValueError(
                f"data.mirror.{modality}: {source_of(modality).name} inputs cannot be mirrored; leave it out"
            )
        drawn = draw_mirror(rule, captions, axes, key)
        return drawn.axes, list(drawn.captions)

    def _read(
        self,
        loaded: Loaded,
        modality: str,
        draws: Draws,
        boxes: Sequence[Box],
        crop: tuple[Box, float] | None = None,
    ) -> tuple[Tensor, dict[Box, Tensor]]:
        """The input, and the model's numbers of each box."""
        source = source_of(modality)
        if source.name not in self.of_source:
            raise ValueError(
                f"{loaded.where}: nothing says how to transform {source.name} inputs (SampleTransform.of_source)"
            )
        different = list(dict.fromkeys(boxes))
        reader = source if loaded.features is None else FeatureReader(source, loaded.features)
        inputs, numbers = reader.read(self.of_source[source.name], loaded.stored, different, draws, crop)
        return inputs, dict(zip(different, numbers, strict=True))

    @staticmethod
    def _sample(
        loaded: Loaded, modality: str, inputs: Tensor, numbers: Tensor | None, caption: str = "", position: int = -1
    ) -> Sample:
        """A row with its input, and the model's numbers of its box."""
        item, record = loaded.item, loaded.record
        return Sample(
            id=loaded.id,
            source_id=record.source_id,
            object_id=item.object_id if item else None,
            modality=modality,
            dataset=record.dataset,
            split=record.split,
            inputs=inputs,
            box=numbers,
            caption=caption,
            references=loaded.references,
            raw_box=tuple(map(float, item.box)) if item else None,
            position=position,
            are_features=loaded.features is not None,
            part=record.domain,
        )


def _box_of(loaded: Loaded) -> Box:
    if loaded.item is None:
        raise ValueError(f"{loaded.where}: has no box; regional modalities and crops need a manifest of regions")
    return tuple(loaded.item.box)


def questions_of(sample: Sample, record: Record) -> list[Sample]:
    """A sample for each question of the record that ``sample`` shows, all with its input."""
    return [
        dataclasses.replace(
            sample,
            id=sample_id(record.source_id, str(one.question_id)),
            object_id=str(one.question_id),
            references=tuple(one.answers),
            question=one.question,
            part=one.answer_type,
        )
        for one in record.questions
    ]


def check_fits(reader: ManifestReader, modality: str, predicting: bool, of_questions: bool = False) -> None:
    """Whether a manifest can serve ``modality``: the same modality to train on; the same source, and boxes if regional, to predict.

    ``of_questions``: for a task that answers questions, so its samples must be some.
    """
    if not of_questions:
        require_captions(reader.manifest, reader.path)
    elif reader.manifest.sample_kind != QUESTIONS:
        raise ValueError(
            f"{reader.path}: its samples are captions, so there is no question to answer; give a manifest of questions, such as "
            "`rb prepare vqav2` writes"
        )
    if predicting:
        require_media(reader.manifest, reader.path)
    own, asked = modality_spec(reader.manifest.modality), modality_spec(modality)
    fits = own.source == asked.source and (own.regional or not asked.regional) if predicting else own.name == asked.name
    if not fits:
        raise ValueError(
            f"{reader.path}: holds {own.name}, which cannot serve {asked.name}; give a manifest prepared for {asked.name}"
        )


def varied_by(modality: str, augment: bool, mirror: Mapping[str, str]) -> str | None:
    """The setting by which training sees one source differently from time to time; none: it is always the very same input.

    Args:
        augment, mirror: as of ``SampleTransform``.
    """
    if not augment:
        return None
    rule = mirror.get(modality, NEVER)
    if rule != NEVER:
        return f"data.mirror.{modality}: {rule}"
    return "data.augment: true" if source_of(modality).augments else None
