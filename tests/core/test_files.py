"""Writing whole files and folders, digests, and locks between processes."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rb.core.files import file_sha256, sha256, whole_file, whole_folder, write_json, write_whole
from rb.core.locks import FileLock


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a.txt", "text")
        with whole_file(tmp_path / "b.safetensors") as file:
            save_file({"x": torch.ones(2)}, file)
        with whole_folder(tmp_path / "folder") as folder:
            (folder / "inner").mkdir()
            save_file({"x": torch.ones(2)}, folder / "inner" / "c.safetensors")
    finally:
        os.umask(before)
    for name in ("a.txt", "b.safetensors", "folder/inner/c.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode, name
    assert load_file(tmp_path / "b.safetensors")["x"].tolist() == [1, 1]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"new": float("nan")})
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.json") as file:
        file.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "b") as folder:
        (folder / "x").write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.json").read_text() == '{\n "old": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    for content, replace in (("1", False), ("2", True)):
        with whole_folder(tmp_path / "a", replace) as folder:
            (folder / "x").write_text(content)
    with pytest.raises(FileExistsError, match="a'"), whole_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "x").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_digests(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    write_whole(tmp_path / "a", data)
    told: list[int] = []
    assert file_sha256(tmp_path / "a", told.append) == sha256(data) == hashlib.sha256(data).hexdigest()
    assert sum(told) == len(data)
    assert sha256("é") == sha256("é".encode())


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "made" / "lock"), FileLock(tmp_path / "made" / "lock")
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    assert second.owner().startswith(f"process {os.getpid()} on ")
    child = os.fork()
    if child == 0:  # its copy is closed, the parent's lock stays
        os._exit(0 if not FileLock(tmp_path / "made" / "lock").acquire() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    first.release()
    with second:
        assert not first.acquire()
    assert first.acquire()
    del first
    assert second.acquire(), "a lock ends with its object"
