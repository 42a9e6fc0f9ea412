"""Stage masks: the grid, the rules, and the real SamModel and Sam2Model with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rb.core.strict_json import FormatError
from rb.mining.config import MasksConfig
from rb.mining.inputs import find_inputs
from rb.mining.masks import MasksStage, Proposal, Sam, best_of, chosen, grid, load_segmenter, model_pixels, stability
from rb.mining.record import parse_records
from rb.mining.views import box_of_mask, cropped, decode_mask, encode_mask, on_white
from tests.mining.test_stage import png, write_tar
from tests.support.mining_models import write_sam

RULES = MasksConfig(segmenter="felzenszwalb", min_side=6, min_area=0.01, max_area=0.5)


def proposal(
    x1: int, y1: int, x2: int, y2: int, score: float | None = None, size: tuple[int, int] = (40, 30)
) -> Proposal:
    mask = np.zeros(size[::-1], dtype=bool)
    mask[y1:y2, x1:x2] = True
    return Proposal(mask, box_of_mask(mask), score)


def test_the_grid_is_in_the_middle_of_equal_cells() -> None:
    assert grid(2, 8, 4).tolist() == [[2, 1], [6, 1], [2, 3], [6, 3]]


def test_stability() -> None:
    assert stability(torch.tensor([[2.0, 0.5, -0.5, -3.0]]), 1.0) == pytest.approx(1 / 3)
    assert stability(torch.full((2, 2), -5.0), 1.0) == 0


def test_of_overlapping_proposals_the_better_is_kept() -> None:
    found = best_of([proposal(0, 0, 10, 10, 0.9), proposal(0, 0, 10, 9, 0.95), proposal(20, 0, 30, 10, 0.5)], 0.7)
    assert [p.box for p in found] == [[0, 0, 10, 9], [20, 0, 30, 10]]
    assert [p.box for p in best_of([proposal(0, 0, 9, 9), proposal(0, 0, 10, 9)], 0.7)] == [[0, 0, 10, 9]], "the larger"
    assert best_of([], 0.7) == []


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 5, 15, 15), None),
        ((5, 5, 10, 25), "small side"),
        ((0, 0, 39, 29), "large box"),
        ((0, 5, 7, 25), "sliver at the border"),
    ],
)
def test_rules_of_boxes(box: tuple[int, int, int, int], reason: str | None) -> None:
    ((region,), _) = chosen([proposal(*box)], (40, 30), "k", replace(RULES, border_side=8))
    assert (region.dropped and region.dropped.reason) == reason


def test_a_thin_mask_is_small_and_the_best_few_are_kept() -> None:
    thin = proposal(5, 5, 15, 15)
    thin.mask[5:15, 6:15] = False
    regions, counts = chosen(
        [thin, proposal(20, 2, 30, 12), proposal(20, 14, 38, 28), proposal(20, 14, 38, 28)],
        (40, 30),
        "k",
        replace(RULES, most_regions=1),
    )
    assert [(r.id, r.dropped and r.dropped.reason) for r in regions] == [
        ("k:0", "too many"),
        ("k:1", "small area"),
        ("k:2", None),
    ]
    assert counts == {"overlaps a better one": 1}


def test_masks_as_run_lengths_and_views() -> None:
    one = proposal(4, 6, 5, 7)  # one pixel
    assert (decode_mask(encode_mask(one.mask), (40, 30)) == one.mask).all()
    image = Image.new("RGB", (40, 30), "red")
    ((region,), _) = chosen([one], (40, 30), "k", replace(RULES, min_side=0, min_area=0))
    view = on_white(image, region, 0.0, square=True)
    assert (view.size, view.getpixel((0, 0))) == ((1, 1), (255, 0, 0))
    wide = proposal(0, 10, 20, 15)
    ((region,), _) = chosen([wide], (40, 30), "k", replace(RULES, min_side=0))
    view = on_white(image, region, 0.0, square=True)
    assert view.size == (20, 20)
    assert (np.asarray(view) == (255, 0, 0)).all(-1).sum() == 100, "only what the mask holds is seen"
    assert cropped(image, region.box, 0.0, square=True).size == (20, 20)
    assert cropped(image, region.box, 0.5, square=False).size == (30, 10), "within the image"
    assert (np.asarray(cropped(image, (0, 0, 40, 30), 0.0, square=True)) == 255).all(-1).sum() == 400, (
        "white above and below"
    )


@pytest.fixture(scope="module", params=["sam", "sam2"])
def sam(request, tmp_path_factory) -> tuple[str, Path]:
    """A folder with a random model."""
    return request.param, write_sam(tmp_path_factory.mktemp(request.param), request.param)


def test_real_segmenters_take_every_point_and_image(sam: tuple[str, Path]) -> None:
    kind, folder = sam
    rules = MasksConfig(
        kind, str(folder), points_per_side=3, points_per_batch=4, predicted_iou=0, stability=0, min_side=0, min_area=0
    )
    segmenter = load_segmenter(rules, "cpu")
    assert isinstance(segmenter, Sam)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8))
    found, counts = segmenter.propose(image)
    assert counts["made"] == 27, "9 points in batches of 4, 3 masks each"
    assert len(found) + counts["empty mask"] + counts["low predicted IoU"] == 27
    assert all(p.mask.shape == (30, 50) for p in found)
    again, _ = load_segmenter(replace(rules, points_per_batch=9), "cpu").propose(image)
    assert [p.box for p in again] == [p.box for p in found], "batches change nothing"
    none, counts = load_segmenter(replace(rules, predicted_iou=1.0), "cpu").propose(Image.new("RGB", (1, 1)))
    assert (none, counts["low predicted IoU"]) == ([], 27)


def test_pixels_are_those_of_transformers() -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8))
    theirs = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})(
        image, return_tensors="pt"
    )
    ours, seen = model_pixels(image, 64, keep_aspect=True)
    assert theirs["reshaped_input_sizes"].tolist() == [list(seen)]
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)


def test_bad_images_are_counted_and_a_cut_shard_stops(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "set" / "0.tar", {"1.png": png(), "2.png": b"bad", "3.json": b"{}", "4.png": png("blue", (30, 30))}
    )
    (shard,) = find_inputs([str(tar)])
    made = MasksStage({}, "none", RULES, "cpu", "stop").make(shard, [])
    assert (made.taken, made.rejected) == (4, (("set/2", "damaged image"), ("set/3", "no image")))
    assert [record.key for record in parse_records(made.content, "f")] == ["set/1", "set/4"]
    data = tar.read_bytes()
    tar.write_bytes(data[: data.index(b"4.png") + 520])
    (shard,) = find_inputs([str(tar)])
    with pytest.raises(FormatError, match=r"ends early.*set cut_shards: use"):
        MasksStage({}, "none", RULES, "cpu", "stop").make(shard, [])
    made = MasksStage({}, "none", RULES, "cpu", "use").make(shard, [])
    assert made.rejected[-1] == ("0.tar", "shard is cut")
