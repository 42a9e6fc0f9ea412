"""The converters on the toy world's raw files: all is used but what is spoiled, and captions and boxes are true."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rb.data.formats import read_manifest
from rb.data.prepare import coco, objaverse, refcoco
from rb.sources.points import decode_points
from rb.toy.raw import data_sets as toy_raw
from rb.toy.raw import spoil
from rb.toy.world.truth import singles_out, true_whole
from tests.support.raw_data import cli_run, convert, found, reasons

SPLITS = ("train", "val", "test")


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
            convert(module, toy / "raw" / name, tmp_path / f"{name}{workers}", "train", workers=workers)
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
        assert f"--raw {tmp_path}/none: no such folder" in error
        assert ": no such folder. It should look like this:\n  RAW/" in error
        assert not (tmp_path / "y").exists()
