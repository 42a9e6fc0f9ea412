"""ModelNet40 as it is published: text files and pickles give the same records; the class of an object survives exactly."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from rb.data.prepare import modelnet40
from rb.data.prepare.modelnet40 import CLASSES
from rb.sources.points import decode_points
from tests.support.raw_data import cli_run, convert, found, reasons
from tests.support.remedies import remedy

POINTS = 600
NAMES = {"train": ["airplane_0001", "night_stand_0001", "xbox_0003"], "test": ["tv_stand_0268", "chair_0890"]}


def cloud(name: str) -> np.ndarray:
    """[POINTS, 6] points and normals with the digits that the text files have."""
    return np.random.default_rng(list(name.encode())).uniform(-1, 1, (POINTS, 6)).round(6).astype(np.float32)


def class_of(name: str) -> str:
    return name.rpartition("_")[0].replace("_", " ")


def text_raw(folder: Path, names: dict[str, list[str]] = NAMES, points: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modelnet40_shape_names.txt").write_text("".join(f"{name.replace(' ', '_')}\n" for name in CLASSES))
    for split, listed in names.items():
        (folder / f"modelnet40_{split}.txt").write_text("".join(f"{name}\r\n" for name in listed))
        for name in listed if points else ():
            (folder / class_of(name).replace(" ", "_")).mkdir(exist_ok=True)
            rows = [",".join(f"{value:.6f}" for value in row) for row in cloud(name)]
            (folder / class_of(name).replace(" ", "_") / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder


def pickled(
    folder: Path, split: str, clouds: list | None = None, labels: list | None = None, protocol: int = 3
) -> Path:
    """As Point-BERT writes it: [list of (8192, 6) float32, list of int32 (1,)]."""
    folder.mkdir(parents=True, exist_ok=True)
    clouds = [cloud(name) for name in NAMES[split]] if clouds is None else clouds
    labels = [np.array([CLASSES.index(class_of(n))], np.int32) for n in NAMES[split]] if labels is None else labels
    path = folder / f"modelnet40_{split}_8192pts_fps.dat"
    path.write_bytes(pickle.dumps([clouds, labels], protocol=protocol))
    return path


def check(out: Path, names: list[str], ids: list[str] | None = None) -> None:
    records = found(out)
    assert list(records) == [f"modelnet40/{name}" for name in ids or names]
    for item, name in zip(records.values(), names, strict=True):
        assert item.record.captions == [class_of(name)]
        np.testing.assert_allclose(decode_points(item.media, name), cloud(name)[:, :3], atol=1e-7)


def test_the_names_are_the_40_in_the_order_of_the_labels():
    assert len(CLASSES) == len(set(CLASSES)) == 40
    assert list(CLASSES) == sorted(CLASSES)
    page = Path(__file__).resolve().parents[3] / "docs/data.md"
    assert ", ".join(CLASSES) in " ".join(page.read_text().split())


def test_text_files_of_both_splits(tmp_path):
    text_raw(tmp_path / "raw/modelnet40_normal_resampled")
    arguments = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--split", "all", "--workers", "2"]
    assert cli_run("prepare", "modelnet40", *arguments) == 0
    for split, names in NAMES.items():
        check(tmp_path / "out" / split, names)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_give_the_same_with_lists_and_without(tmp_path, protocol, capsys):
    raw = text_raw(tmp_path / "raw", points=False)
    for split in NAMES:
        pickled(raw, split, protocol=protocol)
    for split, names in NAMES.items():
        convert(modelnet40, raw, tmp_path / split, split, workers=4)
        check(tmp_path / split, names)
    lone = tmp_path / "lone/modelnet40_data"
    pickled(lone, "test", protocol=protocol)
    assert (
        cli_run(
            "prepare", "modelnet40", "--raw", str(tmp_path / "lone"), "--out", str(tmp_path / "alone"), "--workers", "1"
        )
        == 0
    )
    check(tmp_path / "alone", NAMES["test"], ["test_0000", "test_0001"])
    assert "no modelnet40_test.txt beside the pickle: its objects are named test_0000" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no files of split 'train'; there are those of: test"):
        modelnet40.open_raw(lone).plan("train")


def test_which_layout_is_read(tmp_path):
    """Both are there: the pickle, unless the text files are asked for."""
    raw = text_raw(tmp_path / "raw", {"test": NAMES["test"]})
    pickled(raw, "test", clouds=[cloud("a"), cloud("b")])
    with pytest.raises(AssertionError):
        convert(modelnet40, raw, tmp_path / "dat", "test")
        check(tmp_path / "dat", NAMES["test"])
    convert(modelnet40, raw, tmp_path / "text", "test", layout="text")
    check(tmp_path / "text", NAMES["test"])
    assert modelnet40.open_raw(raw, layout="dat").splits == ("test",)


def test_text_files_that_cannot_be_used_are_listed(tmp_path):
    names = [f"chair_{k:04d}" for k in range(1, 10)]
    raw = text_raw(tmp_path / "raw", {"test": names})
    for name, content in {
        "chair_0001": b"1,2,3\n" * 700,
        "chair_0002": b"0.1,0.2,nan,0,0,1\n" * 700,
        "chair_0003": b"0.1,0.2\n" * 700,
        "chair_0004": b"",
        "chair_0005": b"0.1,0.2,0.3,0,0,1\n0.3,0.2,0.1,0,0,1",  # too few
        "chair_0008": (raw / "chair/chair_0006.txt").read_bytes()[:3000],  # cut within a line
        "chair_0006": b"\x00\xff" * 500,
    }.items():
        (raw / "chair" / f"{name}.txt").write_bytes(content)
    (raw / "chair/chair_0009.txt").unlink()
    listed = [*names, names[6], "../../etc/passwd", "lamp_12", "teapot_0001", "chair"]
    (raw / "modelnet40_test.txt").write_text("\n".join(listed))
    tally = convert(modelnet40, raw, tmp_path / "out", "test")
    assert (tally.read, tally.used) == (14, 1)
    assert reasons(tmp_path / "out") == {
        "points_degenerate": 1,
        "points_not_finite": 1,
        "points_unreadable": 4,
        "too_few_points": 1,
        "points_missing": 1,
        "duplicate_source": 1,
        "malformed_row": 4,
    }
    check(tmp_path / "out", [names[6]])


def test_objects_of_a_pickle_that_cannot_be_used_are_listed(tmp_path):
    clouds = [cloud("a"), cloud("b")[:9], cloud("c")[:, :4], cloud("d").astype(np.int32), cloud("chair_0001")]
    labels = [np.array([40]), np.array([1]), np.array([2]), np.array([8], np.int32), np.array([8], np.int32)]
    pickled(tmp_path / "raw", "test", [*clouds, cloud("e"), cloud("f")], [*labels, np.array([1, 2]), np.array([0.5])])
    convert(modelnet40, tmp_path / "raw", tmp_path / "out", "test")
    assert reasons(tmp_path / "out") == {"malformed_row": 3, "too_few_points": 1, "points_unreadable": 2}
    check(tmp_path / "out", ["chair_0001"], ["test_0004"])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    raw = text_raw(tmp_path / "raw", points=False)
    pickled(raw, "train")
    pickled(raw, "test", labels=[np.array([8], np.int32), np.array([8], np.int32)])
    convert(modelnet40, raw, tmp_path / "out", "test")
    assert reasons(tmp_path / "out") == {"unknown_object": 1}
    assert (
        "its label says chair; the list beside it is of other objects" in (tmp_path / "out/rejected.jsonl").read_text()
    )
    pickled(raw, "train", labels=[])
    with pytest.raises(
        ValueError,
        match=r"train_8192pts_fps\.dat: must hold a list of clouds and as many labels, got lists of \[3, 0\]",
    ):
        modelnet40.open_raw(raw).plan("train")
    with pytest.raises(
        ValueError, match=r"modelnet40_train_8192pts_fps\.dat.*not found. The raw folder should look like this"
    ):
        modelnet40.open_raw(tmp_path)


@remedy("has {} objects, but {} beside it names {}; remove the list")
def test_a_list_of_another_length(tmp_path):
    raw = text_raw(tmp_path / "raw", {"train": ["chair_0001"]}, points=False)
    pickled(raw, "train")
    return lambda: modelnet40.open_raw(raw).plan("train"), lambda _: (raw / "modelnet40_train.txt").unlink()


@remedy("these are not the 40 classes of ModelNet40 in their order; download it again")
def test_classes_of_another_set(tmp_path):
    raw = text_raw(tmp_path / "raw")
    whole = (raw / "modelnet40_shape_names.txt").read_text()
    (raw / "modelnet40_shape_names.txt").write_text("chair\ntable\n")
    return lambda: modelnet40.open_raw(raw), lambda _: (raw / "modelnet40_shape_names.txt").write_text(whole)


def test_the_counts_are_printed(tmp_path, capsys):
    raw, out = text_raw(tmp_path / "raw"), str(tmp_path / "o")
    words = ["--raw", str(raw), "--out", out, "--split", "test", "--dry-run", "--json", "--workers", "1"]
    assert cli_run("prepare", "modelnet40", *words) == 0
    assert json.loads(capsys.readouterr().out)["used"] == 2
