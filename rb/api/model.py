"""RegionBLIP for people who only want captions: ``RegionBLIP.from_pretrained(folder).caption(image, box, box_format="pixels")``.

Whole images, regions of images, point clouds, regions of clouds; ``embed`` gives vectors of the ITC space for retrieval. Several boxes
of one source cost one encoder pass. What callers may give is in ``rb/api/inputs.py``. E is the ITC width, Q query tokens.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

import rb.api.inputs as inputs
from rb.api.inputs import ImageInput, InputError, PointsInput
from rb.core.config import DecodeConfig, FoundationConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.inference.load import Loaded, load_trained
from rb.inference.vectors import query_vectors, similarities, text_vectors
from rb.model.language import Generation
from rb.sources.images import ImageTransform
from rb.sources.pixels import UPRIGHT
from rb.sources.points import PointTransform

BATCH_SIZE = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """One image or cloud ready for its encoder, and its boxes as the model's numbers (none: the whole)."""

    tensor: Tensor
    boxes: Tensor | None

    @property
    def rows(self) -> int:
        """Captions or vectors that are made of it."""
        return 1 if self.boxes is None else len(self.boxes)


class RegionBLIP:
    """A loaded model. Make it with ``from_pretrained``.

    Attributes:
        text: its tokenizers.
        modalities: what it was trained for; ``image`` works always (then it is BLIP-2 itself).
        decode: how captions are generated; may be replaced.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.decode = loaded.generation
        self.modalities = tuple(loaded.model.parts)
        self.model = loaded.model
        self.text = loaded.text
        transforms = loaded.transform.of_source
        self._images = cast("ImageTransform", transforms["image"])
        self._points = dataclasses.replace(cast("PointTransform", transforms["points"]), allow_few_points=True)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        foundation: str | Path | FoundationConfig | None = None,
        device: torch.device | str = "cpu",
        allow: Sequence[str] = (),
    ) -> RegionBLIP:
        """Load an export (whole, or one modality's folder), or a run folder or checkpoint.

        Args:
            folder: of ``rb export`` or of a training run.
            foundation: the frozen weights, a folder with ``blip2-.../``, ``text_branch/`` and, for clouds, ``point_bert/``, or their
                paths one by one. An export needs it; a run folder knows its own.
            device: where the model goes: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
            allow: "foundation" accepts frozen weights other than those of the training.

        Raises:
            ValueError: no such device; nothing usable there; the weights do not fit the foundation, or belong to another one.
        """
        return cls(load_trained(folder, foundation, device, allow=allow))

    # -- captions -----------------------------------------------------------------------------------------------------

    def caption(
        self,
        images: ImageInput | Sequence[ImageInput],
        boxes: Any = None,
        prompt: str | None = None,
        box_format: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """Captions of images or of their regions.

        Args:
            images: one or several: PIL images, files, uint8 or 0..1 arrays [H, W, 3] or torch tensors [3, H, W]. Files and PIL images
                whose EXIF says that they lie on a side are turned upright (a warning says so); boxes are of the upright image.
            boxes: none captions whole images. For one image a box x1 y1 x2 y2 or a list of boxes; for several images a list with such
                an entry for each.
            prompt: text that the caption continues; by default that of the training run.
            box_format: "pixels" or "normalised"; required with boxes.
            batch_size: most images in one encoder pass, and most captions generated at once.

        Returns:
            A text for one image or box, a list if lists were given: nested like the input.

        Raises:
            InputError: an image or box that cannot be used; regions were not trained.
        """
        modality, sources, shape = self.image_sources(images, boxes, box_format)
        return shape(self._captions(modality, sources, prompt, batch_size))

    def caption_points(
        self,
        points: PointsInput | Sequence[PointsInput],
        boxes: Any = None,
        prompt: str | None = None,
        batch_size: int = BATCH_SIZE,
        box_format: str = "metres",
    ) -> Any:
        """Captions of clouds, arrays [N, 3 | 6] or files (.ply, .pcd, .npy, .npz, .pt, .xyz), or of their regions. Otherwise as ``caption``.

        Boxes are min xyz, max xyz in the cloud's own units ("metres"), or "normalised", 0 to 1 along each axis of the cloud's extent. A
        cloud of more points than the model reads is thinned by a fixed draw, one of fewer is filled up by repetition.
        """
        modality, sources, shape = self.cloud_sources(points, boxes, box_format)
        return shape(self._captions(modality, sources, prompt, batch_size))

    # -- retrieval ----------------------------------------------------------------------------------------------------

    def embed(
        self, images: Any, boxes: Any = None, box_format: str | None = None, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Images or regions in ITC space, [n, Q, E] of length 1, one row for each box in order. Arguments as of ``caption``."""
        modality, sources, _ = self.image_sources(images, boxes, box_format)
        return self._embeddings(modality, sources, batch_size)

    def embed_points(
        self, points: Any, boxes: Any = None, batch_size: int = BATCH_SIZE, box_format: str = "metres"
    ) -> Tensor:
        """Clouds or their regions in ITC space, [n, Q, E]. Arguments as of ``caption_points``."""
        modality, sources, _ = self.cloud_sources(points, boxes, box_format)
        return self._embeddings(modality, sources, batch_size)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], modality: str) -> Tensor:
        """Texts in the ITC space of a modality, [n, E] of length 1."""
        self.require(modality)
        return text_vectors(self.model, self.text, modality, [texts] if isinstance(texts, str) else texts).cpu()

    @staticmethod
    def similarity(embeds: Tensor, texts: Tensor) -> Tensor:
        """[n, Q, E] and [m, E] -> [n, m]: the best query's cosine, as ITC trains it."""
        return similarities(embeds, texts)

    # -- sources ready for the model (also for rb/serving) ------------------------------------------------------------

    def require(self, modality: str) -> None:
        """``InputError`` unless the checkpoint was trained for a modality."""
        if modality not in self.modalities:
            raise InputError(
                f"{modality} is not in this checkpoint, which has {', '.join(self.modalities)}; load one trained for it"
            )

    def image_sources(
        self, images: Any, boxes: Any, box_format: str | None, check_format: bool = True
    ) -> tuple[str, list[Ready], Callable[[list[Any]], Any]]:
        """(modality, sources, what nests flat results like the input); arguments as of ``caption``, ``check_format`` as of ``image_box``."""
        given, single = inputs.listed(images, single_ndim=3)
        if boxes is None:
            return (
                IMAGE,
                [Ready(self._images(image), None) for image in _opened(given)],
                _shaper([None] * len(given), single),
            )
        self.require(IMAGE_REGION)
        box_format = inputs.check_box_format(box_format)
        sources, alone = [], []
        entries = inputs.per_source(boxes, len(given), single, "images")
        for i, (opened_image, entry) in enumerate(zip(_opened(given), entries, strict=True)):
            rows, one = inputs.box_rows(entry, 4, f"boxes[{i}]")
            ready = [
                inputs.image_box(
                    row, opened_image.size, box_format, f"boxes[{i}][{j}]", self._images.whole_pixels, check_format
                )
                for j, row in enumerate(rows)
            ]
            sources.append(Ready(self._images(opened_image), inputs.to_tensor(ready)))
            alone.append(1 if one else -len(rows))
        return IMAGE_REGION, sources, _shaper(alone, single)

    def cloud_sources(
        self, points: Any, boxes: Any, box_format: str
    ) -> tuple[str, list[Ready], Callable[[list[Any]], Any]]:
        """As ``image_sources``; arguments as of ``caption_points``."""
        box_format = inputs.check_cloud_box_format(box_format)
        given, single = inputs.listed(points, single_ndim=2)
        modality = POINT_CLOUD if boxes is None else POINT_CLOUD_REGION
        self.require(modality)
        entries = [None] * len(given) if boxes is None else inputs.per_source(boxes, len(given), single, "clouds")
        sources: list[Ready] = []
        alone: list[int | None] = []
        for i, (one_cloud, entry) in enumerate(zip(given, entries, strict=True)):
            where = f"points[{i}]"
            array, key = inputs.cloud(one_cloud, where), ("predict", "api")
            if entry is None:
                sources.append(Ready(self._points(array, (), where, key)[0], None))
                alone.append(None)
                continue
            rows, one = inputs.box_rows(entry, 6, f"boxes[{i}]")
            rows = [inputs.cloud_box(row, array, box_format, f"boxes[{i}][{j}]") for j, row in enumerate(rows)]
            if rows:
                tensor, ready = self._points(array, rows, where, key)
                sources.append(Ready(tensor, torch.stack(ready)))
            alone.append(1 if one else -len(rows))
        return modality, sources, _shaper(alone, single)

    # -- frozen features to answers (also for rb/serving) -------------------------------------------------------------

    def search(self, modality: str, decode: DecodeConfig, prompt: str | None = None) -> Generation:
        """How captions of a modality are generated; ``prompt`` replaces the run's."""
        text = self.text if prompt is None else dataclasses.replace(self.text, prompt=prompt)
        return Generation.of(text, modality, decode, self.model.device)

    def vectors(
        self, modality: str, features: Tensor, boxes: Tensor | None, source_rows: Tensor | None = None
    ) -> Tensor:
        """Queries in ITC space, [B, Q, E] of length 1, of frozen features; arguments as of the model's ``generate_from``."""
        return query_vectors(self.model, modality, features, boxes, source_rows)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _captions(self, modality: str, sources: Sequence[Ready], prompt: str | None, batch_size: int) -> list[str]:
        how = self.search(modality, self.decode, prompt)

        def read(features: Tensor, boxes: Tensor | None) -> list[str]:
            return self.text.decode_llm(self.model.generate_from(modality, features, boxes, how).cpu())

        return [caption for rows in self._each_batch(modality, sources, batch_size, read) for caption in rows]

    @torch.no_grad()
    def _embeddings(self, modality: str, sources: Sequence[Ready], batch_size: int) -> Tensor:
        self.require(modality)

        def read(features: Tensor, boxes: Tensor | None) -> Tensor:
            return self.vectors(modality, features, boxes).cpu()

        return torch.cat(self._each_batch(modality, sources, batch_size, read))

    def _each_batch(
        self, modality: str, sources: Sequence[Ready], batch_size: int, read: Callable[[Tensor, Tensor | None], Any]
    ) -> list[Any]:
        """``read(features, boxes)`` over all rows in order; each source goes through its encoder once."""
        found, device = [], self.model.device
        for start in range(0, len(sources), batch_size):
            part = [source for source in sources[start : start + batch_size] if source.rows]
            if not part:
                continue
            features = self.model.encode(modality, torch.stack([source.tensor for source in part]).to(device))
            owner = torch.repeat_interleave(torch.tensor([source.rows for source in part])).to(device)
            boxes = None if part[0].boxes is None else torch.cat([cast("Tensor", s.boxes) for s in part]).to(device)
            for row in range(0, len(owner), batch_size):
                rows = slice(row, row + batch_size)
                found.append(read(features[owner[rows]], None if boxes is None else boxes[rows]))
        return found


def _opened(given: Sequence[ImageInput]) -> Iterator[Image.Image]:
    """One image after another, in RGB and upright; a warning at the end says how many were turned."""
    was_turned = []
    for i, one in enumerate(given):
        image, orientation = inputs.rgb_image(one, f"images[{i}]")
        if orientation != UPRIGHT:
            was_turned.append(i)
        yield image
    if was_turned:
        log.warning(
            "%d of %d images turned upright, as their EXIF says (first: images[%d]); boxes are of the upright image",
            len(was_turned),
            len(given),
            was_turned[0],
        )


def _shaper(alone: Sequence[int | None], single: bool) -> Callable[[list[Any]], Any]:
    """Reshape a flat list of captions to the nesting of the input boxes. For each source: none or 1, one caption; -n, a list of n."""

    def shape(captions: list[Any]) -> Any:
        rest, out = iter(captions), []
        for count in alone:
            out.append(next(rest) if count is None or count > 0 else [next(rest) for _ in range(-count)])
        return out[0] if single else out

    return shape
