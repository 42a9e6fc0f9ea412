"""What the messages about options and kinds of files of `rb prepare` advise helps. test_remedies.py and those of single converters have the rest."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rb.data.prepare.parquet_files import parquet_columns
from rb.data.prepare.proposals import _box, read_proposals
from tests.data.prepare.test_coco import coco_raw, entry
from tests.data.prepare.test_custom import as_csv, as_parquet
from tests.data.prepare.test_custom_tars import pack, sample, write_tars
from tests.data.prepare.test_refcoco import ref, refcoco_raw
from tests.data.prepare.test_refcoco_forms import coco_images, parquet
from tests.support.raw_data import jpeg
from tests.support.remedies import Said, covers, helps, remedy, typed

THING = {"file": "a.png", "text": "a red thing"}


@remedy("--raw {}: {}. It should look like this:\n{}", also=["is a file; give the folder that it lies in"])
def test_a_file_as_the_raw_folder(tmp_path: Path):
    raw = coco_raw(tmp_path / "raw", [entry(1)])
    words = ["prepare", "coco", "--raw", raw / "dataset_coco.json", "--split", "train", "--out", tmp_path / "out"]

    def follow(said: Said) -> None:
        assert "give the folder that it lies in" in said
        words[3] = raw

    return lambda: typed(*words), follow


@remedy("holds a set of shards; give a folder for the folders of the splits ({})")
def test_all_splits_into_a_set(tmp_path: Path):
    raw = coco_raw(tmp_path / "raw", [entry(1)])
    typed("prepare", "coco", "--raw", raw, "--out", tmp_path / "out")
    words = ["prepare", "coco", "--raw", raw, "--split", "all", "--out", tmp_path / "out"]

    def follow(_: Said) -> None:
        words[-1] = tmp_path / "splits"

    return lambda: typed(*words), follow


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """One's own data: images, a table, tars with and without boxes."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(jpeg(kind="PNG"))
    as_csv([THING], tmp_path / "t.csv")
    write_tars(tmp_path / "tars")
    return {name: tmp_path / name for name in ("images", "t.csv", "tars", "out", "lost")}


# Message -> (words of `rb prepare custom` before, words that follow it).
CUSTOM: dict[str, tuple[list[str], Callable[[Said], list[str]]]] = {
    "the images are in the tars; leave out --images and --clouds ({})": (
        ["--tars", "tars", "--images", "images"],
        lambda _: ["--tars", "tars"],
    ),
    "name the folder of the files that the table's rows name": (
        ["--csv", "t.csv"],
        lambda said: ["--csv", "t.csv", said.found(r"(--images) or"), "images"],
    ),
    "no such tar; give files, a folder of .tar, or a pattern such as 'DIR/*.tar'": (
        ["--tars", "lost"],
        lambda said: ["--tars", said.found(r"such as '(DIR/\*\.tar)'").replace("DIR", "tars")],
    ),
}


@pytest.mark.parametrize("says", covers(CUSTOM))
def test_ones_own_data(places: dict[str, Path], tmp_path: Path, says: str, monkeypatch) -> None:
    before, follow = CUSTOM[says]
    monkeypatch.chdir(tmp_path)
    given = [before]
    helps(
        says,
        lambda: typed("prepare", "custom", *given[0], "--out", "out"),
        lambda said: given.append(given.pop() and follow(said)),
    )


@remedy("ends at byte {}, inside {}; download it again")
def test_a_tar_that_was_cut(places: dict[str, Path], tmp_path: Path):
    tar = sorted(places["tars"].glob("*.tar"))[0]
    whole = tar.read_bytes()
    for other in sorted(places["tars"].glob("*.tar"))[1:]:
        other.unlink()
    tar.write_bytes(whole[:1100])
    call = lambda: typed("prepare", "custom", "--tars", tar, "--out", tmp_path / "out", "--most-bad", "0")  # noqa: E731
    return call, lambda _: tar.write_bytes(whole)


@remedy("cannot be read as Parquet ({}); download or write it again")
def test_columns_of_a_damaged_table(tmp_path: Path):
    path = tmp_path / "t.parquet"
    as_parquet([THING], path)
    path.write_bytes(path.read_bytes()[:-9])
    return lambda: parquet_columns(path), lambda _: as_parquet([THING], path)


SCENES = ("scene0000_00",)


@remedy("give the proposals of this split")
def test_proposals_of_another_split(tmp_path: Path):
    path = tmp_path / "p.json"
    path.write_text('{"scene0001_00": []}')
    return lambda: read_proposals(path, "minmax", SCENES, Counter()), lambda _: path.write_text('{"scene0000_00": []}')


@remedy("has no volume, or numbers that are not finite{}")
def test_the_form_of_a_box():
    form = ["minmax"]
    follow = lambda said: form.append(form.pop() and said.found(r"--box-form (\w+)"))  # noqa: E731
    return lambda: _box([2.0, 2.0, 2.0, 1.0, 1.0, 1.0], form[0]), follow


@remedy("write it again")
def test_proposals_that_were_cut(tmp_path: Path):
    path = tmp_path / "p.json"
    path.write_text('{"scene0000_00": [')
    return lambda: read_proposals(path, "minmax", SCENES, Counter()), lambda _: path.write_text('{"scene0000_00": []}')


@remedy("Other tables are read by `rb prepare custom`")
def test_another_table_as_a_mirror(tmp_path: Path):
    raw = coco_images(tmp_path / "raw")
    (raw / "data").mkdir(exist_ok=True)
    place = raw / "data/train-00000-of-00001.parquet"
    parquet(place, [{"file": "a.png", "text": "a red thing"}])
    shutil.copy(place, tmp_path / "t.parquet")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(jpeg(kind="PNG"))
    words = ["prepare", "refcoco", "--raw", raw, "--out", tmp_path / "out"]

    def follow(said: Said) -> None:
        table = ["--parquet", tmp_path / "t.parquet", "--images", tmp_path / "images", "--out", tmp_path / "own"]
        words[:] = [*said.commands[-1].split()[1:], *table]

    return lambda: typed(*words), follow


@remedy("say what the numbers of {} mean: --boxes with one of {}")
def test_boxes_in_tars(tmp_path: Path):
    """No header of an image is read before the samples are, so that nothing is guessed."""
    tar = pack(tmp_path / "a.tar", [m for i in range(2) for m in sample(f"{i:09d}", box=[1.0, 2.0, 9.0, 9.0])])
    words = ["prepare", "custom", "--tars", tar, "--out", tmp_path / "out", "--column", "box=box"]
    return lambda: typed(*words), lambda said: words.extend(
        [said.found(r": (--boxes) with"), said.found(r"with one of (\w+),")]
    )


CLEF = "RefCLEF (refclef, in UNC's and Berkeley's split) is on the photos"


@pytest.mark.parametrize("way", ["another", "custom"])
@pytest.mark.parametrize("says", covers([CLEF]))
def test_refclef(tmp_path: Path, places: dict[str, Path], says: str, way: str) -> None:
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])})
    words = ["prepare", "refcoco", "--raw", raw, "--name", "refclef", "--out", tmp_path / "out"]

    def follow(said: Said) -> None:
        if way == "another":
            words[5] = said.found(r"prepare one of \w+, [\w+]+, (\w+)")
        else:
            words[:] = [
                *said.commands[-1].split()[1:],
                "--csv",
                places["t.csv"],
                "--images",
                places["images"],
                "--out",
                tmp_path / "out",
            ]

    helps(says, lambda: typed(*words), follow)
