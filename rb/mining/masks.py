"""Stage masks: class-agnostic regions of an image, from a grid of points (SAM, SAM 2) or without weights (felzenszwalb).

The order of the rules: the segmenter's own scores, then overlapping boxes, then sides, area and border, then the best few. What falls to the first
two is counted only (a grid of 1,024 points makes 3,072 proposals); what falls to the others stays in the file with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rb.core.library_folders import read_model
from rb.core.strict_json import FormatError
from rb.mining.captioners import model_files
from rb.mining.config import MasksConfig
from rb.mining.inputs import CUT, DAMAGED_IMAGE, InputImage, InputShard
from rb.mining.record import ImageRecord, Region
from rb.mining.stage import Stage, made_of
from rb.mining.views import box_of_mask, encode_mask
from rb.mining.work import Made

MADE, LOW_IOU, UNSTABLE, EMPTY, OVERLAPS = (
    "made",
    "low predicted IoU",
    "unstable",
    "empty mask",
    "overlaps a better one",
)
SMALL_SIDE, SMALL_AREA, LARGE, SLIVER, TOO_MANY = (
    "small side",
    "small area",
    "large box",
    "sliver at the border",
    "too many",
)

MEAN, STD = (
    np.array(v, dtype=np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)  # ImageNet's, as SAM was trained


@dataclass(frozen=True)
class Proposal:
    """A mask [H, W] bool with its box, and the segmenter's scores where it has some."""

    mask: np.ndarray
    box: list[float]
    predicted_iou: float | None = None
    stability: float | None = None


class Segmenter(Protocol):
    """Proposes masks."""

    def propose(self, image: Image.Image) -> tuple[list[Proposal], Counter[str]]:
        """Masks that hold a pixel and pass the segmenter's own scores; ``made``, and how many did not pass, by reason."""


class MasksStage(Stage):
    """The first stage: images of a shard to regions."""

    name = "masks"

    def __init__(self, config: dict[str, Any], model: str, settings: MasksConfig, device: str, cut_shards: str) -> None:
        super().__init__(config, model)
        self.settings, self.device, self.cut_shards = settings, device, cut_shards

    def start(self) -> None:
        """Load the segmenter."""
        self.segmenter = load_segmenter(self.settings, self.device)

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:  # noqa: ARG002 (the first stage)
        """As of ``Stage``."""
        records: list[ImageRecord] = []
        rejected: list[tuple[str, str]] = []
        for item in shard.images():
            if not isinstance(item, InputImage):
                if item.reason == CUT and self.cut_shards == "stop":
                    raise FormatError(
                        f"{shard.path}: ends early, the images behind the cut are lost; bring the shard back, or set cut_shards: use"
                    )
                rejected.append((item.key, item.reason))
                continue
            try:
                image = item.decode()
            except FormatError:
                rejected.append((item.key, DAMAGED_IMAGE))
                continue
            proposals, counts = self.segmenter.propose(image)
            record = ImageRecord(item.key, image.width, image.height, item.text)
            record.regions, more = chosen(proposals, image.size, item.key, self.settings)
            record.proposals = dict(sorted((counts + more).items()))
            records.append(record)
        return made_of(records, rejected)


def chosen(
    proposals: Sequence[Proposal], size: tuple[int, int], key: str, rules: MasksConfig
) -> tuple[list[Region], Counter[str]]:
    """The regions of an image (those that a rule drops marked so), from top left to bottom right, and how many proposals overlapped better ones."""
    best = best_of(proposals, rules.box_nms)
    regions = []
    for proposal in best:
        region = Region(
            "",
            proposal.box,
            encode_mask(proposal.mask),
            int(proposal.mask.sum()),
            proposal.predicted_iou,
            proposal.stability,
        )
        reason = unwanted(region.box, region.area, size, rules)
        if reason is not None:
            region.drop(MasksStage.name, reason)
        regions.append(region)
    wanted = sorted(
        (r for r in regions if r.dropped is None), key=lambda r: (r.predicted_iou or 1) * r.area, reverse=True
    )
    for region in wanted[rules.most_regions :] if rules.most_regions else ():
        region.drop(MasksStage.name, TOO_MANY)
    regions.sort(key=lambda r: (r.box[1], r.box[0], r.box[3], r.box[2], r.rle))
    for number, region in enumerate(regions):
        region.id = f"{key}:{number}"
    return regions, Counter({OVERLAPS: len(proposals) - len(best)} if len(best) < len(proposals) else {})


def best_of(proposals: Sequence[Proposal], most_iou: float) -> list[Proposal]:
    """Proposals of which no better one has a box that overlaps by more than ``most_iou``; of equal ones the larger mask is better."""
    if not proposals:
        return []
    ranked = sorted(proposals, key=lambda p: (-(p.predicted_iou or 0), -int(p.mask.sum()), p.box))
    boxes = np.array([p.box for p in ranked])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = np.ones(len(ranked), dtype=bool), []
    for i, proposal in enumerate(ranked):
        if left[i]:
            kept.append(proposal)
            sides = np.minimum(boxes[i, 2:], boxes[:, 2:]) - np.maximum(boxes[i, :2], boxes[:, :2])
            shared = sides.clip(min=0).prod(axis=1)
            left &= shared <= most_iou * (areas[i] + areas - shared)
    return kept


def unwanted(box: Sequence[float], area: int, size: tuple[int, int], rules: MasksConfig) -> str | None:
    """Why a region is dropped by the rules of sides, area and border; none if it is not."""
    width, height = size
    sides = box[2] - box[0], box[3] - box[1]
    if min(sides) < rules.min_side:
        return SMALL_SIDE
    if area < rules.min_area * width * height:
        return SMALL_AREA
    if sides[0] * sides[1] > rules.max_area * width * height:
        return LARGE
    at_border = box[0] <= 0 or box[1] <= 0 or box[2] >= width or box[3] >= height
    return SLIVER if at_border and min(sides) < rules.border_side else None


def load_segmenter(settings: MasksConfig, device: str) -> Segmenter:
    """The segmenter of a configuration."""
    return Felzenszwalb(settings) if settings.segmenter == "felzenszwalb" else Sam(settings, device)


class Felzenszwalb:
    """scikit-image's graph-based segmentation: every pixel belongs to one region."""

    def __init__(self, settings: MasksConfig) -> None:
        self.settings = settings

    def propose(self, image: Image.Image) -> tuple[list[Proposal], Counter[str]]:
        """As of ``Segmenter``."""
        from skimage.segmentation import felzenszwalb

        settings = self.settings
        labels = felzenszwalb(
            np.asarray(image),
            scale=settings.felzenszwalb_scale,
            sigma=settings.felzenszwalb_sigma,
            min_size=settings.felzenszwalb_min_size,
        )
        masks = [labels == label for label in range(int(labels.max()) + 1)]
        found = [Proposal(mask, box_of_mask(mask)) for mask in masks if mask.any()]
        return found, Counter({MADE: len(found)})


class Sam:
    """transformers' ``SamModel`` or ``Sam2Model`` asked at the points of a grid, three masks a point.

    The grid, the scores and the upsampling are our own: transformers' pipeline loses the last points where the grid is no multiple of a batch.
    """

    def __init__(self, settings: MasksConfig, device: str) -> None:
        import transformers

        from rb.core.device import usable_device

        folder = Path(settings.model)
        model_files(folder, "masks.model")
        kind: Any = {"sam": transformers.SamModel, "sam2": transformers.Sam2Model}[settings.segmenter]
        self.settings, self.device = settings, usable_device(device)
        self.dtype = getattr(torch, settings.dtype)
        self.model = read_model(kind, folder, "masks.model", self.dtype).to(self.device).eval()
        self.side = int(self.model.config.prompt_encoder_config.image_size)

    @torch.inference_mode()
    def propose(self, image: Image.Image) -> tuple[list[Proposal], Counter[str]]:
        """As of ``Segmenter``."""
        found: list[Proposal] = []
        counts: Counter[str] = Counter()
        pixels, (height, width) = model_pixels(image, self.side, keep_aspect=self.settings.segmenter == "sam")
        embeddings = self.model.get_image_embeddings(pixels.to(self.device, self.dtype))
        for points in grid(self.settings.points_per_side, width, height).split(self.settings.points_per_batch):
            output = self.model(
                image_embeddings=embeddings,
                input_points=points[None, :, None].to(self.device, self.dtype),  # [1, N, 1, 2]
                input_labels=torch.ones(1, len(points), 1, dtype=torch.int64, device=self.device),
                multimask_output=True,
            )
            scores = output.iou_scores[0].flatten().float().cpu()  # [N * 3]
            low = output.pred_masks[0].flatten(0, 1).float()  # [N * 3, h, w] logits
            self._sort_out(low, scores, pixels.shape[-2:], (height, width), image.size, found, counts)
        return found, counts

    def _sort_out(
        self,
        low: Tensor,
        scores: Tensor,
        padded: Sequence[int],
        seen: tuple[int, int],
        size: tuple[int, int],
        found: list[Proposal],
        counts: Counter[str],
    ) -> None:
        """Add a batch's proposals; only those of a sufficient score are brought to the image's size, one by one."""
        counts[MADE] += len(scores)
        for mask, score in zip(low, scores.tolist(), strict=True):
            if score < self.settings.predicted_iou:
                counts[LOW_IOU] += 1
                continue
            steady = stability(mask, self.settings.stability_offset)
            if steady < self.settings.stability:
                counts[UNSTABLE] += 1
                continue
            large = F.interpolate(mask[None, None], tuple(padded), mode="bilinear", align_corners=False)
            large = F.interpolate(
                large[..., : seen[0], : seen[1]], (size[1], size[0]), mode="bilinear", align_corners=False
            )
            pixels = (large[0, 0] > 0).cpu().numpy()
            if not pixels.any():
                counts[EMPTY] += 1
                continue
            found.append(Proposal(pixels, box_of_mask(pixels), score, steady))


def model_pixels(image: Image.Image, side: int, keep_aspect: bool) -> tuple[Tensor, tuple[int, int]]:
    """Pixels as SAM reads them, [1, 3, side, side] float32, and the (height, width) of the image in them; below and right of it are zeros.

    As transformers' processors do, which for SAM 2 need torchvision.

    Args:
        keep_aspect: bring the longer edge to ``side`` (SAM), or squash (SAM 2).
    """
    scale = side / max(image.size)
    width, height = (int(v * scale + 0.5) for v in image.size) if keep_aspect else (side, side)
    width, height = max(width, 1), max(height, 1)
    numbers = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    pixels = torch.zeros(1, 3, side, side)
    pixels[0, :, :height, :width] = torch.from_numpy((numbers - MEAN) / STD).permute(2, 0, 1)
    return pixels, (height, width)


def grid(per_side: int, width: int, height: int) -> Tensor:
    """The middles of ``per_side`` x ``per_side`` equal cells, row by row: x, y in pixels, [per_side ** 2, 2]."""
    steps = (torch.arange(per_side, dtype=torch.float32) + 0.5) / per_side
    y, x = torch.meshgrid(steps * height, steps * width, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def stability(mask: Tensor, offset: float) -> float:
    """IoU of a mask's logits [h, w] above ``offset`` and above ``-offset``; 0 where the larger one is empty."""
    union = int((mask > -offset).sum())
    return int((mask > offset).sum()) / union if union else 0.0
