"""Tars as people pack them: folder entries, any order, dots in names, macOS's extra files. They are read, or refused with the cause."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset

from rb.core.modality import IMAGE, POINT_CLOUD
from rb.data import tars
from rb.data.formats import FormatError
from rb.data.index import ManifestReader
from rb.data.shard_writer import ShardWriter
from rb.data.shards import adopt, verify_shards
from rb.data.tars import scan_shard, split_key, split_members
from tests.support.small_data import media, record

pytestmark = pytest.mark.skipif(shutil.which("tar") is None, reason="no tar on PATH")

JUNK = {"._000000.png": b"\0\5\26\7", "._000000.json": b"\0\5\26\7", ".DS_Store": b"Bud1", "__MACOSX/._x.png": b"\0"}


def unpacked(folder: Path, modality: str = IMAGE, name: str = "{:06d}", count: int = 4) -> Path:
    """Records as files."""
    for i in range(count):
        data, extension = media(modality, i)
        path = folder / name.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.{extension}").write_bytes(data)
        path.with_name(f"{path.name}.json").write_bytes(record(modality, i).to_json())
    return folder


def packed(tar: Path, *words: str) -> Path:
    """By the system's tar."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-cf", str(tar), *words], check=True)
    return tar


def check(folder: Path, modality: str = IMAGE, count: int = 4) -> None:
    """All records are indexed, read by number, and equal to what was packed."""
    manifest = adopt(folder, modality, overwrite=True)
    assert manifest.counts["records"] == count
    reader = ManifestReader(folder)
    found = {loaded.source_id: stored.media for loaded, stored in reader.records()}
    assert found == {record(modality, i).source_id: media(modality, i)[0] for i in range(count)}
    for number in range(len(reader)):
        reader.sample(number)
    verify_shards(folder)


@pytest.mark.parametrize("modality", [IMAGE, POINT_CLOUD])
def test_folder_entries_are_passed_over(tmp_path: Path, modality: str) -> None:
    files = unpacked(tmp_path / "files", modality, "part/{:06d}")
    packed(tmp_path / "set/x.tar", "--sort=name", "-C", str(files), ".")
    packed(tmp_path / "set2/x.tar", "--sort=name", "-C", str(tmp_path), "files")
    for folder in (tmp_path / "set", tmp_path / "set2"):
        with tarfile.open(folder / "x.tar") as tar:
            assert any(member.isdir() for member in tar)
        check(folder, modality)
    shutil.copy(tmp_path / "set2/x.tar", tmp_path / "set/._x.tar")  # as macOS names its own file beside a tar
    (tmp_path / "set/._x.tar").write_bytes(b"\0\5\26\7")
    check(tmp_path / "set", modality)


def test_macos_files_are_passed_over_even_between_the_members_of_a_record(tmp_path: Path) -> None:
    files = unpacked(tmp_path / "files")
    for name, data in JUNK.items():
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_bytes(data)
    members = ["./._000000.png", "./000000.png", "./._000000.json", "./000000.json", "./.DS_Store", "./__MACOSX"]
    rest = [f"./{i:06d}.{end}" for i in range(1, 4) for end in ("json", media(IMAGE, i)[1])]
    packed(tmp_path / "set/x.tar", "-C", str(files), *members, *rest)
    check(tmp_path / "set")


@pytest.mark.parametrize("name", ["photo.v2.{:06d}", "2024.05.01/{:06d}", "a.b/c.jpg.{:06d}"])
@pytest.mark.parametrize("modality", [IMAGE, POINT_CLOUD])
def test_dots_in_names_belong_to_the_key(tmp_path: Path, modality: str, name: str) -> None:
    files = unpacked(tmp_path / "files", modality, name)
    packed(tmp_path / "set/x.tar", "--sort=name", "-C", str(files), ".")
    check(tmp_path / "set", modality)


def test_keys_without_dots_are_split_as_webdataset_splits_them() -> None:
    for name in ("0001.jpg", "./0001.json", "a.b/0001.points.npy", "a/0001.seg.png", "0001.JPEG"):
        key, extension = webdataset.tariterators.base_plus_ext(name)
        expected = (str(Path(key)), extension.lower())
        if name != "a/0001.seg.png":  # an extension that no record has
            assert split_key(name, "x") == expected
    assert split_key("a/0001.seg.png", "x") == ("a/0001.seg", "png")


def test_members_in_any_order_are_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    """Both orders that folders give: by kind (the media first), and reversed from half way on."""
    files = unpacked(tmp_path / "files")
    images, texts = sorted(files.glob("*g")), sorted(files.glob("*.json"))
    for number, names in enumerate(([*images, *texts], [*texts[:2], *images[::-1], *texts[2:]])):
        folder = tmp_path / f"set{number}"
        packed(folder / "x.tar", "-C", str(files), *(path.name for path in names))
        with pytest.raises(FormatError, match=r"x\.tar: the members of key '0.*' are not next to each other") as caught:
            list(scan_shard(folder / "x.tar"))
        command = str(caught.value).split("`")[1]
        (tmp_path / f"DIR{number}").mkdir()
        subprocess.run(["tar", "-xf", str(folder / "x.tar"), "-C", str(tmp_path / f"DIR{number}")], check=True)
        (folder / "x.tar").unlink()
        words = command.replace("NEW.tar", str(folder / "new.tar")).replace("DIR", str(tmp_path / f"DIR{number}"))
        subprocess.run(words.split(), check=True)
        check(folder)


def test_what_is_no_file_is_refused_by_its_kind(tmp_path: Path) -> None:
    files = unpacked(tmp_path / "files")
    (files / "000000.png").rename(tmp_path / "elsewhere.png")
    (files / "000000.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "set").mkdir()
    packed(tmp_path / "set/x.tar", "--sort=name", "-C", str(files), ".")
    with pytest.raises(FormatError, match=r"'\./000000\.png' is not a plain file but a symbolic link") as caught:
        adopt(tmp_path / "set", IMAGE)
    options = str(caught.value).split("`")[1].split()[1:]
    packed(tmp_path / "set/x.tar", *options, "--sort=name", "-C", str(files), ".")
    check(tmp_path / "set")
    info = tarfile.TarInfo("000009.json")
    with tarfile.open(tmp_path / "set/x.tar", "w") as tar:
        tar.addfile(info, io.BytesIO(b""))
    with pytest.raises(FormatError, match=r"key '000009' has members \['json'\]"):
        adopt(tmp_path / "set", IMAGE, overwrite=True)


def test_headers_of_our_writer_are_read_as_pythons_reader_reads_them(tmp_path: Path, monkeypatch) -> None:
    """Every altered bit and every cut of a record's headers: the short way gives what the long way gives, or leaves the record to it."""
    with ShardWriter(tmp_path / "set", "small", IMAGE, "train") as writer:
        for i in range(2):
            writer.write(record(IMAGE, i), *media(IMAGE, i))
    found = list(scan_shard(next((tmp_path / "set").glob("*.tar"))))
    assert all(tars._plain_members(one.data) for one in found), "the writer's headers have changed: reading got slower"

    def parts(data: bytes) -> object:
        try:
            return split_members(data, "here")
        except FormatError as error:
            return str(error)

    whole = found[0].data
    headers = [place for place in range(0, len(whole), 512) if whole[place + 257 : place + 262] == b"ustar"]
    bytes_of_headers = [place + i for place in headers for i in range(512)]
    altered = [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in bytes_of_headers]
    altered += [whole[:i] for i in range(0, len(whole), 97)]
    altered += [
        whole[: headers[1]] + whole[headers[2] :],
        whole + whole[: headers[1]],
        whole + whole,
        whole + bytes(512),
    ]
    short = [parts(data) for data in altered]
    monkeypatch.setattr(tars, "_plain_members", lambda _data: None)
    assert [parts(data) for data in altered] == short
