"""Fingerprints cover every byte, are computed once, and those of older versions are still recognised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rb.core.fingerprints as fp
from rb.core.files import file_sha256

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files of some age, one of 4 MiB, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []
    for name, data in (("a.bin", os.urandom(4 * MIB)), ("b.json", b"{}")):
        path = tmp_path / name
        path.write_bytes(data)
        os.utime(path, (1e9, 1e9))
        made.append(path)
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read to be hashed."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(fp, "file_sha256", counted)
    return names


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_every_byte_counts(files: list[Path]) -> None:
    before, weaker = fp.fingerprint(files), fp.weaker_fingerprint(files)
    flip(files[0], 2 * MIB)
    assert fp.fingerprint(files) != before
    assert fp.weaker_fingerprint(files) == weaker, "in the middle: the weaker one cannot see it"
    flip(files[0], 2 * MIB)
    assert fp.fingerprint(files[::-1]) == before, "the order given does not matter"
    assert not fp.is_weaker(before)
    assert fp.is_weaker(weaker)


def test_hashed_once_until_changed(files: list[Path], hashed: list[str]) -> None:
    first = fp.fingerprint(files)
    assert sorted(hashed) == ["a.bin", "b.json"]
    assert fp.fingerprint(files) == first
    assert len(hashed) == 2
    os.utime(files[0], (1e9 + 1, 1e9 + 1))
    assert fp.fingerprint(files) == first
    assert hashed[2:] == ["a.bin"]
    fp.fingerprint([files[0].rename(files[0].with_name("c.bin"))])
    assert hashed[3:] == ["c.bin"]


def test_a_file_just_written_is_not_kept(files: list[Path], hashed: list[str]) -> None:
    files[1].write_text("[]")
    fp.fingerprint(files[1:])
    fp.fingerprint(files[1:])
    assert hashed == ["b.json", "b.json"]


def test_processes_share_the_work(files: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib, rb.core.fingerprints as fp\nread = fp.file_sha256\n"
        "def slow(path):\n    print(path.name); time.sleep(0.3); return read(path)\n"
        "fp.file_sha256 = slow\nfp.fingerprint([pathlib.Path(sys.argv[1])])"
    )
    command = [sys.executable, "-c", code, str(files[0])]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(process.communicate()[0] for process in running) == ["", "", "a.bin\n"]


@pytest.mark.parametrize("broken", ["file", "garbage", "no home"])
def test_without_a_usable_cache(
    broken: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fp.fingerprint(files)
    if broken == "garbage":
        for entry in fp.cache_folder().glob("*.json"):
            entry.write_text("{")
    elif broken == "file":
        (tmp_path / "x").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert fp.fingerprint(files) == expected


def test_the_cache_is_bounded(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp, "_MOST_ENTRIES", 3)
    for number in range(6):
        path = tmp_path / f"{number}.txt"
        path.write_text(str(number))
        os.utime(path, (1e9, 1e9))
        fp.fingerprint([path])
    assert len(list(fp.cache_folder().glob("*.json"))) == 3
    assert len(list(fp.cache_folder().glob("*.lock"))) == 3
