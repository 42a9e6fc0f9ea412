"""From a stored row to a decoded ``Sample``: media decoded and transformed, box normalised, caption cleaned.

Training and prediction differ here and nowhere else: training draws points and augments, keyed by (seed, modality, position);
prediction is the same every time, and knows all references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rb.core.batch import Sample
from rb.core.boxes import normalise_image_box
from rb.core.modality import ModalitySpec, modality_spec
from rb.core.seeding import generator
from rb.core.text import clean_caption
from rb.data.index import Loaded, ManifestReader
from rb.sources.images import ImageTransform, crop_to_box, decode_image
from rb.sources.points import PointTransform, decode_points


@dataclass(frozen=True)
class SampleDecoder:
    """How stored rows become a model's inputs.

    Attributes:
        images: for image modalities; the foundation's size, mean and standard deviation.
        points: for point modalities.
        augment: augment points when training.
        seed: of the run; keys every draw.
    """

    images: ImageTransform | None = None
    points: PointTransform | None = None
    augment: bool = True
    seed: int = 0

    def training_sample(self, loaded: Loaded, modality: str, position: int) -> Sample:
        """The sample at ``position`` of the modality's stream; ``FormatError`` if its media cannot be used."""
        spec = modality_spec(modality)
        if spec.source == "image":
            inputs, box = self._image(loaded, spec, crop=None)
        else:
            key = (self.seed, modality, position)
            inputs, box = self._points(loaded, spec, key, augment=self.augment)
        return _sample(loaded, spec, inputs, box, position)

    def prediction_sample(
        self, loaded: Loaded, modality: str, crop: float | None = None, box_of: int | None = None
    ) -> Sample:
        """One example without any draw of the run.

        Args:
            crop: of an image only the inside of the object's box, widened by this share of the box on every side.
            box_of: number of another object of the record, whose box the model is given; everything else stays the example's own.
        """
        spec = modality_spec(modality)
        seen = loaded if box_of is None else replace(loaded, item=loaded.record.objects[box_of])
        if spec.source == "image":
            inputs, box = self._image(seen, spec, crop)
        else:
            inputs, box = self._points(seen, spec, ("predict", loaded.record.source_id), augment=False)
        return _sample(loaded, spec, inputs, box, position=-1)

    def _image(self, loaded: Loaded, spec: ModalitySpec, crop: float | None) -> tuple[Tensor, Tensor | None]:
        if self.images is None:
            raise ValueError(f"{loaded.where}: images need the foundation's image settings (SampleDecoder.images)")
        record = loaded.record
        image = decode_image(loaded.media, loaded.where, (record.width, record.height))
        if crop is not None:
            image = crop_to_box(image, _box_of(loaded), crop)
        box = None
        if spec.regional:
            box = torch.tensor(normalise_image_box(_box_of(loaded), record.width, record.height), dtype=torch.float32)
        return self.images(image), box

    def _points(
        self, loaded: Loaded, spec: ModalitySpec, key: tuple[object, ...], augment: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.points is None:
            raise ValueError(f"{loaded.where}: point clouds need the point encoder's settings (SampleDecoder.points)")
        points = decode_points(loaded.media, loaded.where)
        box = _box_of(loaded) if spec.regional else None
        return self.points(points, box, loaded.where, key, generator("augment", *key) if augment else None)


def _box_of(loaded: Loaded) -> Sequence[float]:
    if loaded.item is None:
        raise ValueError(f"{loaded.where}: has no box; regional modalities and crops need a manifest of regions")
    return loaded.item.box


def _sample(loaded: Loaded, spec: ModalitySpec, inputs: Tensor, box: Tensor | None, position: int) -> Sample:
    item, record = loaded.item, loaded.record
    return Sample(
        id=loaded.id,
        source_id=record.source_id,
        object_id=item.object_id if item else None,
        modality=spec.name,
        dataset=record.dataset,
        split=record.split,
        inputs=inputs,
        box=box,
        caption=clean_caption(loaded.caption) if position >= 0 else "",
        references=loaded.references,
        raw_box=tuple(map(float, item.box)) if item else None,
        position=position,
    )


def check_fits(reader: ManifestReader, modality: str, predicting: bool) -> None:
    """Whether a manifest can serve ``modality``: the same modality to train on; the same source, and boxes if regional, to predict."""
    own, asked = modality_spec(reader.manifest.modality), modality_spec(modality)
    fits = own.source == asked.source and (own.regional or not asked.regional) if predicting else own.name == asked.name
    if not fits:
        raise ValueError(
            f"{reader.path}: holds {own.name}, which cannot serve {asked.name}; give a manifest prepared for {asked.name}"
        )
