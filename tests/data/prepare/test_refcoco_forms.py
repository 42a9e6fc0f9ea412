"""RefCOCO in the forms of others: the same boxes and captions as from the refer tool's files; odd and hostile rows are counted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rb.data.prepare import refcoco
from rb.data.prepare.common import Conversion
from rb.data.prepare.convert import Writing
from rb.data.prepare.convert import convert as convert_plan
from rb.data.shard_writer import DryRun
from tests.data.prepare.test_refcoco import ref, refcoco_raw
from tests.support.raw_data import convert, found, jpeg, reasons
from tests.support.remedies import remedy

BOXES = {11: (1, [1.5, 2.25, 10.1, 5.3]), 12: (1, [3.3, 4, 5, 6]), 21: (2, [0, 0, 32, 24])}
REFS = [
    ref(1, 11, 1, "val", texts=("left man", "man in red")),
    ref(2, 12, 1, "val"),
    ref(3, 21, 2, "val", texts=("all of it",)),
    ref(4, 11, 1, "val", texts=("him",)),
    ref(5, 21, 2, "testA", texts=("everything",)),
]
SIZE = {"width": 32, "height": 24}
PICTURE = jpeg(kind="PNG")  # inside a Parquet file


def coco_images(folder: Path) -> Path:
    (folder / "images/train2014").mkdir(parents=True)
    for number in (1, 2):
        (folder / f"images/train2014/COCO_train2014_{number:012d}.jpg").write_bytes(jpeg())
    return folder


def mdetr(split: str, **changes: Any) -> dict[str, Any]:
    """As MDETR's script makes it of ``REFS``: an image entry a sentence."""
    images, annotations = [], []
    for one in (one for one in REFS if one["split"] == split):
        for sentence in one["sentences"]:
            number, image = len(images), one["image_id"]
            name = f"COCO_train2014_{image:012d}.jpg"
            more = {"dataset_name": "refcoco", "tokens_negative": [[0, 4]]}
            images.append(
                {"file_name": name, **SIZE, "id": number, "original_id": image, "caption": sentence["sent"], **more}
            )
            box = BOXES[one["ann_id"]][1]
            annotations.append({"id": number, "image_id": number, "original_id": one["ann_id"], "bbox": box, **changes})
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": [{"id": 1}]}


def jxu_rows() -> list[dict[str, Any]]:
    rows = []
    for one in REFS:
        x, y, w, h = BOXES[one["ann_id"]][1]
        info = json.dumps({"id": one["image_id"], **SIZE})
        box = [float(v) for v in (x, y, x + w, y + h)]
        path = f"coco/train2014/COCO_train2014_{one['image_id']:012d}.jpg"
        rows.append({**one, "bbox": box, "raw_image_info": info, "raw_anns": "{}", "image_path": path})
    return rows


def lmms_rows(split: str) -> list[dict[str, Any]]:
    return [
        {
            "question_id": str(one["ann_id"]),
            "image": {"bytes": PICTURE, "path": None},
            "question": "Provide a short description for this region.",
            "answer": [sentence["sent"] for sentence in one["sentences"]],
            "bbox": BOXES[one["ann_id"]][1],
            "file_name": one["file_name"],
        }
        for one in REFS
        if one["split"] == split
    ]


def parquet(path: Path, rows: list[dict[str, Any]], float32: bool = False) -> None:
    table = pyarrow.Table.from_pylist(rows)
    if float32:
        column = pyarrow.array([row["bbox"] for row in rows], pyarrow.list_(pyarrow.float32()))
        table = table.set_column(table.column_names.index("bbox"), "bbox", column)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def regions(out: Path) -> dict[str, list[tuple[list[float], list[str]]]]:
    return {key: [(o.box, o.captions) for o in one.record.objects] for key, one in found(out).items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """From the pickle."""
    folder = tmp_path_factory.mktemp("refer")
    raw = refcoco_raw(folder / "raw", REFS, BOXES, split_by="unc")
    answer = {}
    for split in ("val", "testA"):
        convert(refcoco, raw, folder / split, split, split_by="unc")
        answer[split] = regions(folder / split)
    return answer


def test_mdetr_s_json_gives_what_the_pickle_gives(tmp_path: Path, expected: dict[str, Any]) -> None:
    raw = coco_images(tmp_path / "raw")
    (raw / "mdetr_annotations").mkdir()
    for split in ("val", "testA"):
        (raw / f"mdetr_annotations/finetune_refcoco_{split}.json").write_text(json.dumps(mdetr(split)))
    opened = refcoco.open_raw(raw)
    assert opened.splits == ("val", "testA")
    for split in opened.splits:
        plan = opened.plan(split)
        tally = convert_plan(plan, tmp_path / split, Writing())
        assert regions(tmp_path / split) == expected[split]
        assert (plan.name, plan.unit, tally.rejected) == ("refcoco_unc", "sentences", {})
    assert [o.object_id for o in found(tmp_path / "val")["coco/1"].record.objects] == ["11", "12"]
    with pytest.raises(ValueError, match=r"MDETR's files: no split 'train'; there is val, testA"):
        opened.plan("train")


def test_sentences_that_reviewers_found_wrong_are_left_out(tmp_path: Path, expected: dict[str, Any]) -> None:
    raw = coco_images(tmp_path / "raw")
    content = mdetr("val", caption_quality=1)
    content["annotations"][1]["caption_quality"] = 0
    (raw / "refcoco_val_reviewed.json").write_text(json.dumps(content))
    tally = convert(refcoco, raw, tmp_path / "out", "val")
    assert tally.rejected == {"reviewed_as_wrong": 1}
    assert regions(tmp_path / "out")["coco/1"][0][1] == ["left man", "him"]


def test_parquet_mirrors_give_what_the_pickle_gives(tmp_path: Path, expected: dict[str, Any]) -> None:
    raw = coco_images(tmp_path / "jxu")
    parquet(raw / "data/train-00000-of-00001-0a1b2c.parquet", jxu_rows())
    assert refcoco.open_raw(raw).splits == ("val", "testA")
    convert(refcoco, raw, tmp_path / "a", "val")
    assert regions(tmp_path / "a") == expected["val"]
    convert(refcoco, raw, tmp_path / "b", "testA", sentence="raw")
    assert regions(tmp_path / "b")["coco/2"][0][1] == ["EVERYTHING"]
    raw = tmp_path / "lmms"
    for split in ("val", "testA"):
        parquet(raw / f"data/{split}-00000-of-00001.parquet", lmms_rows(split), float32=True)
    opened = refcoco.open_raw(raw)
    assert opened.splits == ("val", "testA")
    assert convert_plan(opened.plan("val"), tmp_path / "c", Writing()).rejected == {}
    assert found(tmp_path / "c")["coco/2"].media == PICTURE
    convert(refcoco, raw, tmp_path / "d", "val", images=tmp_path / "jxu/images")
    assert (regions(tmp_path / "d"), found(tmp_path / "d")["coco/2"].media) == (regions(tmp_path / "c"), jpeg())
    for image, objects in regions(tmp_path / "c").items():
        for (box, captions), (exact, same) in zip(objects, expected["val"][image], strict=True):
            assert box == pytest.approx(exact, abs=1e-5)  # this mirror has 32 bits
            assert captions == same


def test_an_image_that_a_parquet_file_lacks_costs_its_own_rows(tmp_path: Path) -> None:
    """In two files; a conversion that goes on in the middle passes over the items before."""
    rows = lmms_rows("val")
    rows[0]["image"]["bytes"] = None
    rows[2]["file_name"] = "x.jpg"
    others = [{**row, "file_name": f"COCO_train2014_{k:012d}.jpg"} for k, row in enumerate(lmms_rows("val"), 50)]
    for k, part in enumerate((rows, others)):
        parquet(tmp_path / f"raw/data/val-0000{k}-of-00002.parquet", part)
    tally = convert(refcoco, tmp_path / "raw", tmp_path / "out", "val")
    assert tally.rejected == {"image_missing": 3, "unknown_image": 1}
    assert list(found(tmp_path / "out")) == [f"coco/{k}" for k in range(50, 54)]
    plan = refcoco.open_raw(tmp_path / "raw").plan("val")
    rest = itertools.islice(plan.collect(Conversion(DryRun(plan.modality, "val"), plan.unit)), 3, None)
    assert [(item.file.source, plan.read(item).data) for item in rest] == [("coco/52", PICTURE), ("coco/53", PICTURE)]
    with pytest.raises(ValueError, match="no split 'train'; there is val"):
        convert(refcoco, tmp_path / "raw", tmp_path / "x", "train")


def ref_l4_rows() -> list[dict[str, Any]]:
    names = {"coco_1": "COCO_train2014_000000000001.jpg", "o365_922765": "objects365_v2_00922765.jpg"}
    rows = [("b1", "coco_1", "a red thing"), ("b2", "o365_922765", "an old camera"), ("b1", "coco_1", "the red thing")]
    return [
        {
            "id": k,
            "caption": text,
            "bbox": [1.5, 2.0, 8.25, 9.0],
            "bbox_area": 1.0,
            "bbox_id": box,
            "ori_category_id": "x",
        }
        | {"image_id": image, **SIZE, "file_name": names[image], "is_rewrite": k > 1, "split": "val"}
        for k, (box, image, text) in enumerate(rows)
    ]


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_ref_l4_has_images_of_coco_and_objects365(tmp_path: Path, suffix: str) -> None:
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    for row in ref_l4_rows():
        (raw / "images" / row["file_name"]).write_bytes(jpeg())
    if suffix == "parquet":
        parquet(raw / "ref-l4-val.parquet", ref_l4_rows())
    else:
        (raw / "ref-l4-val.json").write_text(json.dumps([*ref_l4_rows(), "x", {"file_name": "../../x.jpg"}]))
    tally = convert(refcoco, raw, tmp_path / "out", "val", name="ref-l4")
    assert regions(tmp_path / "out") == {
        "coco/1": [([1.5, 2.0, 9.75, 11.0], ["a red thing", "the red thing"])],
        "objects365/922765": [([1.5, 2.0, 9.75, 11.0], ["an old camera"])],
    }
    assert tally.rejected == ({} if suffix == "parquet" else {"unknown_image": 2})


def test_odd_rows_cost_themselves_only(tmp_path: Path) -> None:
    raw = coco_images(tmp_path / "raw")
    content = mdetr("val")
    more = mdetr("val")
    for k, change in enumerate(
        [{"image_id": 99}, {"bbox": [1, 2]}, {"original_id": 11}, {"bbox": [1, 2, 3, None]}, {"image_id": [1]}]
    ):
        more["annotations"][k] |= change
    more["images"][0]["id"] = "x"
    content["annotations"] += more["annotations"]
    content["images"].append({"id": 50, "original_id": -1, "caption": "x"})
    content["annotations"].append({"image_id": 50, "bbox": [1, 2, 3, 4]})
    (raw / "finetune_refcoco_val.json").write_text(json.dumps(content))
    tally = convert(refcoco, raw, tmp_path / "out", "val")
    assert reasons(tmp_path / "out") == {"unknown_image": 3, "box_empty": 2, "malformed_row": 1} == dict(tally.rejected)
    (raw / "finetune_refcoco_val.json").write_text('{"images": [1], "annotations": []}')
    with pytest.raises(ValueError, match=r"finetune_refcoco_val\.json: images: must hold objects, got 1"):
        convert(refcoco, raw, tmp_path / "x", "val")


def test_a_table_with_other_columns_is_named(tmp_path: Path) -> None:
    raw = coco_images(tmp_path / "raw")
    parquet(raw / "a.parquet", [{"x": 1}])
    with pytest.raises(ValueError, match=r"a\.parquet: has the columns x; a mirror of RefCOCO has ann_id"):
        refcoco.open_raw(raw)
    (raw / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as Parquet"):
        refcoco.open_raw(raw)


@pytest.mark.parametrize("asked", [{"name": "refclef"}, {"split_by": "berkeley"}])
def test_refclef_is_refused_by_name(tmp_path: Path, asked: dict[str, str]) -> None:
    with pytest.raises(
        ValueError, match=r"RefCLEF .* is on the photos of ImageCLEF's SAIAPR TC-12.*prepare one of refcoco,"
    ):
        refcoco.open_raw(tmp_path, **asked)


@remedy(
    "--split-by {}: {}; leave --split-by out",
    also=["--sentence raw: {}, which has the cleaned", "--drop-shared-images: {}, whose splits"],
)
def test_options_of_the_pickles_that_a_form_cannot_follow(tmp_path: Path):
    raw = coco_images(tmp_path / "raw")
    (raw / "finetune_refcoco_val.json").write_text(json.dumps(mdetr("val")))
    said: dict[str, Any] = {"split_by": "google"}
    for other in ({"sentence": "raw"}, {"drop_shared_images": True}):
        with pytest.raises(ValueError, match="holds MDETR's files, of the set refcoco_unc"):
            refcoco.open_raw(raw, **other)
    return lambda: refcoco.open_raw(raw, **said), lambda _: said.clear()
