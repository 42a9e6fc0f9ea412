"""What the messages of rb/data advise helps: sets of shards, their index, tars of others. test_remedies_of_records.py and test_remedies_of_jobs.py have the rest."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path

import pytest

from rb.core.config import DataSource
from rb.core.files import file_sha256
from rb.core.locks import FileLock
from rb.core.modality import IMAGE
from rb.data import index as index_file
from rb.data import shards, tars
from rb.data.formats import read_manifest
from rb.data.index import IndexBuilder, ManifestReader
from rb.data.order import Arrangement
from rb.data.pipeline import open_training_data
from rb.data.shard_writer import ShardWriter
from rb.data.shards import adopt, verify_shards
from rb.data.tars import scan_shard
from tests.data.test_hostile_shards import HEADER, RECORD
from tests.data.test_packed_tars import packed, unpacked
from tests.support.remedies import Said, covers, helps, ran, remedy
from tests.support.small_data import media, record, write_set


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", IMAGE, 4)
    return tmp_path / "set"


# Message -> what is done to a set's index, its manifest or its shards; the printed command makes the index and the very same manifest again.
INDEX = {
    "the index that {} names is missing; {}": lambda index: index.unlink(),
    "bytes, but {} says {}; {}": lambda index: index.write_bytes(b"RBINDEX1"),
    "altered since {} was written (sha256 differs); {}": lambda index: index.write_bytes(bytes(index.stat().st_size)),
}


@pytest.mark.parametrize("says", covers(INDEX, also=["make it again: {}"]))
def test_the_index_is_made_again(small: Path, says: str) -> None:
    before = (small / "manifest.json").read_bytes()
    (small / "index.bin").chmod(0o644)
    INDEX[says](small / "index.bin")
    helps(says, lambda: ManifestReader(small), Said.ran)
    assert (small / "manifest.json").read_bytes() == before, "training goes on only on equal digests"


def forged(folder: Path, start: int, code: str, value: int) -> None:
    """An index that lies, as in a folder that somebody else made: its digest fits."""
    file = folder / "index.bin"
    data = bytearray(file.read_bytes())
    struct.pack_into(code, data, start, value)
    file.chmod(0o644)
    file.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index"]["sha256"] = file_sha256(file)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def read_all(folder: Path) -> None:
    reader = ManifestReader(folder)
    for number in range(len(reader)):
        reader.sample(number)


SAMPLES = HEADER + 4 * RECORD
FORGED = {
    "does not fit {} (another version or another folder's index); {}": (16, "<Q", 3),
    "{}: {}; {}": (HEADER + 24, "<I", 2**32 - 1),  # a record of 4 GiB
    "which sample {} of the index names; make the index again": (SAMPLES + 8, "<I", 50),
}


@pytest.mark.parametrize("says", covers(FORGED))
def test_an_index_that_lies_is_made_again(small: Path, says: str) -> None:
    forged(small, *FORGED[says])
    helps(says, lambda: read_all(small), Said.ran)


@remedy("{}; make the index again: {}")
def test_an_index_that_takes_two_records_for_one(small: Path):
    found = list(scan_shard(small / "small-000000.tar"))
    forged(small, HEADER + 24, "<I", len(found[0].data) + len(found[1].data))
    forged(small, HEADER + 8, "<Q", index_file.digest64(found[0].data + found[1].data))
    return lambda: read_all(small), Said.ran


@remedy("data.group_by_source and data.order: blocks need; make the index again: {}")
def test_an_index_out_of_the_order_of_its_records(small: Path):
    forged(small, SAMPLES, "<I", 3)
    sources = {IMAGE: [DataSource(str(small))]}
    return lambda: open_training_data(sources, 0, Arrangement(group_by_source=2)), Said.ran


@remedy("holds no sample; make the set again with `rb prepare`")
def test_a_set_without_samples(small: Path):
    manifest = json.loads((small / "manifest.json").read_text())
    entry = IndexBuilder(IMAGE).write(small / "index.bin", len(manifest["shards"]))
    manifest["counts"] |= {"records": 0, "samples": 0}
    (small / "manifest.json").write_text(json.dumps(manifest | {"index": dataclasses.asdict(entry)}))
    return lambda: ManifestReader(small), lambda _: write_set(small, IMAGE, 4, overwrite=True)


def lost(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size - 512)


def altered(file: Path) -> None:
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[600:608] = b"........"
    file.write_bytes(data)


def damaged(file: Path) -> None:
    """Behind its first record."""
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    second = list(scan_shard(file))[1].offset
    data[second : second + 512] = bytes(512)
    file.write_bytes(data)


# Message -> (what happens to a shard, the call). "Bring it back": the shard that was copied elsewhere.
SHARD = {
    "the shard that {} names is missing; bring it back": (lost, read_all),
    "cut or replaced; bring the right file back, or": (cut, read_all),
    "{}: {}; bring the shard back, or make it again with `rb prepare`": (altered, read_all),
    "files are not as written: {}; bring them back, or prepare the set again": (altered, verify_shards),
    "the records behind are out of reach; bring the shard back": (
        damaged,
        lambda f: list(scan_shard(f / "small-000000.tar")),
    ),
    "ends without tar's end mark, so it was cut; bring the shard back": (
        lambda f: os.truncate(f, sum(len(r.data) for r in scan_shard(f))),
        lambda f: list(scan_shard(f / "small-000000.tar")),
    ),
}


@pytest.mark.parametrize(("says", "again"), [(says, way) for says in covers(SHARD) for way in (False, True)])
def test_a_shard_is_brought_back_or_made_again(small: Path, tmp_path: Path, says: str, again: bool) -> None:
    harm, call = SHARD[says]
    file = small / "small-000000.tar"
    shutil.copy(file, tmp_path / "elsewhere.tar")
    file.chmod(0o644)
    harm(file)

    def follow(_: Said) -> None:
        if again:
            write_set(small, IMAGE, 4, overwrite=True)
        else:
            shutil.copy(tmp_path / "elsewhere.tar", file)

    helps(says, lambda: call(small), follow)


@remedy("cannot be read ({}); check the disk, or bring the shard back")
def test_a_shard_that_leaves_while_it_is_read(small: Path, tmp_path: Path):
    reader = ManifestReader(small)
    shutil.move(small / "small-000000.tar", tmp_path)
    return lambda: reader.sample(0), lambda _: shutil.move(tmp_path / "small-000000.tar", small)


@remedy("no manifest there; give a manifest.json or its folder (`rb prepare`")
def test_no_manifest(small: Path):
    folder = [small.parent]
    return lambda: read_manifest(folder[0]), lambda _: folder.append(folder.pop() / "set")


@remedy("format_version {} is not {}; make the shards again with this version")
def test_shards_of_an_older_version(small: Path):
    path = small / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 0'))
    return lambda: read_manifest(small), lambda _: write_set(small, IMAGE, 4, overwrite=True)


@remedy("exists already; say --overwrite to index the folder again")
def test_a_folder_that_has_an_index(small: Path):
    again = {"overwrite": False}

    def follow(said: Said) -> None:
        again[said.found(r"say --(\w+)")] = True

    return lambda: adopt(small, IMAGE, **again), follow


@remedy("compressed tars must be unpacked first")
def test_a_compressed_tar(small: Path):
    (small / "manifest.json").unlink()
    tar = small / "small-000000.tar"
    tar.chmod(0o644)
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    return lambda: adopt(small, IMAGE), lambda _: tar.write_bytes(gzip.decompress(tar.read_bytes()))


@remedy("holds no .tar file; give the folder of the shards (compressed tars must be unpacked to .tar)")
def test_a_folder_of_compressed_tars(small: Path):
    (small / "manifest.json").unlink()
    for tar in list(small.glob("*.tar")):
        tar.with_suffix(".tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
        tar.unlink()

    def follow(_: Said) -> None:
        for packed_tar in small.glob("*.tar.gz"):
            packed_tar.with_suffix("").write_bytes(gzip.decompress(packed_tar.read_bytes()))

    return lambda: adopt(small, IMAGE), follow


def unpacked_and_packed(said: Said, tar: Path) -> None:
    """What the line about the order of members says."""
    folder = tar.parent.parent / "unpacked"
    folder.mkdir()
    with tarfile.open(tar) as file:
        file.extractall(folder, filter="data")
    tar.unlink()
    ran(said.commands[0].replace("NEW.tar", str(tar.with_name("new.tar"))).replace("DIR", str(folder)))


@remedy("are not next to each other (a record is KEY.json and one of {}); pack the shard again, sorted")
def test_members_in_any_order(tmp_path: Path):
    files = unpacked(tmp_path / "files")
    names = [path.name for path in (*sorted(files.glob("*g")), *sorted(files.glob("*.json")))]
    tar = packed(tmp_path / "set/x.tar", "-C", str(files), *names)
    return lambda: adopt(tar.parent, IMAGE), lambda said: unpacked_and_packed(said, tar)


@remedy("is not a plain file but {}; pack the shard again")
def test_links_in_a_tar(tmp_path: Path):
    files = unpacked(tmp_path / "files")
    shutil.move(files / "000000.png", tmp_path / "elsewhere.png")
    (files / "000000.png").symlink_to(tmp_path / "elsewhere.png")
    tar = packed(tmp_path / "set/x.tar", "--sort=name", "-C", str(files), ".")
    follow = lambda said: ran(f"{said.commands[0]} --sort=name -cf {tar} -C {files} .")  # noqa: E731
    return lambda: adopt(tar.parent, IMAGE), follow


@remedy("leads outside the archive; this is not a shard of ours, do not use it")
def test_a_tar_that_leads_outside(small: Path, tmp_path: Path):
    (tmp_path / "000000.png").write_bytes(b"")
    hostile = packed(small / "x.tar", "-P", str(tmp_path / "000000.png"))
    return lambda: adopt(small, IMAGE, overwrite=True), lambda _: hostile.unlink()


@pytest.mark.parametrize(
    "says", covers(["a record at most {}; shrink its image or cloud", "a record has at most {}; shrink its"])
)
def test_a_record_that_is_too_large(tmp_path: Path, says: str, monkeypatch) -> None:
    """The limit is lowered, so that no image of 100 MiB is needed."""
    write_set(tmp_path / "set", IMAGE, 1)
    room = next(iter(scan_shard(tmp_path / "set/small-000000.tar"))).data
    for module in (shards, tars):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", len(room) + 1024)
    image = [media(IMAGE, 0)[0] + bytes(4096)]

    def write() -> None:
        with ShardWriter(tmp_path / "new", "small", IMAGE, "train", overwrite=True) as writer:
            writer.write(record(IMAGE, 0), image[0], "png")

    def read() -> None:
        files = unpacked(tmp_path / "files", count=1)
        (files / "000000.png").write_bytes(image[0])
        adopt(packed(tmp_path / "packed/x.tar", "--sort=name", "-C", str(files), ".").parent, IMAGE, overwrite=True)

    helps(says, write if "has at most" in says else read, lambda _: image.append(image.pop()[:-4096]))


@remedy("cannot name a file; use letters, digits and hyphens")
def test_a_name_that_is_a_path(tmp_path: Path):
    name = ["a/b"]
    return lambda: ShardWriter(tmp_path / "set", name[0], IMAGE, "train"), lambda _: name.append(
        name.pop().replace("/", "-")
    )


@pytest.mark.parametrize("way", ["wait", "choose"])
@pytest.mark.parametrize("says", covers(["is writing it; wait for it, or choose another folder"]))
def test_a_set_that_another_process_writes(tmp_path: Path, says: str, way: str) -> None:
    other = FileLock(tmp_path / ".set.lock")
    assert other.acquire()
    name = ["set"]

    def write() -> None:
        with ShardWriter(tmp_path / name[0], "small", IMAGE, "train") as writer:
            writer.write(record(IMAGE, 0), *media(IMAGE, 0))

    helps(says, write, lambda _: other.release() if way == "wait" else name.append(name.pop() + "2"))
    other.release()


@pytest.mark.parametrize("way", ["replace", "choose"])
@pytest.mark.parametrize(
    "says",
    covers(
        [
            "{}: holds a set of shards already; replace it with --overwrite, or choose another folder",
            "{}: is a file; choose another name for the folder of shards",
        ]
    ),
)
def test_a_folder_that_is_a_set_or_a_file(tmp_path: Path, says: str, way: str) -> None:
    out, overwrite = [tmp_path / "out"], []
    if "is a file" in says:
        out[0].touch()
    else:
        write_set(out[0], IMAGE, 1)

    def write() -> None:
        with ShardWriter(out[0], "a", IMAGE, "train", overwrite=bool(overwrite)) as writer:
            writer.write(record(IMAGE, 0), *media(IMAGE, 0))

    def follow(said: Said) -> None:
        if way == "replace" and "--overwrite" in said:
            overwrite.append(True)
        else:
            out.append(out.pop().with_name("another"))

    helps(says, write, follow)


@pytest.mark.parametrize("way", ["choose", "remove"])
@pytest.mark.parametrize(
    "says",
    covers(
        [
            "{}: is not empty; choose another folder, or remove it first",
            "so it is not overwritten; choose another folder",
        ]
    ),
)
def test_a_folder_that_is_not_empty(tmp_path: Path, says: str, way: str) -> None:
    out = [tmp_path / "out"]
    out[0].mkdir()
    (out[0] / "mine.txt").touch()

    def follow(said: Said) -> None:
        if way == "remove" and "remove" in said:
            shutil.rmtree(out[0])
        else:
            out.append(out.pop().with_name("another"))

    helps(says, lambda: ShardWriter(out[0], "a", IMAGE, "train", overwrite="overwritten" in says), follow)
