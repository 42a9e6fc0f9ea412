"""Converters: the toy world's raw files and hand-made ones, every reason of rejection, true formats, counts that add up."""

from __future__ import annotations

import csv
import io
import json
import pickle
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb.cli import main as rb
from rb.data.formats import read_manifest, read_rejected
from rb.data.prepare import cap3d, coco, objaverse, refcoco
from rb.data.tars import scan_shard
from rb.sources.points import decode_points
from rb.toy.raw import data_sets as toy_raw
from rb.toy.raw import spoil
from rb.toy.world.truth import singles_out, true_whole

SPLITS = ("train", "val", "test")


def found(out: Path):
    """Everything in a set of shards, by source id."""
    return {item.record.source_id: item for path in sorted(out.glob("*.tar")) for item in scan_shard(path)}


def reasons(out: Path) -> Counter:
    return Counter(row.reason for row in read_rejected(out / "rejected.jsonl"))


def jpeg(width=32, height=24, kind="JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Raw folders of the small toy world and one manifest folder for each data set and split, made by the commands."""
    base = tmp_path_factory.mktemp("toy")
    assert cli_run("toy-raw", "--out", str(base / "raw"), "--scale", "small", "--seed", "3") == 0
    for name in toy_raw.SCALES["small"]:
        for split in SPLITS:
            out = base / f"{name}_{split}"
            assert cli_run("prepare", name, "--raw", f"{base}/raw/{name}", "--out", f"{out}", "--split", split) == 0
    return base


def cli_run(*argv: str) -> int:
    """The command line of a converter or, as "toy-raw", of the toy world."""
    return rb(["toy", "raw", *argv[1:]] if argv[0] == "toy-raw" else list(argv))


# The toy world


@pytest.mark.parametrize("name", ["coco", "refcoco", "objaverse"])
def test_toy_world_is_used_but_for_what_is_spoiled(toy, name):
    kinds = {"coco": spoil.COCO_KINDS, "refcoco": spoil.REFCOCO_KINDS, "objaverse": spoil.OBJAVERSE_KINDS}[name]
    assert set(reasons(toy / f"{name}_train")) == set(kinds) - {"box_leans_out"}
    for split, size in toy_raw.SCALES["small"][name].items():
        out = toy / f"{name}_{split}"
        manifest = read_manifest(out)
        assert manifest.rejected == dict(reasons(out))
        assert manifest.split == split
        if split != "train":
            assert manifest.counts["records"] == size
            assert not manifest.rejected


def test_toy_captions_are_true_of_the_side_file(toy):
    for split in SPLITS:
        truth = json.loads((toy / "raw/refcoco/truth.json").read_text())
        for source, item in found(toy / f"refcoco_{split}").items():
            for region in item.record.objects:
                assert all(singles_out(text, truth[source], region.object_id) for text in region.captions)
        for name in ("coco", "objaverse"):
            truth = json.loads((toy / f"raw/{name}/truth.json").read_text())
            for source, item in found(toy / f"{name}_{split}").items():
                assert item.record.captions
                assert all(true_whole(text, truth[source]) for text in item.record.captions)


def test_toy_boxes_and_points_are_the_truth(toy):
    truth = json.loads((toy / "raw/refcoco/truth.json").read_text())
    for source, item in found(toy / "refcoco_test").items():
        boxes = {o["object_id"]: o["box"] for o in truth[source]["objects"]}
        for region in item.record.objects:
            np.testing.assert_allclose(region.box, boxes[region.object_id], atol=0.011)
    truth = json.loads((toy / "raw/objaverse/truth.json").read_text())
    for source, item in found(toy / "objaverse_test").items():
        points = decode_points(item.media, source)
        low = np.min([o["box"][:3] for o in truth[source]["objects"]], axis=0)
        high = np.max([o["box"][3:] for o in truth[source]["objects"]], axis=0)
        slack = 0.05 * (high - low).max()
        assert (points.min(0) > low - slack).all()
        assert (points.max(0) < high + slack).all()


def test_toy_splits_and_data_sets_share_no_source(toy):
    sets = [set(found(toy / f"{name}_{split}")) for name in ("coco", "refcoco", "objaverse") for split in SPLITS]
    assert sum(map(len, sets)) == len(set().union(*sets))


def test_toy_world_is_deterministic_and_never_overwrites(tmp_path):
    sizes = {name: dict.fromkeys(SPLITS, 2) for name in ("coco", "refcoco", "objaverse")}
    contents = []
    for folder in ("a", "b"):
        toy_raw.write_raw(tmp_path / folder, 1, sizes)
        files = sorted(p for p in (tmp_path / folder).rglob("*") if p.is_file())
        contents.append({str(p.relative_to(tmp_path / folder)): p.read_bytes() for p in files})
    different = {name for name in contents[0] if contents[0][name] != contents[1][name]}
    assert contents[0].keys() == contents[1].keys()
    assert not {name for name in different if not name.endswith(".npz")}
    for name in different:  # a zip holds the time it was written
        with np.load(tmp_path / "a" / name) as first, np.load(tmp_path / "b" / name) as second:
            np.testing.assert_array_equal(first["arr_0"], second["arr_0"])
    with pytest.raises(ValueError, match="not empty"):
        toy_raw.write_raw(tmp_path / "a", 1, sizes)
    with pytest.raises(ValueError, match="unknown data set 'vg'"):
        toy_raw.write_raw(tmp_path / "c", 1, {"vg": {"train": 1}})


def test_converting_twice_gives_the_same_bytes_with_any_number_of_workers(toy, tmp_path):
    for name, module in (("coco", coco), ("refcoco", refcoco), ("objaverse", objaverse)):
        for workers in (1, 3):
            module.convert(toy / "raw" / name, tmp_path / f"{name}{workers}", "train", workers=workers)
            assert (tmp_path / f"{name}{workers}/manifest.json").read_bytes() == (
                toy / f"{name}_train/manifest.json"
            ).read_bytes()


def test_the_command_prints_counts_and_a_missing_folder_is_named(toy, tmp_path, capsys):
    assert cli_run("prepare", "coco", "--raw", f"{toy}/raw/coco", "--out", f"{tmp_path}/x", "--split", "train") == 0
    shown = capsys.readouterr().out
    # 24 and one of each kind; all but the five kinds that reject are used
    assert "images read" in shown
    assert "duplicate_source" in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.split()[0] in ("used", "rejected")] == ["25", "5"]
    for name in ("coco", "refcoco", "objaverse"):
        assert cli_run("prepare", name, "--raw", f"{tmp_path}/none", "--out", f"{tmp_path}/y") == 2
        error = capsys.readouterr().err
        assert f"{tmp_path}/none/" in error
        assert ": not found. The raw folder should look like this:\n  RAW/" in error
        assert not (tmp_path / "y").exists()


# COCO


def entry(number, split="train", texts=("a red cube",), place="train2014", **changes):
    base = {"filepath": place, "filename": f"COCO_{place}_{number:012d}.jpg", "cocoid": number, "split": split}
    return {**base, "sentences": [{"raw": t, "tokens": t.split(), "sentid": 1} for t in texts], **changes}


def coco_raw(folder: Path, entries, files=None):
    folder.mkdir()
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for place in ("train2014", "val2014"):
        (folder / place).mkdir()
    for item in entries:
        name = f"{item['filepath']}/{item['filename']}"
        (folder / name).write_bytes((files or {}).get(item["cocoid"], jpeg()))
    return folder


def test_coco_keeps_original_bytes_captions_and_restval(tmp_path):
    text = "A man,\u2028with\na “red” cube\t!"
    raw = coco_raw(
        tmp_path / "raw",
        [entry(1, texts=(text, "Two. ")), entry(2, "restval", place="val2014"), entry(3, "val", place="val2014")],
        {1: jpeg(20, 10, "PNG")},
    )
    tally = coco.convert(raw, tmp_path / "train", "train")
    records = found(tmp_path / "train")
    assert list(records) == ["coco/1", "coco/2"]
    one = records["coco/1"]
    assert one.media == jpeg(20, 10, "PNG")
    assert (one.extension, one.record.width, one.record.height) == ("png", 20, 10)
    assert one.record.captions == ["A man, with a “red” cube !", "Two."]
    assert (tally.read, tally.used, tally.captions) == (2, 2, 3)
    coco.convert(raw, tmp_path / "strict", "train", restval=False)
    assert list(found(tmp_path / "strict")) == ["coco/1"]
    coco.convert(raw, tmp_path / "val", "val")
    assert list(found(tmp_path / "val")) == ["coco/3"]


def test_coco_rejects(tmp_path):
    bomb = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (20_000, 9_000)).save(bomb, "PNG")
    entries = [
        entry(1),
        entry(2, texts=("...", " \n")),
        entry(3, texts=()),
        entry(4, sentences="none"),
        entry(5),  # no file
        entry(6),  # cut short
        entry(7),  # text
        entry(8),  # a small file of 180 million pixels
        entry(1),  # again
        entry(9, cocoid="9"),
        entry(10, cocoid=None),
        entry(11, filename=7),
    ]
    raw = coco_raw(tmp_path / "raw", entries[:8], {6: jpeg()[:200], 7: b"<html>not found</html>", 8: bomb.getvalue()})
    (raw / "train2014/COCO_train2014_000000000005.jpg").unlink()
    for number, name in enumerate(("../outside.jpg", "/etc/passwd", "a/../../outside.jpg", "", "a\nb", "..\\x"), 20):
        entries.append(entry(number, filename=name))
    (tmp_path / "outside.jpg").write_bytes(jpeg())
    for name in ("9", "10"):
        (raw / f"train2014/COCO_train2014_{int(name):012d}.jpg").write_bytes(jpeg())
    (raw / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    tally = coco.convert(raw, tmp_path / "out", "train")
    assert reasons(tmp_path / "out") == {
        "no_caption": 3,
        "image_missing": 1,
        "unreadable_image": 3,
        "duplicate_source": 1,
        "unknown_image": 2,
        "unsafe_name": 7,
    }
    assert (tally.read, tally.used) == (18, 1)
    assert list(found(tmp_path / "out")) == ["coco/1"]


def test_one_empty_caption_is_listed_but_costs_no_image(tmp_path):
    raw = coco_raw(tmp_path / "raw", [entry(1, texts=("a cube", "!!", "a ball"))])
    tally = coco.convert(raw, tmp_path / "out", "train")
    assert found(tmp_path / "out")["coco/1"].record.captions == ["a cube", "a ball"]
    assert reasons(tmp_path / "out") == {"empty_caption": 1}
    assert (tally.used, sum(tally.rejected.values()), tally.notes["empty captions left out"]) == (1, 0, 1)


def test_coco_wrong_files_are_clear_errors(tmp_path):
    raw = coco_raw(tmp_path / "raw", [entry(1)])
    with pytest.raises(ValueError, match=r"no image of split 'test'"):
        coco.convert(raw, tmp_path / "out", "test")
    with pytest.raises(ValueError, match=r"split 'testA' is not one of train, val, test"):
        coco.convert(raw, tmp_path / "out", "testA")
    (raw / "train2014").rename(raw / "elsewhere")
    with pytest.raises(ValueError, match=r"train2014: not found"):
        coco.convert(raw, tmp_path / "out", "train")
    for text, message in (
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("[]", "field 'images'"),
        ('{"images": 3}', "must be a list"),
    ):
        (raw / "dataset_coco.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            coco.convert(raw, tmp_path / "out", "train")
    assert not (tmp_path / "out").exists()


# RefCOCO


def ref(ref_id, ann_id, image_id, split="train", texts=("left man",), **changes):
    sentences = [{"sent": t, "raw": t.upper(), "tokens": t.split(), "sent_id": k} for k, t in enumerate(texts)]
    name = f"COCO_train2014_{image_id:012d}_{ref_id}.jpg"
    base = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "file_name": name}
    return {**base, "sentences": sentences, "sent_ids": [0], "category_id": 1, **changes}


def refcoco_raw(folder: Path, refs, boxes, sizes=None, split_by="google", files=None):
    """``boxes``: ann_id -> (image_id, bbox)."""
    images = sorted({image for image, _ in boxes.values()})
    content = {
        "images": [
            {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "width": w, "height": h}
            for i in images
            for w, h in [(sizes or {}).get(i, (32, 24))]
        ],
        "annotations": [
            {"id": k, "image_id": image, "bbox": box, "segmentation": [[1.0] * 8]} for k, (image, box) in boxes.items()
        ],
    }
    (folder / "images/train2014").mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(content))
    data = refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=2)
    (folder / f"refs({split_by}).p").write_bytes(data)
    for i in images:
        (folder / f"images/train2014/COCO_train2014_{i:012d}.jpg").write_bytes((files or {}).get(i, jpeg()))
    return folder


def test_refcoco_is_one_record_per_image_with_all_objects(tmp_path):
    raw = refcoco_raw(
        tmp_path / "raw",
        [
            ref(1, 11, 1, texts=("left man", "man\nin red")),
            ref(2, 12, 1),
            ref(3, 11, 1, texts=("him",)),
            ref(4, 21, 2, "val"),
        ],
        {11: (1, [1.5, 2, 10.25, 5]), 12: (1, [3, 4, 5, 6]), 21: (2, [0, 0, 32, 24])},
    )
    tally = refcoco.convert(raw, tmp_path / "out", "train")
    records = found(tmp_path / "out")
    assert list(records) == ["coco/1"]
    first, second = records["coco/1"].record.objects
    assert (first.object_id, first.box, first.captions) == (
        "11",
        [1.5, 2.0, 11.75, 7.0],
        ["left man", "man in red", "him"],
    )
    assert second.object_id == "12"
    assert (tally.read, tally.used, tally.captions, tally.notes["objects"]) == (3, 3, 4, 2)
    assert read_manifest(tmp_path / "out").name == "refcoco_google"
    refcoco.convert(raw, tmp_path / "raw_text", "train", sentence="raw")
    assert found(tmp_path / "raw_text")["coco/1"].record.objects[0].captions[0] == "LEFT MAN"


def test_refcoco_reads_what_python_2_wrote(tmp_path):
    old = (
        b"(lp0\n(dp1\nS'sent_ids'\np2\n(lp3\nI0\nasS'file_name'\np4\nS'COCO_train2014_000000000001_16.jpg'\np5\nsS'ann_id'\np6\nI11\n"
        b"sS'ref_id'\np7\nI1\nsS'image_id'\np8\nI1\nsS'split'\np9\nS'testA'\np10\nsS'sentences'\np11\n(lp12\n(dp13\nS'tokens'\np14\n"
        b"(lp15\nS'lady'\np16\nasS'raw'\np17\nS'caf\\xe9 lady'\np18\nsS'sent_id'\np19\nI0\nsS'sent'\np20\nVlady\np21\nsasS'category_id'\np22\nI1\nsa."
    )
    raw = refcoco_raw(tmp_path / "raw", old, {11: (1, [1, 2, 3, 4])}, split_by="unc")
    refcoco.convert(raw, tmp_path / "a", "testA", split_by="unc")
    assert found(tmp_path / "a")["coco/1"].record.objects[0].captions == ["lady"]
    # As in the refer tool, "test" is testA and testB together.
    refcoco.convert(raw, tmp_path / "b", "test", split_by="unc", sentence="raw")
    record = found(tmp_path / "b")["coco/1"].record
    assert (record.split, record.objects[0].captions) == ("test", ["café lady"])


def test_refcoco_refuses_a_pickle_with_code_and_reads_json_instead(tmp_path):
    rows = [ref(np.int64(1), 11, 1)]
    raw = refcoco_raw(tmp_path / "raw", rows, {11: (1, [1, 2, 3, 4])})
    with pytest.raises(ValueError, match=r"refs\(google\)\.p: refused.*convert it to JSON"):
        refcoco.convert(raw, tmp_path / "out", "train")
    assert not (tmp_path / "out").exists()
    (raw / "refs(google).json").write_text(json.dumps([ref(1, 11, 1)]))
    assert refcoco.convert(raw, tmp_path / "out", "train").used == 1


def test_refcoco_rejects(tmp_path):
    boxes = {
        11: (1, [1, 2, 3, 4]),
        12: (1, [1, 2, 0, 4]),
        13: (1, [30, 2, 30, 4]),
        14: (1, [5, 5, float("nan"), 4]),
        15: (1, [5, 5, 5]),
        16: (1, [-0.6, -0.4, 33.0, 24.9]),  # rounding: cut to the image
        17: (1, [5, 5, -3, 4]),
        21: (2, [1, 2, 3, 4]),
        31: (3, [1, 2, 3, 4]),
        32: (3, [1, 2, 3, 5]),
        41: (4, [1, 2, 3, 4]),
    }
    refs = [
        ref(1, 11, 1),
        ref(2, 12, 1),
        ref(3, 13, 1),
        ref(4, 14, 1),
        ref(5, 15, 1),
        ref(6, 16, 1),
        ref(7, 17, 1),
        ref(8, 99, 1),  # no such annotation
        ref(9, "odd\u200b\n" * 99, 1),
        ref(10, 21, 1),  # an annotation of image 2
        ref(11, 11, 77),  # no such image
        ref(12, 11, 1, texts=("", "...\u2028")),
        ref(1, 11, 1),  # the same reference again
        ref(13, 21, 2),  # no file
        ref(14, 31, 3),  # cut short
        ref(15, 32, 3),
        ref(16, 41, 4),  # another size
        ref(17, 11, 1, sentences=None),
    ]
    raw = refcoco_raw(tmp_path / "raw", refs, boxes, {4: (32, 25)}, files={3: jpeg()[:100]})
    (raw / "images/train2014/COCO_train2014_000000000002.jpg").unlink()
    tally = refcoco.convert(raw, tmp_path / "out", "train")
    expected = {
        "box_empty": 4,
        "box_outside_image": 1,
        "unknown_annotation": 2,
        "annotation_of_other_image": 1,
        "unknown_image": 1,
        "no_caption": 2,
        "duplicate_source": 1,
        "image_missing": 1,
        "unreadable_image": 2,
        "image_size_mismatch": 1,
    }
    assert reasons(tmp_path / "out") == expected == dict(tally.rejected)
    assert (tally.read, tally.used) == (18, 2)
    assert tally.notes["boxes cut to the image (1 px at most)"] == 1
    rows = found(tmp_path / "out")["coco/1"].record.objects
    assert [row.box for row in rows] == [[1, 2, 4, 6], [0, 0, 32, 24]]
    by_detail = {row.object_id: row for row in read_rejected(tmp_path / "out/rejected.jsonl")}
    assert by_detail["13"].source == "coco/1"
    assert "32 x 24" in by_detail["13"].detail


def test_refcoco_shared_images_are_counted_and_dropped_on_demand(tmp_path):
    boxes = {k: (k, [1, 2, 3, 4]) for k in (1, 2, 3)}
    refs = [ref(1, 1, 1), ref(2, 2, 2), ref(3, 3, 3, "val"), ref(4, 2, 2, "test", texts=("him",))]
    raw = refcoco_raw(tmp_path / "raw", refs, boxes)
    kept = refcoco.convert(raw, tmp_path / "kept", "train")
    assert (kept.used, kept.notes["images shared with another split"]) == (2, 1)
    dropped = refcoco.convert(raw, tmp_path / "dropped", "train", drop_shared_images=True)
    assert (dropped.used, dropped.notes["images shared with another split"]) == (1, 1)
    assert reasons(tmp_path / "dropped") == {"shared_image": 1}
    test = refcoco.convert(raw, tmp_path / "test", "test")
    assert test.notes["images shared with train"] == 1
    with pytest.raises(ValueError, match="is for split 'train'"):
        refcoco.convert(raw, tmp_path / "x", "test", drop_shared_images=True)
    with pytest.raises(ValueError, match="no split 'testA'; it has test, train, val"):
        refcoco.convert(raw, tmp_path / "x", "testA")


def test_refcoco_finds_the_refer_tool_s_folders(tmp_path):
    inner = refcoco_raw(tmp_path / "data/refcoco+", [ref(1, 11, 1)], {11: (1, [1, 2, 3, 4])}, split_by="unc")
    (tmp_path / "data/images/mscoco").mkdir(parents=True)
    (inner / "images").rename(tmp_path / "data/images/mscoco/images")
    refcoco.convert(tmp_path / "data", tmp_path / "out", "train", name="refcoco+", split_by="unc")
    assert read_manifest(tmp_path / "out").name == "refcoco_plus_unc"
    with pytest.raises(ValueError, match=r"refs\(google\)\.p: not found"):
        refcoco.convert(tmp_path / "data", tmp_path / "out2", "train", name="refcoco+")


# Objaverse


def cloud(n=600, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)) * 274 + 1000


def npz(array, **arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **(arrays or {"arr_0": array}))
    return stream.getvalue()


def objaverse_raw(folder: Path, captions: str, clouds: dict[str, bytes | np.ndarray], lists=None):
    folder.mkdir()
    (folder / "Cap3D_automated_Objaverse.csv").write_bytes(captions.encode("utf-8", "surrogateescape"))
    for uid, data in clouds.items():
        place = folder / "objaverse_pc_parallel" / uid
        place.mkdir(parents=True)
        (place / f"{uid}_8192.npz").write_bytes(data if isinstance(data, bytes) else npz(data))
    for split, uids in (lists or {}).items():
        (folder / f"{split}.txt").write_text("\n".join(uids) + "\n")
    return folder


def uid(k):
    return f"{k:032x}"


def test_objaverse_true_formats(tmp_path):
    texts = ["a cube", "a red, small cube, and a ball", 'a 12" pipe', 'the "big" one, left', "naïve\ncone"]
    stream = io.StringIO()
    csv.writer(stream).writerows([[uid(k), t] for k, t in enumerate(texts)])
    captions = stream.getvalue() + f"{uid(5)},x,y unquoted\n" + f'{uid(6)},a 3" bolt without quotes\n'
    kinds = [np.float64, np.float32, np.float16, ">f8", np.float64, np.float64, np.float64]
    clouds = {uid(k): npz(cloud(seed=k).astype(kind)) for k, kind in enumerate(kinds)}
    raw = objaverse_raw(tmp_path / "raw", captions, clouds, {"val": [uid(3)]})
    tally = objaverse.convert(raw, tmp_path / "out", "train")
    records = found(tmp_path / "out")
    assert tally.used == 6
    assert [item.record.captions for item in records.values()] == [
        ["a cube"],
        ["a red, small cube, and a ball"],
        ['a 12" pipe'],
        ["naïve cone"],
        ["x,y unquoted"],
        ['a 3" bolt without quotes'],
    ]
    points = decode_points(records[f"objaverse/{uid(0)}"].media, "x")
    np.testing.assert_array_equal(points, cloud(seed=0).astype(np.float32))  # raw units
    objaverse.convert(raw, tmp_path / "val", "val")
    assert found(tmp_path / "val")[f"objaverse/{uid(3)}"].record.captions == ['the "big" one, left']


def test_objaverse_flat_npy_with_colour(tmp_path):
    raw = objaverse_raw(tmp_path / "raw", f"{uid(1)},a cube\n", {})
    (raw / "8192_npy").mkdir()
    array = np.asfortranarray(cloud(600, 6).astype(np.float32))
    np.save(raw / f"8192_npy/{uid(1)}_8192.npy", array)
    objaverse.convert(raw, tmp_path / "out", objaverse.hashed_split(uid(1)))
    points = decode_points(found(tmp_path / "out")[f"objaverse/{uid(1)}"].media, "x")
    np.testing.assert_array_equal(points, array)


def test_objaverse_rejects(tmp_path):
    bad = cloud()
    bad[3, 1] = np.inf
    huge = cloud()
    huge[0, 0] = 1e300  # not finite in float32
    lying = io.BytesIO()
    np.lib.format.write_array_header_1_0(lying, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)})
    liar = io.BytesIO()
    with zipfile.ZipFile(liar, "w") as archive:
        archive.writestr("arr_0.npy", lying.getvalue() + b"\0" * 40)
    pickled = np.empty((600, 3), dtype=object)
    clouds = {
        uid(1): cloud(),
        uid(2): cloud(),  # empty caption
        uid(3): cloud(),  # no row
        uid(5): bad,
        uid(6): huge,
        uid(7): cloud(100),
        uid(8): np.ones((600, 3)),
        uid(9): npz(cloud())[:500],
        uid(10): npz(None, arr_1=cloud()),
        uid(11): npz(cloud(600, 4)),
        uid(12): npz(np.ones((600, 3), int)),
        uid(13): npz(pickled),
        uid(14): liar.getvalue(),
        uid(15): b"",
    }
    rows = "".join(f"{uid(k)},a cube\n" for k in range(1, 16) if k not in (2, 3)) + f"{uid(2)},...\n"
    rows += (
        f"{uid(1)},another\n"
        + "only-a-uid\n"
        + f'{uid(20)},"never closed\n'
        + f"{uid(21)},behind it\n"
        + "../../x,evil\n"
    )
    uids = [uid(k) for k in (*range(1, 16), 21)] + ["../../x"]
    clouds[uid(21)] = cloud(seed=2)
    raw = objaverse_raw(tmp_path / "raw", rows, clouds, {"train": uids})
    tally = objaverse.convert(raw, tmp_path / "out", "train")
    assert reasons(tmp_path / "out") == {
        "no_caption": 2,
        "points_missing": 1,
        "points_not_finite": 2,
        "too_few_points": 1,
        "points_degenerate": 1,
        "points_unreadable": 7,
        "duplicate_source": 1,
        "malformed_row": 2,
        "unsafe_name": 1,
    }
    assert tally.read == 17 + 1 + 2
    assert list(found(tmp_path / "out")) == [f"objaverse/{uid(1)}", f"objaverse/{uid(21)}"]
    assert objaverse.convert(raw, tmp_path / "few", "train", min_points=50).used == 3


def test_an_open_quote_costs_one_line_only(tmp_path):
    file = tmp_path / "c.csv"
    file.write_bytes(
        b'\xef\xbb\xbf11111111,"a\n22222222,b\n\n33333333,"c, with ""d""\nand e"\n44444444,caf\xe9\n55555555,"open'
    )
    table = cap3d.read_captions(file, Counter())
    assert table.captions == {"22222222": "b", "33333333": 'c, with "d"\nand e', "44444444": "caf\xe9"}
    assert [line for line, _ in table.malformed] == [1, 7]


def test_objaverse_splits(tmp_path):
    uids = [uid(k) for k in range(2000)]
    raw = tmp_path / "raw"
    raw.mkdir()
    hashed = {split: objaverse.choose_uids(raw, split, uids, Counter()) for split in SPLITS}
    assert sorted(u for listed in hashed.values() for u in listed) == uids
    assert 20 < len(hashed["val"]) < 70 < len(hashed["train"])
    assert 20 < len(hashed["test"]) < 70
    (raw / "test.txt").write_text(f"{uids[5]}\n{uids[5]}\n\n{uids[3]}\n")
    assert objaverse.choose_uids(raw, "test", uids, Counter()) == [uids[5], uids[3]]
    assert objaverse.choose_uids(raw, "train", uids, Counter()) == [u for u in uids if u not in (uids[3], uids[5])]
    with pytest.raises(ValueError, match=r"val\.txt: not found, though there is test\.txt"):
        objaverse.choose_uids(raw, "val", uids, Counter())
    (raw / "train.txt").write_text(f"{uids[3]}\n")
    with pytest.raises(ValueError, match="1 uids are in both"):
        objaverse.choose_uids(raw, "test", uids, Counter())


def test_objaverse_wrong_calls_are_clear_errors(tmp_path):
    raw = objaverse_raw(tmp_path / "raw", f"{uid(1)},a cube\n", {uid(1): cloud(10)}, {"train": [uid(1)]})
    with pytest.raises(ValueError, match=r"no record could be used \(too_few_points: 1\)"):
        objaverse.convert(raw, tmp_path / "out", "train")
    with pytest.raises(ValueError, match="min_points must be at least 1"):
        objaverse.convert(raw, tmp_path / "out", "train", min_points=0)
    (raw / "Cap3D_automated_Objaverse.csv").rename(raw / "a.csv")
    (raw / "b.csv").write_text("")
    with pytest.raises(ValueError, match=r"a\.csv, b\.csv.*--captions"):
        objaverse.convert(raw, tmp_path / "out", "train")
    assert not (tmp_path / "out").exists()
