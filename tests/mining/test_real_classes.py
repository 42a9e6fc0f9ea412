"""SAM, SAM 2, BLIP-2 and CLIP's text tower, the real classes with random weights, through every stage: batches, empty masks, regions of one pixel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb.core.config import FoundationConfig
from rb.data.index import ManifestReader
from rb.mining.captioners import Asked, RunCaptioner
from rb.mining.config import CaptionerConfig, MiningConfig, Writing, load_mining
from rb.mining.finish import finish
from rb.mining.inputs import find_inputs
from rb.mining.record import Dropped, ImageRecord, Region, parse_records
from rb.mining.screen import SCREEN
from rb.mining.settings import FinishConfig
from rb.mining.stage import stage_file
from rb.mining.stages import build_stages
from rb.mining.texts import NO_NAME
from rb.mining.views import encode_mask
from tests.mining.test_stage import write_tar
from tests.support.mining_models import write_blip2, write_clip, write_sam

SIZES = {"noise": (50, 30), "pixel": (1, 1), "line": (1, 40)}  # width, height
POINTS, BATCH = 2, 3  # 4 points in batches of 3


def picture(size: tuple[int, int]) -> bytes:
    """Noise."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def one_pixel(record: ImageRecord) -> list[Region]:
    """Regions of one pixel in the four corners and inside."""
    last_x, last_y = record.width - 1, record.height - 1
    made = []
    for x, y in ((0, 0), (last_x, 0), (0, last_y), (last_x, last_y), (7, 5)):
        mask = np.zeros((record.height, record.width), dtype=bool)
        mask[y, x] = True
        box = [float(v) for v in (x, y, x + 1, y + 1)]
        made.append(Region(f"{record.key}:{x}-{y}", box, encode_mask(mask), 1, 0.9, 0.9))
    return made


@pytest.fixture(scope="module", params=["sam", "sam2"])
def config(
    request: pytest.FixtureRequest, foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory
) -> MiningConfig:
    """The preset of the paper, with small models, and with rules that keep nearly everything."""
    folder = tmp_path_factory.mktemp(request.param)
    masks = {
        "segmenter": request.param,
        "model": write_sam(folder / "segmenter", request.param),
        "points_per_side": POINTS,
        "points_per_batch": BATCH,
        "predicted_iou": 0,
        "stability": 0,
        "min_side": 0,
        "min_area": 0,
        "max_area": 1,
        "box_nms": 1,
    }
    settings = [f"masks.{name}={value}" for name, value in masks.items()]
    settings += [f"captioner.model={write_blip2(folder / 'blip2', foundation)}", "captioner.batch_size=3"]
    settings += [f"filter.encoder.model={write_clip(folder / 'clip', foundation)}"]
    settings += ["filter.threshold={value: -1, encoder: 'clip {}'}", "screen.same_place=1"]
    settings += [f"{stage}.writing.max_new_tokens=5" for stage in ("caption", "name", "describe")]
    return load_mining("paper", settings)


def test_every_stage_takes_every_region(config: MiningConfig, tmp_path: Path) -> None:
    images = {f"{name}.png": picture(size) for name, size in SIZES.items()}
    (shard,) = find_inputs([str(write_tar(tmp_path / "in" / "0.tar", images | {"bad.png": b"bad"}))])
    stages = build_stages(config, tmp_path / "out")
    made = stages[0].make(shard, [])
    assert made.rejected == (("in/bad", "damaged image"),)
    records = parse_records(made.content, "masks")
    assert [(record.key, (record.width, record.height)) for record in records] == [
        (f"in/{name}", size) for name, size in SIZES.items()
    ]
    for record in records:
        counts = dict(record.proposals)
        assert counts.pop("made") == POINTS * POINTS * 3
        assert sum(counts.values()) + len(record.regions) == POINTS * POINTS * 3, "none is lost over batches"
    pixel = records[1].regions
    assert all((region.box, region.area) == ([0, 0, 1, 1], 1) for region in pixel)
    assert pixel, "the picture of one pixel has a region"
    records[0].regions += one_pixel(records[0])
    ids = [region.id for record in records for region in record.regions]

    for stage in stages[1:]:
        made = stage.make(shard, records)
        records = parse_records(made.content, stage.name)
        assert [region.id for record in records for region in record.regions] == ids
        assert made.rejected == ()
    for record in records:
        assert record.caption
        for region in record.regions:
            assert region.name_logprob is not None
            assert np.isfinite(region.name_logprob)
            assert region.name or region.dropped == Dropped("name", NO_NAME)
            if region.dropped is None:
                assert region.chunks
                assert region.text
                assert -1 <= (region.similarity or 0) <= 1
    left = {region.id: region for record in records for region in record.kept}
    small = [region for region in left.values() if region.area == 1]
    assert small, f"regions of one pixel are kept to the end: {sorted(left)}"

    stage_file(tmp_path / "out", SCREEN, 0).parent.mkdir(parents=True)
    stage_file(tmp_path / "out", SCREEN, 0).write_bytes(made.content)
    done, _ = finish(tmp_path / "out", [shard], SCREEN, FinishConfig(near_bits=0))
    reader = ManifestReader(tmp_path / "out" / "shards")
    assert done.regions == len(reader) == len(left)
    found = {
        (one.record.source_id, *one.item.box): one.caption for one in map(reader.sample, range(len(reader))) if one.item
    }
    assert found == {(id_.rpartition(":")[0], *region.box): region.text for id_, region in left.items()}


def test_a_run_of_ours_describes_boxes_of_one_pixel(finished: Path) -> None:
    captioner = RunCaptioner(CaptionerConfig("run", str(finished / "run"), batch_size=2), "cpu")
    image = Image.open(io.BytesIO(picture((50, 30)))).convert("RGB")
    boxes = [(0, 0, 1, 1), (49, 29, 50, 30), (10, 10, 30, 20)]
    found = captioner.write([Asked(image, "", box) for box in boxes], Writing(max_new_tokens=4))
    assert len(found) == 3
    assert all(np.isfinite(one.logprob) for one in found)
