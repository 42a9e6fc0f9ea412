"""The loop of all converters: goes on after a kill with the same bytes, makes every split, tries without writing, lets one process write."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rb.cli import main
from rb.core.locks import FileLock
from rb.data.prepare import convert as loop
from rb.data.prepare.convert import Writing, convert
from rb.data.prepare.plan import Plan
from rb.data.unfinished import Work
from tests.support import region_csv
from tests.support.small_data import image_bytes

IMAGES = 12
WORK = Work({"converter": "region-csv"})


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regions of 12 images; every third image is missing, so that there are rejected rows between all shards; row 2 is malformed."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "images").mkdir()
    rows = ["broken"]
    for i in range(IMAGES):
        rows += [f"{i}.png,1,2,9,8,cube {i}", f"{i}.png,0,0,4,4,ball {i}"]
        if i % 3:
            (folder / f"images/{i}.png").write_bytes(image_bytes(i))
    (folder / "regions.csv").write_text("\n".join(rows) + "\n")
    return folder


def plan_of(raw: Path, **changes: Any) -> Plan:
    plan = region_csv.open_raw(raw).plan("train")
    return Plan(**{**vars(plan), **changes})


def writing(work: Work | None = WORK) -> Writing:
    return Writing(work=work, max_shard_bytes=7000)  # two records


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The set as a conversion makes it that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "set"
    tally = convert(plan_of(raw), out, writing())
    assert (tally.read, tally.used) == (1 + 2 * IMAGES, 16)
    found = content(out)
    assert sum(name.endswith(".tar") for name in found) >= 4
    return found


def stopping_at(raw: Path, number: int, stop: Callable[[], None], read: list[object] | None = None) -> Plan:
    """The plan of ``raw``; ``stop`` is called when image ``number`` is about to be written. ``read``: gets every item that is read."""
    plan = plan_of(raw)

    def write(conversion: Any, item: Any, image: Any) -> None:
        if item.file.parts == (f"{number}.png",):
            stop()
        plan.write(conversion, item, image)

    def reading(item: Any) -> Any:
        if read is not None:
            read.append(item)
        return plan.read(item)

    return plan_of(raw, write=write, read=reading)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_wherever_it_is_interrupted_the_same_command_makes_the_same_bytes(
    raw: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = 0
    for number in range(IMAGES):
        out, read = tmp_path / str(number) / "set", []
        with pytest.raises(KeyboardInterrupt):
            convert(stopping_at(raw, number, interrupt), out, writing())
        assert not out.exists()
        unfinished = out.with_name(".set.unfinished").is_dir()
        assert ("the same command goes on from there" in capsys.readouterr().err) == unfinished
        tally = convert(stopping_at(raw, -1, interrupt, read), out, writing())
        assert content(out) == whole
        assert (tally.read, tally.used, tally.captions, tally.rejected.total()) == (25, 16, 16, 9)
        assert tally.notes["images"] == 8
        assert len(read) < IMAGES if unfinished else len(read) == IMAGES
        assert [path.name for path in out.parent.iterdir()] == ["set"]
        kept += unfinished
    assert kept >= 6


def test_after_two_kills_it_goes_on_twice(raw: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "set"
    for number in (5, 9):
        child = os.fork()
        if child == 0:  # killed as the kernel kills: no handler, no clean-up
            convert(stopping_at(raw, number, lambda: os.kill(os.getpid(), signal.SIGKILL)), out, writing())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    read: list[object] = []
    convert(stopping_at(raw, -1, interrupt, read), out, writing())
    assert content(out) == whole
    assert len(read) <= 5


@pytest.mark.parametrize("change", ["byte", "missing", "key", "state", "rejected"])
def test_what_does_not_fit_is_not_gone_on_with(
    raw: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    out, folder = tmp_path / "set", tmp_path / ".set.unfinished"
    with pytest.raises(KeyboardInterrupt):
        convert(stopping_at(raw, 9, interrupt), out, writing())
    shard = folder / "region-csv-000001.tar"
    if change == "byte":
        data = bytearray(shard.read_bytes())
        data[600] ^= 1
        shard.write_bytes(data)
    elif change == "missing":
        shard.unlink()
    elif change == "state":
        (folder / "state.json").write_text("{}")
    elif change == "rejected":
        (folder / "rejected.jsonl").write_text("")
    capsys.readouterr()
    work = Work({"converter": "region-csv", "split": "val"}) if change == "key" else WORK
    convert(plan_of(raw), out, writing(work))
    found = content(out)
    assert {**found, "prepared.json": whole["prepared.json"]} == whole
    said = {"byte": "is not as it was written", "missing": "is not as it was written", "key": "other options"}
    assert said.get(change, "") in capsys.readouterr().err


def test_an_annotation_file_that_changed_changes_the_work(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[]")
    os.utime(file, ns=(1, 1))
    before = Work({}, [file]).key
    assert Work({}, [file]).key == before
    file.write_text("[1]")
    os.utime(file, ns=(1, 1))
    assert Work({}, [file]).key != before
    file.write_text("[]")
    os.utime(file, ns=(2, 2))
    assert Work({}, [file]).key != before
    assert Work({"a": 1}, [file]).key != Work({"a": 2}, [file]).key


def test_after_an_error_of_the_request_nothing_is_kept(raw: Path, tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise ValueError("too many")

    for out in (tmp_path / "set", tmp_path / "new" / "folders" / "set"):
        with pytest.raises(ValueError, match="too many"):
            convert(plan_of(raw, finish=refuse), out, writing())
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="too many"):
        convert(plan_of(raw, finish=refuse), tmp_path / "mine" / "set", writing())
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_two_processes_do_not_write_one_set(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        lock = FileLock(tmp_path / ".set.lock")
        lock.acquire()
        os.write(go, b"x")
        time.sleep(60)
    os.read(ready, 1)
    with pytest.raises(
        ValueError, match=rf"process {child} on .* is writing it; wait for it, or choose another folder"
    ):
        convert(plan_of(raw), out, writing())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert convert(plan_of(raw), out, writing()).used == 16


def test_a_dry_run_counts_the_same_and_writes_nothing(raw: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    plain = convert(plan_of(raw), tmp_path / "set", writing())
    dry = convert(plan_of(raw), tmp_path / "dry", Writing(dry_run=True))
    assert dry == plain
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """COCO's raw folder with two splits."""
    folder = tmp_path / "raw"
    (folder / "val2014").mkdir(parents=True)
    entries = []
    for i, split in enumerate(("train", "val", "val")):
        name = f"COCO_val2014_{i:012d}.jpg"
        (folder / "val2014" / name).write_bytes(image_bytes(i))
        sentences = [{"raw": f"a cube {i}"}]
        entries.append({"filepath": "val2014", "filename": name, "cocoid": i, "split": split, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return folder


def test_all_splits_each_to_its_folder_and_again_what_is_missing(
    karpathy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "coco", "--raw", str(karpathy), "--split", "all", "--json"]
    out = tmp_path / "out"
    assert main([*command, "--out", str(out), "--dry-run"]) == 0
    assert [one["used"] for one in json.loads(capsys.readouterr().out)] == [1, 2]
    assert not out.exists()
    assert main([*command, "--out", str(out)]) == 0
    assert [one["title"] for one in json.loads(capsys.readouterr().out)] == ["coco, split train", "coco, split val"]
    assert main([*command, "--out", str(out / "train")]) == 2
    assert "holds a set of shards; give a folder for the folders of the splits (train, val)" in capsys.readouterr().err
    before = (out / "train/manifest.json").stat().st_mtime_ns
    for path in (out / "val").iterdir():
        path.unlink()
    assert main([*command, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert [one.get("finished_already", False) for one in json.loads(shown.out)] == [True, False]
    assert "is finished already (1 samples); --overwrite makes it again" in shown.err
    assert (out / "train/manifest.json").stat().st_mtime_ns == before
    assert json.loads((out / "val/prepared.json").read_text())["options"]["no_restval"] is False
    # Sets of other options are not taken for these.
    assert main([*command, "--out", str(out), "--no-restval"]) == 2
    assert (
        f"{out}/train: holds a set of shards already; replace it with --overwrite, or choose" in capsys.readouterr().err
    )
    assert main([*command, "--out", str(out), "--no-restval", "--overwrite"]) == 0


def test_the_split_is_chosen_or_asked_for(
    karpathy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["prepare", "coco", "--raw", str(karpathy), "--out", str(tmp_path / "out")]
    assert main([*command, "--split", "test"]) == 2
    assert "no image of split 'test'; it has train, val" in capsys.readouterr().err
    assert main([*command, "--shard-mb", "0"]) == 2
    assert "--shard-mb 0: must be at least 1" in capsys.readouterr().err
    assert main(command) == 0
    assert "coco, split train" in capsys.readouterr().out
    assert main(command) == 0
    assert f"{tmp_path / 'out'}: is finished already" in capsys.readouterr().err
    assert main([*command, "--no-restval"]) == 2
    assert "holds a set of shards already; replace it with --overwrite, or" in capsys.readouterr().err
    assert loop.choose_splits(("val",), None) == ("val",)
    with pytest.raises(ValueError, match="--split: choose one of val, test, all"):
        loop.choose_splits(("val", "test"), None)


def test_a_raw_folder_that_is_none_is_named_with_how_it_should_look(
    karpathy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for raw, says in (
        (tmp_path / "nowhere", "no such folder"),
        (karpathy / "dataset_coco.json", "is a file; give the folder"),
    ):
        assert main(["prepare", "coco", "--raw", str(raw), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert f"--raw {raw}: {says}" in said
        assert "RAW/dataset_coco.json" in said
    assert main(["prepare", "coco", "--raw", str(karpathy), "--split", "val", "--out", str(tmp_path / "out")]) == 0
