"""What the messages of `rb prepare` advise helps: raw files that are missing, of other kinds, unclear or unsafe."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rb.core.stand_ins import stand_in
from rb.data.prepare import coco, objaverse, parquet_files, refcoco, scanrefer, tables
from rb.data.prepare.array_pickle import ArrayPickle
from rb.data.prepare.cloud_zips import CloudZips
from rb.data.prepare.convert import choose_splits
from rb.data.prepare.scannet_files import LABEL_MAP, read_label_map
from rb.data.prepare.scenes import SceneOptions, cloud_of_scene
from tests.data.prepare.test_cloud_zips import made
from tests.data.prepare.test_coco import coco_raw, entry
from tests.data.prepare.test_custom import as_csv, as_parquet, images  # noqa: F401 (a fixture)
from tests.data.prepare.test_objaverse import cloud, objaverse_raw, uid
from tests.data.prepare.test_refcoco import ref, refcoco_raw
from tests.data.prepare.test_scanrefer import CENTRES, boxes_of, write_raw
from tests.data.test_exif_orientation import photo
from tests.support import scannet_raw
from tests.support.raw_data import convert, found, jpeg
from tests.support.remedies import Said, covers, helps, remedy, typed


@remedy("{}: not found. The raw folder should look like this:\n{}")
def test_a_raw_file_is_put_where_it_is_shown(tmp_path: Path):
    """Of every converter the layout is its own text, and its tests make the raw folder so."""
    raw = coco_raw(tmp_path / "raw", [entry(1)])
    shutil.move(raw / "dataset_coco.json", tmp_path / "karpathy.json")
    follow = lambda said: shutil.move(tmp_path / "karpathy.json", raw / said.found(r"RAW/(dataset\S+\.json)"))  # noqa: E731
    return lambda: convert(coco, raw, tmp_path / "out", "train"), follow


@remedy("{}: {} not found{}. The raw folder should look like this:\n{}")
def test_scenes_are_put_where_it_is_shown(tmp_path: Path):
    raw = write_raw(tmp_path / "raw", boxes_of(CENTRES))
    shutil.move(raw / "scannet_data", tmp_path / "scenes")
    follow = lambda said: shutil.move(tmp_path / "scenes", raw / said.found(r"RAW/(scannet_data)/"))  # noqa: E731
    return lambda: convert(scanrefer, raw, tmp_path / "out", "val"), follow


@remedy("--split: choose one of {}")
def test_a_set_without_a_split_of_that_name():
    asked: list[str | None] = [None]
    follow = lambda said: asked.append(asked.pop() or said.found(r"choose one of (\w+),"))  # noqa: E731
    return lambda: choose_splits(("testA", "testB"), asked[0]), follow


@remedy("is finished already ({} samples); --overwrite makes it again")
def test_all_splits_a_second_time(tmp_path: Path):
    raw = coco_raw(tmp_path / "raw", [entry(1)])
    words = ["prepare", "coco", "--raw", raw, "--split", "all", "--out", tmp_path / "out"]
    typed(*words)
    return lambda: typed(*words), lambda said: words.append(said.found(r"; (--\w+) makes it again"))


@remedy("refused, {}. Only plain lists, dicts, numbers and texts are read from pickles", also=["`python -c {}`"])
def test_numpy_in_refs(tmp_path: Path):
    """As pandas users write them: numbers of numpy, an array, a set."""
    rows = [ref(np.int64(1), np.int64(11), np.int32(1), box=np.arange(3), seen={1})]
    raw = refcoco_raw(tmp_path / "it's raw", pickle.dumps(rows, protocol=2), {11: (1, [1, 2, 9, 9])})
    return lambda: convert(refcoco, raw, tmp_path / "out", "train"), Said.ran


@remedy("remove it, and {} is read again")
def test_half_written_json_beside_the_pickle(tmp_path: Path):
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])})
    half = raw / "refs(google).json"
    half.write_text(json.dumps([ref(1, 11, 1)])[:50])
    return lambda: convert(refcoco, raw, tmp_path / "out", "train"), lambda _: half.unlink()


@remedy("convert the pickle again")
def test_half_written_json_without_the_pickle(tmp_path: Path):
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])})
    rows = pickle.loads((raw / "refs(google).p").read_bytes())
    (raw / "refs(google).p").unlink()
    half = raw / "refs(google).json"
    half.write_text(json.dumps(rows)[:50])
    return lambda: convert(refcoco, raw, tmp_path / "out", "train"), lambda _: half.write_text(json.dumps(rows))


@remedy("{}: not a readable pickle ({}: {}); download it again")
def test_a_pickle_that_was_cut(tmp_path: Path):
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])})
    file = raw / "refs(google).p"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    return lambda: convert(refcoco, raw, tmp_path / "out", "train"), lambda _: file.write_bytes(whole)


ARRAYS = {
    "Only lists of numpy arrays are read from it, and nothing was run; use the data set's text files, or": lambda whole: (
        pickle.dumps(Counter())
    ),
    "not a readable pickle of arrays ({}); download it again": lambda whole: whole[:-20],
}


@pytest.mark.parametrize("says", covers(ARRAYS))
def test_a_pickle_of_arrays(tmp_path: Path, says: str) -> None:
    path = tmp_path / "modelnet40_test_8192pts_fps.dat"
    whole = pickle.dumps([[np.ones((64, 6), np.float32)], [np.ones(1, np.int32)]])
    path.write_bytes(ARRAYS[says](whole))
    helps(says, lambda: ArrayPickle(path), lambda _: path.write_bytes(whole))


@remedy("not a zip that can be read ({}); {}")
def test_a_zip_that_was_cut(tmp_path: Path):
    path = made(tmp_path / "clouds.zip", ["a.ply"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    follow = lambda said: said.endswith("download it again") and path.write_bytes(whole)  # noqa: E731
    return lambda: CloudZips([path], {"a"}, (".ply",)), follow


@pytest.mark.parametrize("value", ["upright", "stored"])
def test_a_sideways_photo(tmp_path: Path, value: str) -> None:
    raw = coco_raw(tmp_path / "raw", [entry(1)], {1: photo(6)})
    said_so: dict[str, str] = {}

    def follow(said: Said) -> None:
        assert f"--exif {value}" in said.commands
        said_so["exif"] = value

    sideways = "Say which pixels sizes and boxes refer to"
    helps(sideways, lambda: convert(coco, raw, tmp_path / "out", "train", **said_so), follow)


def two_uids(folder: Path, **more: object) -> Path:
    return objaverse_raw(folder, f"{uid(1)},a cube\n{uid(2)},a ball\n", {uid(1): cloud(), uid(2): cloud()}, **more)


def write_lists(raw: Path, **lists: list[str]) -> None:
    for name, uids in lists.items():
        (raw / f"{name}.txt").write_text("\n".join(uids) + "\n")


TWO_CSV, TWO_LISTS = "choose one with --captions", "two lists of one split; remove one"
BOTH, NO_LIST, AS_NPY = (
    "uids are in both, such as {}; keep them in one",
    "add it, or remove the lists",
    ": save it as .npy",
)
RBLIP = "Cap3D_automated_Objaverse_train.txt"


@pytest.mark.parametrize(
    ("says", "way"),
    [*((s, "") for s in covers([TWO_CSV, TWO_LISTS, BOTH, AS_NPY])), (NO_LIST, "add"), (NO_LIST, "remove")],
)
def test_captions_lists_and_clouds_of_objaverse(tmp_path: Path, says: str, way: str) -> None:
    raw, options = two_uids(tmp_path / "raw"), {}
    split = "val" if says == NO_LIST else "train"
    captions = raw / "Cap3D_automated_Objaverse.csv"
    if says == TWO_CSV:
        for name in ("a.csv", "b.csv"):
            shutil.copy(captions, raw / name)
        captions.unlink()
    elif says == TWO_LISTS:
        write_lists(raw, train=[uid(1)])
        (raw / RBLIP).write_text(f"{uid(1)},a cube\n")
    elif says == BOTH:
        write_lists(raw, train=[uid(1), uid(2)], val=[uid(2)])
    elif says == NO_LIST:
        write_lists(raw, train=[uid(1)])
    else:
        for one in (1, 2):
            file = raw / f"objaverse_pc_parallel/{uid(one)}/{uid(one)}_8192.npz"
            file.rename(file.with_suffix(".h5"))

    def follow(said: Said) -> None:
        if says == TWO_CSV:
            assert "--captions" in said
            options["captions"] = raw / "a.csv"
        elif says == TWO_LISTS:
            (raw / RBLIP).unlink()
        elif says == BOTH:
            write_lists(raw, train=[uid(1)])
        elif way == "add":
            write_lists(raw, val=[uid(2)])
        elif way == "remove":
            (raw / "train.txt").unlink()
            write_lists(raw, val=[uid(2)])  # without any list, this number of objects has none in the split by hash
            write_lists(raw, train=[uid(1)])
        else:
            for file in raw.rglob("*.h5"):
                np.save(file.with_suffix(".npy"), cloud())

    helps(says, lambda: convert(objaverse, raw, tmp_path / "out", split, **options), follow)


covers([NO_LIST])


@remedy("is missing, there is only {}_{}.npy; prepare the scene with its axisAlignment")
def test_a_scene_without_alignment(tmp_path: Path):
    raw = write_raw(tmp_path / "raw", boxes_of(CENTRES))
    aligned = raw / "scannet_data/scene0000_00_aligned_vert.npy"
    aligned.rename(aligned.with_name("scene0000_00_vert.npy"))
    follow = lambda _: shutil.copy(aligned.with_name("scene0000_00_vert.npy"), aligned)  # noqa: E731
    return lambda: convert(scanrefer, raw, tmp_path / "out", "val"), follow


@remedy("boxes hold none of the scene's points, so boxes and points are not in the same coordinate frame; prepare both")
def test_boxes_of_another_frame(tmp_path: Path):
    raw = write_raw(tmp_path / "raw", boxes_of(CENTRES + 9))
    follow = lambda _: np.save(raw / "scannet_data/scene0000_00_aligned_bbox.npy", boxes_of(CENTRES))  # noqa: E731
    return lambda: convert(scanrefer, raw, tmp_path / "out", "val"), follow


@remedy("boxes belong to no object of {}_ins_label.npy, so boxes and points are not in the same coordinate frame")
def test_boxes_of_another_preparation(tmp_path: Path):
    from rb.data.prepare.scannet_prepared import read_votenet_scene

    folder = scannet_raw.write_votenet(tmp_path, scannet_raw.make_scan())
    boxes = folder / "scene0000_00_bbox.npy"
    rows = np.load(boxes)
    np.save(boxes, rows + np.array([9.0] * 3 + [0.0] * (rows.shape[1] - 3)))
    return lambda: read_votenet_scene(folder, "scene0000_00", SceneOptions()), lambda _: np.save(boxes, rows)


@remedy("{}: has no colours; convert without --colours")
def test_a_scene_without_colours():
    options = [SceneOptions(colours=True, min_points=1)]
    points = np.random.default_rng(0).normal(size=(20, 3))
    follow = lambda _: options.append(options.pop() and SceneOptions(colours=False, min_points=1))  # noqa: E731
    return lambda: cloud_of_scene(points, "a", options[0]), follow


LABELS = {
    "{}; download the file again": "raw_category\tnyu40id\nwall\t1\ncut",
    "needs the columns raw_category and nyu40id (a number), got {}; give ScanNet's {}": "id\tname\n1\twall\n",
    "holds no label; give ScanNet's {}": "raw_category\tnyu40id\n",
}


@pytest.mark.parametrize("says", covers(LABELS))
def test_another_label_map(tmp_path: Path, says: str) -> None:
    path = tmp_path / LABEL_MAP
    path.write_text(LABELS[says])
    helps(says, lambda: read_label_map(path, Counter()), lambda _: scannet_raw.write_label_map(path))


class Custom:
    """`rb prepare custom` on one table; a test changes the rows or adds options."""

    def __init__(self, folder: Path, media: Path, rows: list[dict[str, object]]) -> None:
        self.rows, self.options, self.folder, self.images = rows, [], folder, media

    def run(self) -> str:
        as_csv(self.rows, self.folder / "t.csv")
        shutil.rmtree(self.folder / "o", ignore_errors=True)
        words = [
            "prepare",
            "custom",
            "--csv",
            self.folder / "t.csv",
            "--images",
            self.images,
            "--out",
            self.folder / "o",
        ]
        return typed(*words, *self.options)


THING = {"file": "a.png", "text": "a thing"}
# Message -> (rows, what the message makes of them).
COLUMN, UNCLEAR, NEITHER = (
    "Say --column {}=NAME; there are {}",
    "say --boxes with one of {}",
    "correct them, or say --boxes",
)
MANY, FOLDER = "correct them, or allow more with --most-bad SHARE", "{}: is no folder; give the folder of the {}"
CUSTOM: dict[tuple[str, str], tuple[list[dict[str, object]], Callable[[Custom, Said], object]]] = {
    (COLUMN, "file"): (
        [{"name": "a.png", "text": "a thing"}],
        lambda it, said: it.options.extend(
            ["--column", said.found(r"Say --column (file=)NAME") + said.found("there are (\\w+)")]
        ),
    ),
    (COLUMN, "caption"): (
        [{"file": "a.png", "words": "a thing"}],
        lambda it, said: it.options.extend(["--column", said.found(r"Say --column (caption=)NAME") + "words"]),
    ),
    (UNCLEAR, "first"): (
        [THING | {"bbox": "10 10 40 40"}],
        lambda it, said: it.options.extend(["--boxes", said.found("with one of (\\w+),")]),
    ),
    (UNCLEAR, "last"): (
        [THING | {"bbox": "0.1 0.1 0.4 0.4"}],
        lambda it, said: it.options.extend(["--boxes", said.found("with one of .*, ([\\w-]+)")]),
    ),
    (NEITHER, "correct"): (
        [THING | {"bbox": "60 10 20 70"}, THING | {"bbox": "60 10 90 40"}],
        lambda it, _: it.rows[0].update(bbox="60 10 80 50"),
    ),
    (NEITHER, "say"): (
        [THING | {"bbox": "60 10 20 70"}, THING | {"bbox": "60 10 90 40"}],
        lambda it, said: it.options.extend(
            [said.found("or say (--boxes)"), "xyxy", said.found("up to (--most-bad)"), "0.5"]
        ),
    ),
    (MANY, "correct"): ([THING, {"file": "lost.png", "text": "gone"}], lambda it, _: it.rows.pop()),
    (MANY, "allow"): (
        [THING, {"file": "lost.png", "text": "gone"}],
        lambda it, said: it.options.extend([said.found(r"allow more with (--[\w-]+) SHARE"), "0.6"]),
    ),
}


@pytest.mark.parametrize(("says", "way"), CUSTOM)
def test_a_table_of_ones_own(tmp_path: Path, images: Path, says: str, way: str) -> None:  # noqa: F811
    rows, follow = CUSTOM[says, way]
    it = Custom(tmp_path, images, [dict(row) for row in rows])
    helps(says, it.run, lambda said: follow(it, said))


covers([COLUMN, UNCLEAR, NEITHER, MANY])


@remedy("{}: is no folder; give the folder of the {}")
def test_a_file_in_place_of_its_folder(tmp_path: Path, images: Path):  # noqa: F811
    it = Custom(tmp_path, images / "a.png", [THING])
    return it.run, lambda _: setattr(it, "images", it.images.parent)


@remedy("give every column its own name, separated by commas")
def test_a_column_that_comes_twice(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("file,text,text\na.png,b,c\n")
    follow = lambda _: path.write_text("file,text,more\na.png,b,c\n")  # noqa: E731
    return lambda: list(tables.read_csv(path, Counter())), follow


@remedy("a row group has {} bytes and {} values in one column; write it with at most {} and {}, or in parts")
def test_a_row_group_that_is_too_large(tmp_path: Path, monkeypatch):
    rows = [{"file": f"{i}.png", "text": "a thing"} for i in range(200)]
    monkeypatch.setattr(parquet_files, "_MOST_GROUP", 1500)
    path = tmp_path / "t.parquet"
    as_parquet(rows, path)
    table = pyarrow.Table.from_pylist(rows)
    follow = lambda _: pyarrow.parquet.write_table(table, path, row_group_size=20)  # noqa: E731
    return lambda: list(parquet_files.read_parquet(path, Counter())), follow


@remedy("cannot be read as Parquet behind row {} ({}); write it again")
def test_parquet_with_a_damaged_page(tmp_path: Path):
    path = tmp_path / "t.parquet"
    as_parquet([THING], path)
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)  # the first page; the footer is sound
    path.write_bytes(data)
    return lambda: list(parquet_files.read_parquet(path, Counter())), lambda _: as_parquet([THING], path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


@pytest.mark.parametrize(("data", "says"), [(POINTER, "git-lfs pointer.*run `git lfs pull`"), (PAGE, "is a web page")])
@pytest.mark.parametrize("file", ["refs(google).p", "instances.json", "refs(google).json"])
def test_what_a_failed_download_left_is_named(tmp_path: Path, file: str, data: bytes, says: str) -> None:
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])})
    (raw / file).write_bytes(data)
    with pytest.raises(ValueError, match=f"{re.escape(file)}: .*{says}") as caught:
        convert(refcoco, raw, tmp_path / "out", "train")
    assert "trust" not in str(caught.value)
    assert "removed" not in str(caught.value)


def test_what_a_failed_download_left_of_media_is_named(tmp_path: Path) -> None:
    raw = coco_raw(tmp_path / "raw", [entry(1), entry(2), entry(3)], {1: POINTER, 2: PAGE, 3: jpeg()})
    convert(coco, raw, tmp_path / "out", "train")
    details = (tmp_path / "out/rejected.jsonl").read_text()
    assert "git-lfs pointer" in details
    assert "web page" in details
    assert list(found(tmp_path / "out")) == ["coco/3"]
    assert stand_in(b"<svg>") is None
    assert stand_in(b"") is None
