"""From a stored row to a ``Sample``: media read and transformed by their source, caption cleaned.

Training and prediction differ here and nowhere else: training draws and augments, keyed by (seed, modality, position); prediction is
the same every time, and knows all references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rb.core.batch import Sample
from rb.core.modality import modality_spec
from rb.core.text import clean_caption, one_line
from rb.data.formats import require_captions
from rb.data.index import Loaded, ManifestReader
from rb.data.mirrors import NEVER, draw_mirror
from rb.sources.source import Draws
from rb.sources.table import source_of


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
        key = (self.seed, modality, position)
        axes, caption = self._mirror(modality, loaded.caption, key) if self.augment else ((), loaded.caption)
        draws = Draws(key, self.augment, axes, self.dropped_points)
        loaded = replace(loaded, caption=caption)
        return self._sample(loaded, loaded, modality, draws, position)

    def prediction_sample(
        self, loaded: Loaded, modality: str, crop: float | None = None, box_of: int | None = None
    ) -> Sample:
        """One example without any draw of the run.

        Args:
            crop: only the inside of the object's box, widened by this share of the box on every side (sources with ``can_crop``).
            box_of: number of another object of the record, whose box the model is given; everything else stays the example's own.
        """
        seen = loaded if box_of is None else replace(loaded, item=loaded.record.objects[box_of])
        return self._sample(loaded, seen, modality, Draws(("predict", loaded.record.source_id)), -1, crop)

    def _mirror(self, modality: str, caption: str, key: tuple[object, ...]) -> tuple[tuple[str, ...], str]:
        """Axes to mirror along, and the caption that is true of the mirrored input."""
        rule = self.mirror.get(modality, NEVER)
        axes = source_of(modality).mirror_axes(modality_spec(modality).up)
        if rule == NEVER:
            return (), caption
        if not axes:
            raise ValueError(
                f"data.mirror.{modality}: {source_of(modality).name} inputs cannot be mirrored; leave it out"
            )
        drawn = draw_mirror(rule, (caption,), axes, key)
        return drawn.axes, drawn.captions[0]

    def _sample(
        self, own: Loaded, seen: Loaded, modality: str, draws: Draws, position: int, crop: float | None = None
    ) -> Sample:
        """``own``'s row with the inputs and the box of ``seen``."""
        spec, source = modality_spec(modality), source_of(modality)
        if source.name not in self.of_source:
            raise ValueError(
                f"{own.where}: nothing says how to transform {source.name} inputs (SampleTransform.of_source)"
            )
        box = _box_of(seen) if spec.regional else None
        area = None if crop is None else (_box_of(seen), crop)
        inputs, numbers = source.read(self.of_source[source.name], seen.stored, box, draws, area)
        item, record = own.item, own.record
        written = one_line if spec.name in self.raw_captions else clean_caption
        return Sample(
            id=own.id,
            source_id=record.source_id,
            object_id=item.object_id if item else None,
            modality=spec.name,
            dataset=record.dataset,
            split=record.split,
            inputs=inputs,
            box=numbers,
            caption=written(own.caption) if position >= 0 else "",
            references=own.references,
            raw_box=tuple(map(float, item.box)) if item else None,
            position=position,
        )


def _box_of(loaded: Loaded) -> Sequence[float]:
    if loaded.item is None:
        raise ValueError(f"{loaded.where}: has no box; regional modalities and crops need a manifest of regions")
    return loaded.item.box


def check_fits(reader: ManifestReader, modality: str, predicting: bool) -> None:
    """Whether a manifest can serve ``modality``: the same modality to train on; the same source, and boxes if regional, to predict."""
    require_captions(reader.manifest, reader.path)
    own, asked = modality_spec(reader.manifest.modality), modality_spec(modality)
    fits = own.source == asked.source and (own.regional or not asked.regional) if predicting else own.name == asked.name
    if not fits:
        raise ValueError(
            f"{reader.path}: holds {own.name}, which cannot serve {asked.name}; give a manifest prepared for {asked.name}"
        )
