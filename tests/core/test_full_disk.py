"""A disk that takes no more: what is written whole says path and bytes and leaves the old; what is written beside the work waits or is left out."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rb.core import locks
from rb.core.exit_codes import CANNOT_WRITE, guarded
from rb.core.files import CannotWriteError, check_room, check_writable, whole_file, whole_folder, write_whole
from rb.core.fingerprints import cached_sha256
from rb.core.output import note, say
from rb.core.patient import PatientLines, PatientLogFile, attempt
from rb.core.verbosity import _Console
from rb.data.formats import Prediction, read_predictions
from rb.inference.predicting import _write
from rb.tracking.journal import Journal, PatientJournal, read_rows
from rb.training.run_folder import RunFolder
from tests.support.disks import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """1 MB."""
    with small_disk(tmp_path / "disk") as made:
        yield made


def test_what_is_written_whole_says_path_and_bytes_and_leaves_the_old(
    disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    path = disk.path / "scores.json"
    write_whole(path, "old")
    disk.fill()
    with pytest.raises(CannotWriteError) as caught:
        write_whole(path, "x" * 5000)
    assert str(caught.value) == f"{path}: cannot be written (No space left on device; 0 bytes free)"
    assert path.read_text() == "old"
    assert sorted(found.name for found in disk.path.iterdir()) == ["filler", "scores.json"]
    with pytest.raises(CannotWriteError, match=r"2,000 bytes needed, 0 free"):
        check_room(path, 2000)
    with pytest.raises(CannotWriteError, match="cannot be written"):
        check_writable(disk.path / "new" / "predictions.jsonl")

    def command() -> int:
        write_whole(path, "x" * 5000)
        return 0

    assert guarded("rb score", command) == CANNOT_WRITE
    assert capsys.readouterr().err.startswith(f"rb score: error: {path}: cannot be written")


def test_folders_and_files_of_libraries_name_their_final_path(disk: SmallDisk) -> None:
    disk.fill(leave=8192)
    large = {"a": np.zeros(50_000, np.float32)}
    refused = pytest.raises(CannotWriteError, match=rf"{disk.path}/large: cannot be written \(No space")
    with refused, whole_folder(disk.path / "large") as folder:
        save_file(large, folder / "a.safetensors")
    with refused, whole_file(disk.path / "large") as temporary:
        save_file(large, temporary)
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole_file(disk.path / "b"):  # not of this file
        Path("elsewhere").read_bytes()
    assert [found.name for found in disk.path.iterdir()] == ["filler"]


def test_a_disk_that_may_only_be_read(disk: SmallDisk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk.path], check=True)
    for write in (lambda path: write_whole(path, "b"), Journal, PatientLogFile):
        with pytest.raises(CannotWriteError, match=rf"{disk.path}/a: cannot be written \(Read-only file system"):
            write(disk.path / "a")
    logging.shutdown()  # as at the end of a process: no handler is left half made


def test_predictions_are_saved_elsewhere(disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    disk.fill()
    row = Prediction("a", "a", None, "image", "toy", "test", "a cube", ["a red cube"], None)
    with pytest.raises(CannotWriteError, match="the predictions are in ") as caught:
        _write(disk.path / "toy.jsonl", [row], {"variant": "base"})
    folder = Path(str(caught.value).split("the predictions are in ")[1].split(":")[0])
    assert read_predictions(folder / "toy.jsonl")[0] == [row]


def test_a_journal_waits_for_room_and_loses_nothing(disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    journal = PatientJournal(disk.path / "journal.jsonl")
    journal.metrics(0, {"a": 0.0})
    disk.fill()
    for step in range(1, 200):  # the page that is begun takes some
        journal.metrics(step, {"a": float(step)})
        journal.sync()
    on_disk = [row["step"] for row, _ in read_rows(journal.path, on_bad=pytest.fail)]
    assert on_disk == list(range(len(on_disk)))
    assert 0 < len(on_disk) < 200
    with pytest.raises(CannotWriteError, match=r"journal\.jsonl: cannot be written"):
        Journal(journal.path).metrics(1, {"a": 1.0})  # of an evaluation job, which must be told
    disk.empty()
    journal.metrics(200, {"a": 200.0})
    journal.close()
    rows = [row for row, _ in read_rows(journal.path, on_bad=pytest.fail)]
    assert [row["step"] for row in rows] == list(range(201))
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"{journal.path}: cannot be written (No space left on device; 0 bytes free)" in said[0]
    assert "has what was kept" in said[1]


def test_what_is_kept_has_an_end_and_losses_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[bytes] = []
    full = True

    def write(line: bytes) -> None:
        if full:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        written.append(line)

    monkeypatch.setattr("rb.core.patient.MOST_KEPT", 30)
    lines = PatientLines(Path("/somewhere/log.txt"), write)
    for i in range(10):
        lines.add(b"line number %d" % i)
    full = False
    lines.flush()
    assert written == [b"line number 0", b"line number 1"]
    assert "Disk quota exceeded" in caplog.text
    assert "8 lines were lost" in caplog.text


def test_the_log_never_stops_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    logger = logging.getLogger("rb.test_full_disk")
    handlers = [PatientLogFile(tmp_path / "log.txt"), _Console()]
    for handler in handlers:
        logger.addHandler(handler)
    try:
        with monkeypatch.context() as console:
            console.setattr(sys, "stderr", io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True))
            for step in range(3):
                logger.warning("step %d", step)
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
    assert handlers[0]._lines.num_kept == 3


def test_results_on_a_full_stdout_are_an_error_and_remarks_on_a_full_stderr_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        note("a remark")
        say("a result")
        return 0

    with monkeypatch.context() as full:
        full.setattr(sys, "stderr", io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True))
        assert guarded("rb table", command) == 0
    with monkeypatch.context() as full:
        full.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True))
        assert guarded("rb table", command) == CANNOT_WRITE
    assert "stdout: cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_page_is_left_out_and_said_once(disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    disk.fill()
    for step in (1, 2):
        path = disk.path / "validation" / f"step_{step}.html"
        assert attempt(path, lambda path=path: write_whole(path, "page")) is None  # type: ignore[misc]
    assert len(caplog.records) == 1
    disk.empty()
    assert attempt(disk.path / "page.html", lambda: disk.path) == disk.path


# File systems without locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said_in_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(locks, "_without_locks", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = logging.getLogger("rb")
    before = list(root.handlers)
    RunFolder(tmp_path / "run").claim(new=True)
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    journal = PatientJournal(tmp_path / "run" / "journal.jsonl")
    journal.metrics(1, {"a": 1.0})
    (tmp_path / "weights").write_bytes(b"123")
    assert len(cached_sha256(tmp_path / "weights")) == 64
    lock = locks.FileLock(tmp_path / "run" / "tracking.lock")
    assert lock.acquire()
    assert not lock.certain
    said = [record.getMessage() for record in caplog.records if "no locks" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'run'}: this file system has no locks ({errno.errorcode[number]})")
