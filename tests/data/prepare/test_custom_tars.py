"""`rb prepare custom --tars`: tars as img2dataset writes them give a record a sample; damage costs the samples it hits, and is listed."""

from __future__ import annotations

import io
import json
import resource
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rb.cli import main
from rb.data.index import ManifestReader
from rb.data.prepare import custom
from rb.data.prepare.convert import Writing, convert
from rb.data.prepare.custom_tars import find_samples
from rb.data.unfinished import Work
from tests.support.raw_data import found, jpeg, reasons
from tests.support.remedies import remedy, typed
from tests.support.small_data import image_bytes

Members = Iterable[tuple[str, bytes]]


def fields(key: str, **more: Any) -> bytes:
    """The JSON beside a sample, with the names that img2dataset 1.45 writes."""
    row = {
        "caption": f"alt text of {key}", "url": f"https://example.org/{key}.jpg", "key": key, "status": "success",
        "error_message": None, "width": 32, "height": 24, "original_width": 640, "original_height": 480,
        "exif": "{}", "sha256": "0" * 64,
    }  # fmt: skip
    return json.dumps(row | more, indent=4).encode()


def sample(key: str, image: bytes | None = None, **more: Any) -> list[tuple[str, bytes]]:
    """The members of one sample in the order in which img2dataset writes them: sorted by extension."""
    text = f"a photo of {key}".encode()
    return [(f"{key}.jpg", image or jpeg()), (f"{key}.json", fields(key, **more)), (f"{key}.txt", text)]


def pack(path: Path, members: Members, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "a" if path.exists() else "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data) if kind == tarfile.REGTYPE else 0, kind
            tar.addfile(info, io.BytesIO(data))
    return path


def write_tars(folder: Path, tars: int = 3, samples: int = 4) -> Path:
    folder.mkdir()
    for t in range(tars):
        members = [m for i in range(samples) for m in sample(f"{t:05d}{i:04d}", image_bytes(t * samples + i))]
        pack(folder / f"{t:05d}.tar", members)
    (folder / "00000_stats.json").write_text("{}")
    return folder


def command(tars: object, out: Path, *more: str) -> list[str]:
    return ["prepare", "custom", "--tars", str(tars), "--out", str(out), "--name", "web", *more]


def captions(folder: Path) -> dict[str, list[str]]:
    return {record.source_id: record.captions for record, _ in ManifestReader(folder).records()}


def test_every_sample_is_a_record_and_the_key_draws_its_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = write_tars(tmp_path / "tars")
    assert main(command(tars / "*.tar", tmp_path / "a", "--val", "0.4", "--workers", "3")) == 0
    said = capsys.readouterr().err
    assert "3 tars, 12 samples, file=__key__, caption=txt; fields: caption, url, key, status" in said
    sets = {split: captions(tmp_path / "a" / split) for split in ("train", "val")}
    both = sets["train"] | sets["val"]
    assert len(both) == 12 == len(sets["train"]) + len(sets["val"])
    assert both["web/000010002"] == ["a photo of 000010002"]
    record = found(tmp_path / "a" / "train")[next(iter(sets["train"]))]
    assert (record.extension, record.record.size) == ("png", (20, 14))
    # In another order, with another sample more, each sample is in the split it was in.
    pack(tars / "00003.tar", sample("zz"))
    files = [str(tars / f"{t:05d}.tar") for t in (2, 0, 3, 1)]
    assert main([*command(files[0], tmp_path / "b", "--val", "0.4"), "--tars", *files]) == 0
    for split, rows in sets.items():
        assert captions(tmp_path / "b" / split).items() >= rows.items()
        assert len(captions(tmp_path / "b" / split)) - len(rows) <= 1


def test_the_caption_can_be_a_field_of_the_json_and_boxes_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = {"boxes": [[1, 2, 20, 20], [0, 0, 9.5, 9]], "phrases": ["a cat", "its ear"], "ids": [7, 8]}
    pack(tmp_path / "0.tar", [*sample("a", **boxes), *sample("b", **boxes | {"phrases": ["one"]})])
    assert main(command(tmp_path, tmp_path / "alt", "--column", "caption=caption")) == 0
    assert captions(tmp_path / "alt/train")["web/a"] == ["alt text of a"]
    told = ["--column", "caption=phrases", "--column", "box=boxes", "--column", "object=ids", "--most-bad", "0.5"]
    assert main(command(tmp_path, tmp_path / "r", *told)) == 2
    assert "say what the numbers of boxes mean: --boxes with one of xyxy, xywh" in capsys.readouterr().err
    assert main(command(tmp_path, tmp_path / "r", *told, "--boxes", "xyxy")) == 0
    reader = ManifestReader(tmp_path / "r/train")
    (record,) = [record for record, _ in reader.records()]
    assert [(o.object_id, o.box, o.captions) for o in record.objects] == [
        ("7", [1, 2, 20, 20], ["a cat"]),
        ("8", [0, 0, 9.5, 9], ["its ear"]),
    ]
    assert reader.manifest.rejected == {"malformed_row": 1}
    assert main(command(tmp_path, tmp_path / "x", "--column", "caption=nope")) == 2
    assert "'nope' is no column of" in capsys.readouterr().err
    assert main(command(tmp_path / "none*.tar", tmp_path / "x")) == 2
    assert "no such tar; give files, a folder of .tar, or a pattern" in capsys.readouterr().err
    assert main([*command(tmp_path, tmp_path / "x"), "--images", str(tmp_path)]) == 2
    assert "the images are in the tars" in capsys.readouterr().err


def test_bad_samples_are_counted_with_file_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [m for i in range(4) for m in sample(f"g{i}")]
    pack(tmp_path / "0.tar", good)
    pack(tmp_path / "0.tar", sample("broken", jpeg()[:-9]))
    pack(tmp_path / "0.tar", sample("textless")[:1])
    pack(tmp_path / "0.tar", sample("imageless")[1:])
    pack(tmp_path / "0.tar", [("odd.jpg", jpeg()), ("odd.json", b'{"a": NaN'), ("odd.txt", b"a cat")])
    pack(tmp_path / "0.tar", [("bytes.jpg", jpeg()), ("bytes.txt", b"caf\xe9 table")])
    pack(tmp_path / "0.tar", [("list.jpg", jpeg()), ("list.json", b"[1]")])
    pack(tmp_path / "0.tar", [("two.jpg", jpeg()), ("two.jpg", jpeg()), ("two.txt", b"a cat")])
    pack(tmp_path / "0.tar", sample("dir/v1.2"))
    pack(tmp_path / "0.tar", sample("g1"))  # again
    pack(tmp_path / "0.tar", [("../out.jpg", jpeg()), ("x.cls", b"1"), ("._g0.jpg", b"mac")])
    pack(tmp_path / "0.tar", [("link.jpg", b"")], tarfile.SYMTYPE)
    pack(tmp_path / "0.tar", [("big.jpg", jpeg()), ("big.txt", b"x" * (1 << 21))])
    cut = pack(tmp_path / "1.tar", [*sample("c0"), *sample("c1")])
    cut.write_bytes(cut.read_bytes()[:6000])
    (tmp_path / "2.tar").write_bytes(b"<html>" * 200)
    pack(tmp_path / "3.tar", [("readme.md", b"nothing")])
    assert main(command(tmp_path, tmp_path / "out", "--most-bad", "0.2")) == 2
    said = capsys.readouterr().err
    assert "12 of 18 samples of split 'train' cannot be used: 1.tar: ends at byte 6000, inside 'c1.json'" in said
    assert "; 2.tar: not a plain, complete tar (" in said
    assert main(command(tmp_path, tmp_path / "out", "--most-bad", "0.8", "--json")) == 0
    (row,) = json.loads(capsys.readouterr().out)
    out = tmp_path / "out/train"
    assert set(captions(out)) == {"web/g0", "web/g1", "web/g2", "web/g3", "web/dir/v1.2", "web/c0"}
    assert dict(reasons(out)) == {
        "unreadable_image": 1,
        "no_caption": 1,
        "image_missing": 1,
        "malformed_row": 5 + 3,
        "duplicate_source": 1,
    }
    assert row["read"] == 6 + 12
    assert row["notes"] == {"members that are no image, text or JSON": 4}
    assert not list(tmp_path.parent.glob("out.jpg"))


def sampled(folder: Path) -> list[str]:
    """A command on one tar with one box a sample."""
    pack(folder / "0.tar", sample("a", bbox=[1, 2, 20, 20]))
    return command(folder, folder / "out")


@remedy("no such tar; give files, a folder of .tar, or a pattern such as 'DIR/*.tar'")
def test_a_pattern_that_finds_tars(tmp_path: Path):
    words = [str(tmp_path / "none*.tar") if word == str(tmp_path) else word for word in sampled(tmp_path)]
    follow = lambda said: words.__setitem__(3, said.found("such as '(.*)'").replace("DIR", str(tmp_path)))  # noqa: E731
    return lambda: typed(*words), follow


@remedy("the images are in the tars; leave out --images and --clouds ({})")
def test_tars_without_a_folder_of_images(tmp_path: Path):
    words = [*sampled(tmp_path), "--images", str(tmp_path)]
    return lambda: typed(*words), lambda said: words.remove(said.found("leave out (--images)")) or words.pop()


@remedy("say what the numbers of {} mean: --boxes with one of {}")
def test_what_boxes_in_tars_mean_is_said(tmp_path: Path):
    words = [*sampled(tmp_path), "--column", "box=bbox"]
    follow = lambda said: words.extend([said.found("(--boxes) with"), said.found("with one of (\\w+),")])  # noqa: E731
    return lambda: typed(*words), follow


@remedy("--images or --clouds: name the folder of the files that the table's rows name")
def test_a_table_has_a_folder(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "t.csv").write_text("file,caption\na.jpg,a red thing\n")
    words = ["prepare", "custom", "--csv", tmp_path / "t.csv", "--out", tmp_path / "out"]
    return lambda: typed(*words), lambda said: words.extend([said.found("(--images)"), tmp_path])


def test_after_a_kill_it_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars")
    raw = custom.open_raw(tars=[str(tars)], out=tmp_path / "set")
    writing = Writing(work=Work({"x": 1}, raw.files), max_shard_bytes=9000, workers=2)

    def content(name: str) -> Mapping[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    convert(raw.plan("train"), tmp_path / "whole", writing)
    plan, count = raw.plan("train"), 0
    write = plan.write

    def stopping(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt
        write(*arguments)

    object.__setattr__(plan, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(plan, tmp_path / "set", writing)
    assert (tmp_path / ".set.unfinished").is_dir()
    convert(raw.plan("train"), tmp_path / "set", writing)
    assert content("set") == content("whole")
    assert len([name for name in content("set") if name.endswith(".tar")]) > 3


def test_a_tar_of_many_samples_is_not_held_in_memory(tmp_path: Path) -> None:
    """2,000 samples that claim 100 kB each, on a disk that holds none of it."""
    with (tmp_path / "0.tar").open("wb") as file:
        for i in range(2000):
            for extension, size in (("jpg", 100_000), ("txt", 9)):
                info = tarfile.TarInfo(f"{i:09d}.{extension}")
                info.size = size
                file.write(info.tobuf())
                file.seek(-(-size // 512) * 512, io.SEEK_CUR)
        file.truncate(file.tell() + 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    places = find_samples([tmp_path / "0.tar"], {"val": 0.5})
    assert (places.samples, places.bad) == (2000, [])
    place = places.splits["train"][1]
    assert (place.tar.name, place.length) == ("0.tar", 512 + 100_352 + 512 + 512)
    assert places.splits["val"][-1].start < 2000 * place.length
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
