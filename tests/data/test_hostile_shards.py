"""Shards and indexes that lie: refused in one line that names the file, without the memory or the time that they ask for."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from rb.core.files import file_sha256
from rb.core.modality import IMAGE, IMAGE_REGION
from rb.data.formats import MAX_RECORD_BYTES, FormatError
from rb.data.index import ManifestReader
from rb.data.shards import adopt
from rb.data.tars import scan_shard
from tests.support.hostile_tars import END, FILE, TARS, header, pax
from tests.support.small_data import write_set

HEADER, RECORD, SAMPLE = 64, 32, 12  # bytes of the index: docs/formats.md


@pytest.mark.parametrize("case", TARS)
def test_a_tar_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "lies.tar"
    path.write_bytes(TARS[case])
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"lies\.tar: ") as refused:
        list(scan_shard(path))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(path))


def test_long_names_and_settings_of_other_writers_are_read(tmp_path: Path) -> None:
    """Not every pax header is an attack: GNU tar, bsdtar and Python write them."""
    write_set(tmp_path / "set", IMAGE, 1)
    shard = next((tmp_path / "set").glob("*.tar"))
    found = list(scan_shard(shard))
    shard.chmod(0o644)
    shard.write_bytes(pax(b"mtime=1700000000.123456789") + pax(b"comment=" + b"x" * 5000, b"g") + shard.read_bytes())
    assert [item.record for item in scan_shard(shard)] == [item.record for item in found]


def test_a_record_larger_than_a_record_may_be_is_not_read(tmp_path: Path) -> None:
    """A hole in the file: 900 MiB that take no room on the disk are held neither twice nor once."""
    path = tmp_path / "large.tar"
    path.write_bytes(header("k.png", 900 << 20))
    os.truncate(path, 512 + (900 << 20))
    with path.open("ab") as file:
        file.write(FILE + END)
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"a record at most {MAX_RECORD_BYTES:,}; shrink its image or cloud"):
        list(scan_shard(path))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ((0, "length"), 2**32 - 1, "record 0 claims more than"),
        ((1, "length"), 10**6, "record 1 reaches beyond the end of its shard"),
        ((1, "offset"), 2**64 - 1, "record 1 reaches beyond the end of its shard"),
        ((1, "offset"), 512, "not a plain, complete tar|holds 2 keys|its bytes were altered"),
        ((2, "shard"), 77, "record 2 names a shard that the manifest has not"),
        ((0, "id_end"), 2**63, "record 0 has a source id outside the ids"),
        ((1, "id_end"), 0, "record 1 has a source id outside the ids"),
        ((0, "record"), 9999, "sample 0 names a record that the index has not"),
        ((1, "object"), -2, "sample 1 names an object below 0"),
        ((1, "object"), 50, "has no object 50 with a caption"),
        ((2, "caption"), 50, "has no object . with a caption 50"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, place: tuple[int, str], value: int, says: str) -> None:
    """Its digest fits, as it does in a folder that somebody else made."""
    folder = tmp_path / "set"
    write_set(folder, IMAGE_REGION, 4)
    (row, column), index = place, folder / "index.bin"
    records = struct.unpack_from("<Q", index.read_bytes(), 16)[0]
    record = {"offset": (0, "<Q"), "id_end": (16, "<Q"), "length": (24, "<I"), "shard": (28, "<I")}
    sample = {"record": (0, "<I"), "object": (4, "<i"), "caption": (8, "<I")}
    start = HEADER + row * RECORD if column in record else HEADER + records * RECORD + row * SAMPLE
    offset, code = (record | sample)[column]
    data = bytearray(index.read_bytes())
    struct.pack_into(code, data, start + offset, value)
    index.chmod(0o644)
    index.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index"]["sha256"] = file_sha256(index)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"(index\.bin|\.tar): .*({says})") as refused:
        for number in range(len(reader := ManifestReader(folder))):
            reader.sample(number)
    assert "\n" not in str(refused.value)
    # The remedy that the line names works.
    if "rb data index" in str(refused.value):
        adopt(folder, IMAGE_REGION, overwrite=True)
        assert ManifestReader(folder).sample(0)
