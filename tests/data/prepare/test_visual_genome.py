"""The Visual Genome converter on hand-written raw files in the true forms: four protocols, both versions, COCO's photos, every reason of rejection."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rb.data.compare_sets import shared
from rb.data.prepare import coco, visual_genome
from tests.support.raw_data import cli_run, convert, found, jpeg, reasons
from tests.support.remedies import Said, covers, helps, remedy

OTHERS = covers(
    [
        "no image has more than one region, so this is no file of GRiT's; see --protocol glamm",
        "image {} has {} regions, GLaMM's file has one; see --protocol grit",
    ]
)
URL = "https://cs.stanford.edu/people/rak248/VG_100K_2/{}.jpg"


def region(
    number: int, phrase: str = "the clock is green in colour", box=(4, 5, 10, 12), image: int = 1
) -> dict[str, Any]:
    """A region of version 1.2."""
    x, y, width, height = box
    return {"region_id": number, "width": width, "height": height, "image_id": image, "phrase": phrase, "y": y, "x": x}


def old_region(number: int, phrase: str, image: int) -> dict[str, Any]:
    """A region of version 1.0."""
    return {"id": number, "image": image, "height": 12, "width": 10, "phrase": phrase, "x": 4, "y": 5}


def photo(number: int, coco_id: int | None = None, size: tuple[int, int] = (32, 24)) -> dict[str, Any]:
    """A row of image_data.json."""
    row = {"width": size[0], "url": URL.format(number), "height": size[1], "image_id": number}
    return {**row, "coco_id": coco_id, "flickr_id": None if coco_id is None else 10_000 + number}


def genome_raw(folder: Path, images: dict[int, list[dict]], photos: list[dict] | None = None, **files: Any) -> Path:
    """``images``: number -> its regions; odd numbers lie in VG_100K. ``files``: further JSON files."""
    for name in ("VG_100K", "VG_100K_2"):
        (folder / name).mkdir(parents=True)
    for number in images:
        (folder / ("VG_100K_2", "VG_100K")[number % 2] / f"{number}.jpg").write_bytes(jpeg())
    contents = {
        "region_descriptions": [{"regions": regions, "id": number} for number, regions in images.items()],
        "image_data": photos or [photo(number) for number in images],
        **files,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def coco_style(images: dict[int, int], name: str = "{}.jpg") -> dict[str, Any]:
    """GRiT's form: number of an image -> how many regions it has."""
    entries = [{"id": n, "file_name": name.format(n), "width": 32, "height": 24} for n in images]
    owners = [number for number, count in images.items() for _ in range(count)]
    rows = [
        {
            "id": i,
            "image_id": n,
            "bbox": [1.5, 2, 20, 10],
            "area": 200,
            "iscrowd": 0,
            "category_id": 1,
            "caption": f"thing {i}",
        }
        for i, n in enumerate(owners, 1)
    ]
    return {"images": entries, "annotations": rows, "categories": [{"id": 1, "name": "object"}]}


def test_densecap_makes_three_splits_of_the_descriptions(tmp_path: Path) -> None:
    images = {
        1: [region(1382), region(900100184613, "a tall, brown\nsign ")],
        2: [region(5, image=2)],
        3: [region(6)],
        4: [region(7)],
    }
    photos = [photo(1), photo(2, 139), photo(3), photo(4), photo(5)]
    splits = {"test": [3], "val": [2], "train": [5, 1]}  # image 4 is in no split
    raw = genome_raw(tmp_path / "raw", images, photos, densecap_splits=splits)
    assert cli_run("prepare", "visual_genome", "--raw", str(raw), "--out", str(tmp_path / "out"), "--split", "all") == 0
    sets = {split: found(tmp_path / "out" / split) for split in ("train", "val", "test")}
    assert {split: [*records] for split, records in sets.items()} == {
        "train": ["visual_genome/1"],
        "val": ["coco/139"],
        "test": ["visual_genome/3"],
    }
    record = sets["train"]["visual_genome/1"].record
    assert (record.dataset, record.width, record.height, record.captions) == ("visual_genome_densecap", 32, 24, [])
    assert [(item.object_id, item.box, item.captions) for item in record.objects] == [
        ("vg1382", [4, 5, 14, 17], ["the clock is green in colour"]),
        ("vg900100184613", [4, 5, 14, 17], ["a tall, brown sign"]),
    ]
    tally = convert(visual_genome, raw, tmp_path / "again", "train")
    assert (tally.unit, tally.read, tally.used, tally.captions) == ("regions", 2, 2, 2)
    assert tally.notes["images of the split without regions"] == 1


def test_all_images_and_version_1_0(tmp_path: Path) -> None:
    images = {1: [old_region(1, "a lamp", 1)], 2: [old_region(2, "a cat", 2)]}
    raw = genome_raw(tmp_path / "raw", images)
    tally = convert(visual_genome, raw, tmp_path / "out", "train", protocol="all")
    records = found(tmp_path / "out")
    assert [*records] == ["visual_genome/1", "visual_genome/2"]
    assert records["visual_genome/2"].record.dataset == "visual_genome"
    assert records["visual_genome/2"].record.objects[0].object_id == "vg2"
    assert tally.used == 2


def test_the_test_sets_of_grit_and_glamm_are_never_taken_for_each_other(tmp_path: Path) -> None:
    grit, glamm = coco_style({1: 2, 2: 3}), coco_style({2: 1, 1: 1}, "VG_100K/{}.jpg")
    for entry, row in zip(glamm["images"], glamm["annotations"], strict=True):
        entry["id"] = row["image_id"] = row["id"] = (
            70 + row["id"]
        )  # running numbers; the file's name says which image it is
    photos = [photo(1), photo(2, 139)]
    raw = genome_raw(tmp_path / "raw", {1: [], 2: []}, photos, test=grit)
    (raw / "annotations").mkdir()
    (raw / "annotations/test_caption.json").write_text(json.dumps(glamm))
    tally = convert(visual_genome, raw, tmp_path / "grit", "test", protocol="grit")
    full = found(tmp_path / "grit")
    assert {source: len(item.record.objects) for source, item in full.items()} == {"visual_genome/1": 2, "coco/139": 3}
    first = full["visual_genome/1"].record.objects[0]
    assert (first.object_id, first.box, first.captions) == ("grit1", [1.5, 2, 21.5, 12], ["thing 1"])
    assert (tally.read, tally.used, tally.notes["images that COCO has, too"]) == (5, 5, 1)
    assert (
        cli_run("prepare", "visual_genome", "--raw", str(raw), "--out", str(tmp_path / "glamm"), "--protocol", "glamm")
        == 0
    )
    subset = found(tmp_path / "glamm")
    assert {source: [o.object_id for o in item.record.objects] for source, item in subset.items()} == {
        "coco/139": ["glamm71"],
        "visual_genome/1": ["glamm72"],
    }
    names = {item.record.dataset for records in (full, subset) for item in records.values()}
    assert names == {"visual_genome_grit", "visual_genome_glamm"}
    with pytest.raises(ValueError, match=r"--split train: protocol grit has test"):
        convert(visual_genome, raw, tmp_path / "no", "train", protocol="grit")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("protocol", "other", "says"),
    [("grit", "glamm", OTHERS[0]), ("glamm", "grit", OTHERS[1])],
)
def test_a_file_of_the_other_protocol_is_refused(tmp_path: Path, protocol: str, other: str, says: str) -> None:
    files = {"grit": "test", "glamm": "test_caption"}
    content = coco_style({1: 1, 2: 1} if other == "glamm" else {1: 2})
    raw = genome_raw(tmp_path / "raw", {1: [], 2: []}, **{files[protocol]: content})
    chosen = {"protocol": protocol}

    def follow(said: Said) -> None:
        chosen["protocol"] = said.found(r"see --protocol (\w+)")
        (raw / f"{files[protocol]}.json").rename(raw / f"{files[other]}.json")

    helps(says, lambda: convert(visual_genome, raw, tmp_path / "out", "test", **chosen), follow)


@remedy("{}: no image (1.jpg) in {}. The raw folder should look like this:\n{}")
def test_the_folder_of_images_is_another(tmp_path: Path):
    raw = genome_raw(tmp_path / "raw", {1: [region(1)]})
    (raw / "VG_100K").rename(tmp_path / "photos")
    follow = lambda said: (tmp_path / "photos").rename(raw / said.found(r"RAW/(VG_100K)/"))  # noqa: E731
    return lambda: convert(visual_genome, raw, tmp_path / "out", "train", protocol="all"), follow


def test_a_photo_of_coco_is_found_by_its_id_and_a_rescaled_one_by_its_look(tmp_path: Path) -> None:
    def blots(seed: int, size: tuple[int, int]) -> bytes:
        stream = io.BytesIO()
        grey = np.random.default_rng(seed).integers(0, 255, (12, 16), dtype=np.uint8)
        Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB").save(stream, "JPEG", quality=95)
        return stream.getvalue()

    entries = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "cocoid": n,
            "split": "val",
            "sentences": [{"raw": "a cat"}],
        }
        for n in (139, 285, 632)
    ]
    first = tmp_path / "coco"
    (first / "val2014").mkdir(parents=True)
    (first / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for entry in entries:
        (first / "val2014" / entry["filename"]).write_bytes(blots(entry["cocoid"], (160, 120)))
    convert(coco, first, tmp_path / "coco_val", "val")
    # Visual Genome has 139 and 285 scaled down, and says it of 139 alone; a second image claims 139, too.
    photos = [photo(1, 139, (128, 96)), photo(2, None, (128, 96)), photo(3, 139, (128, 96))]
    raw = genome_raw(tmp_path / "raw", {n: [region(n, box=(60, 50, 60, 40))] for n in (1, 2, 3)}, photos)
    for number, seed in ((1, 139), (2, 285), (3, 7)):
        (raw / ("VG_100K_2", "VG_100K")[number % 2] / f"{number}.jpg").write_bytes(blots(seed, (128, 96)))
    tally = convert(visual_genome, raw, tmp_path / "vg", "train", protocol="all")
    records = found(tmp_path / "vg")
    assert [*records] == ["coco/139", "visual_genome/2", "visual_genome/3"]
    assert records["coco/139"].record.objects[0].box == [60, 50, 120, 90]  # in Visual Genome's own pixels
    assert tally.notes["images whose coco_id an earlier image has"] == 1
    both = shared(tmp_path / "coco_val", tmp_path / "vg")
    assert (both.ids, both.media) == (["coco/139"], [("coco/285", "visual_genome/2")])


def test_what_cannot_be_used_is_rejected_and_counted(tmp_path: Path) -> None:
    bad = [
        region(1),
        region(1, "again"),
        region(2, "..."),
        region(3, box=(4, -904, 10, 12)),  # as in the published file
        region(4, box=(4, 5, 0, 12)),
        region(5, box=(-1, 5, 10, 12)),  # one pixel is cut
        {**region(6), "x": None},
        {**region(7), "region_id": "7"},
        "no region",
    ]
    images = {1: bad, 2: [region(10)], 3: [region(11), region(12)], 4: [region(13)], 5: [region(14)]}
    raw = genome_raw(tmp_path / "raw", images, [photo(1), photo(2), photo(4, size=(24, 32)), photo(5), {"width": 3}])
    (raw / "VG_100K_2/2.jpg").unlink()
    (raw / "VG_100K/5.jpg").write_bytes(jpeg()[:300])
    entries = json.loads((raw / "region_descriptions.json").read_text())
    entries += [{"regions": [region(20)], "id": None}, {"id": 9, "regions": 3}, 5]
    text = json.dumps(entries).replace('"x": null', '"x": NaN')
    (raw / "region_descriptions.json").write_text(text)
    tally = convert(visual_genome, raw, tmp_path / "out", "train", protocol="all")
    (record,) = [item.record for item in found(tmp_path / "out").values()]
    assert [(item.object_id, item.box[0]) for item in record.objects] == [("vg1", 4), ("vg5", 0)]
    expected = {
        "duplicate_source": 1,
        "no_caption": 1,
        "box_outside_image": 1,
        "box_empty": 2,
        "malformed_row": 2 + 3,  # regions, entries
        "image_missing": 1,
        "unknown_image": 2,  # image 3 is not in image_data.json
        "image_size_mismatch": 1,
        "unreadable_image": 1,
    }
    assert dict(reasons(tmp_path / "out")) == dict(tally.rejected) == expected
    assert (tally.read, tally.used) == (sum(expected.values()) + 2, 2)


def test_annotations_without_an_image_are_counted(tmp_path: Path) -> None:
    content = coco_style({1: 2, 2: 1})
    content["images"] = [content["images"][0], "none", {"id": None}]
    content["annotations"] += [None, {**content["annotations"][0], "id": 9, "bbox": [1, 2, "3", 4]}]
    raw = genome_raw(tmp_path / "raw", {1: [], 2: []}, train=content)
    tally = convert(visual_genome, raw, tmp_path / "out", "train", protocol="grit")
    assert dict(tally.rejected) == {"malformed_row": 3, "unknown_image": 1, "box_empty": 1}
    assert (tally.read, tally.used) == (7, 2)


def test_clear_errors(tmp_path: Path) -> None:
    raw = genome_raw(tmp_path / "raw", {1: [region(1)]})
    with pytest.raises(ValueError, match=r"densecap_splits\.json.*: not found\. The raw folder should look like this"):
        visual_genome.open_raw(raw)
    (raw / "densecap_splits.json").write_text('{"train": [1], "val": [], "test": ["2"]}')
    with pytest.raises(ValueError, match=r"densecap_splits\.json: test must be a list of image numbers"):
        visual_genome.open_raw(raw)
    for protocol, name in (("grit", "train.json"), ("glamm", "test_caption.json")):
        with pytest.raises(ValueError, match=rf"{name}.*: not found\. The raw folder"):
            visual_genome.open_raw(raw, protocol=protocol)
    (raw / "region_descriptions.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"region_descriptions\.json: .*must be a list"):
        convert(visual_genome, raw, tmp_path / "out", "train", protocol="all")
    (raw / "image_data.json").unlink()
    with pytest.raises(ValueError, match=r"image_data\.json: not found"):
        visual_genome.open_raw(raw, protocol="all")
    assert not (tmp_path / "out").exists()
