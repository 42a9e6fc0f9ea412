"""Records, manifests, shards, rejected and prediction rows: what is written is read back, and what does not fit is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from rb.cli import main
from rb.core.modality import IMAGE, IMAGE_REGION, MODALITIES, POINT_CLOUD
from rb.data.check_record import check_record
from rb.data.formats import (
    FormatError,
    ObjectAnnotation,
    Prediction,
    Record,
    parse_record,
    predictions_meta_path,
    read_manifest,
    read_predictions,
    read_rejected,
    sample_id,
    write_predictions,
)
from rb.data.index import ManifestReader
from rb.data.shard_writer import ShardWriter
from rb.data.shards import adopt, verify_shards
from tests.support.small_data import HEIGHT, WIDTH, image_bytes, media, record, write_set

GOOD = record(IMAGE_REGION, 1)


def test_record_survives_a_round_trip() -> None:
    odd = replace(GOOD, captions=["zwei\u2028Zeilen\nund \u4e2d\u6587"])
    assert parse_record(odd.to_json(), "x") == odd
    assert b"\n" not in odd.to_json()
    assert odd.to_json().isascii()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("split"), "'split' is missing"),
        (lambda r: r.update(colour=1), "unknown field 'colour'"),
        (lambda r: r.update(source_id=3), "'source_id' must be a text"),
        (lambda r: r.update(source_id="a\nb"), "'source_id' must not hold control"),
        (lambda r: r.update(width=True), "'width' must be a whole number"),
        (lambda r: r.update(width=2.5), "'width' must be a whole number"),
        (lambda r: r.update(captions="a"), "'captions' must be a list of texts"),
        (lambda r: r.update(captions=[1]), "'captions' must be a list of texts"),
        (lambda r: r["objects"][0].pop("box"), r"objects\[0\]: field 'box' is missing"),
        (lambda r: r["objects"][0].update(box=["1", 2, 3, 4]), "'box' must be a list of numbers"),
        (lambda r: r.update(objects=[3]), r"objects\[0\]: must be a JSON object"),
    ],
)
def test_record_fields_are_checked(change, says: str) -> None:
    raw = json.loads(GOOD.to_json())
    change(raw)
    with pytest.raises(FormatError, match=says):
        parse_record(json.dumps(raw).encode(), "here")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"a": NaN}', '{"a": 1e999, "b": Infinity}', '{"a": 1, "a": 2}', "[" * 100_000, "\xff"],
)
def test_bad_json_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError, match="here"):
        parse_record(text.encode("latin1"), "here")


@pytest.mark.parametrize(
    ("modality", "bad", "says"),
    [
        (IMAGE_REGION, replace(GOOD, source_id="a#b"), "must not hold '#'"),
        (IMAGE_REGION, replace(GOOD, width=0), "must be the image's size"),
        (IMAGE_REGION, replace(GOOD, objects=[]), "reject the source"),
        (IMAGE, replace(record(IMAGE, 0), captions=[]), "reject the source"),
        (IMAGE, replace(record(IMAGE, 0), captions=["!!"]), "caption without words"),
        (IMAGE_REGION, replace(GOOD, objects=[ObjectAnnotation("1", [1, 1, 1, 5], ["a"])]), "box_empty"),
        (IMAGE_REGION, replace(GOOD, objects=[ObjectAnnotation("1", [1, 1, 90, 5], ["a"])]), "box_outside_image"),
        (IMAGE_REGION, replace(GOOD, objects=[ObjectAnnotation("1", [1, 1, float("inf"), 5], ["a"])]), "box"),
        (IMAGE_REGION, replace(GOOD, objects=[ObjectAnnotation("1", [1, 1, 5, 5], [])]), "reject the object"),
        (IMAGE_REGION, replace(GOOD, objects=[ObjectAnnotation("1", [1, 1, 5, 5], ["a"])] * 2), "used twice"),
        (POINT_CLOUD, replace(record(POINT_CLOUD, 0), width=3), "must be 0 for a point cloud"),
        (
            "point_cloud_region",
            replace(record("point_cloud_region", 0), objects=[ObjectAnnotation("1", [1.0] * 4, ["a"])]),
            "box",
        ),
    ],
)
def test_records_that_cannot_train_are_refused(modality: str, bad: Record, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        check_record(bad, modality, "here")


@pytest.mark.parametrize("modality", list(MODALITIES))
def test_shards_hold_every_sample_once(tmp_path: Path, modality: str) -> None:
    manifest = write_set(tmp_path / "set", modality, 8)
    reader = ManifestReader(tmp_path / "set")
    assert read_manifest(tmp_path / "set") == manifest == reader.manifest
    expected, examples = [], []
    for i in range(8):
        rec = record(modality, i)
        if MODALITIES[modality].regional:
            expected += [(rec.source_id, o.object_id, c) for o in rec.objects for c in o.captions]
            examples += [(sample_id(rec.source_id, o.object_id), tuple(o.captions)) for o in rec.objects]
        else:
            expected += [(rec.source_id, None, c) for c in rec.captions]
            examples.append((rec.source_id, tuple(rec.captions)))
    found = [reader.sample(i) for i in range(len(reader))]
    assert [(f.record.source_id, f.item.object_id if f.item else None, f.caption) for f in found] == expected
    got = [reader.example(i) for i in range(reader.num_examples)]
    assert [(e.id, e.references) for e in got] == examples
    originals = {record(modality, i).source_id: media(modality, i) for i in range(8)}
    assert all((f.media, f.extension) == originals[f.record.source_id] for f in found)
    assert manifest.counts["records"] == 8
    assert manifest.counts["samples"] == len(expected)
    assert manifest.rejected == {"no_caption": 1}
    assert read_rejected(tmp_path / "set/rejected.jsonl")[0].source == "nothing.png"
    assert len(manifest.shards) == 3
    assert verify_shards(tmp_path / "set") == manifest


def test_shards_are_plain_webdataset(tmp_path: Path) -> None:
    write_set(tmp_path / "set", IMAGE_REGION, 3)
    rows = list(webdataset.WebDataset(str(tmp_path / "set/small-000000.tar"), shardshuffle=False))
    assert [row["__key__"] for row in rows] == ["000000000", "000000001", "000000002"]
    assert parse_record(rows[1]["json"], "x") == record(IMAGE_REGION, 1)
    assert rows[1]["jpg"] == media(IMAGE_REGION, 1)[0]
    theirs = io.BytesIO()
    with webdataset.TarWriter(theirs, user="rb", group="rb", mode=0o444, encoder=False, mtime=0.0) as writer:
        for row in rows:
            writer.write({name: row[name] for name in row if name in ("__key__", "jpg", "png", "json")})
    assert (tmp_path / "set/small-000000.tar").read_bytes() == theirs.getvalue()


def test_same_records_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_set(tmp_path / name, POINT_CLOUD, 5)
    digests = [
        {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((tmp_path / name).iterdir())}
        for name in ("a", "b")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2 + 3


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_indexing_by_threads_gives_the_same_files_and_the_same_first_error(tmp_path: Path, workers: int) -> None:
    write_set(tmp_path / "set", IMAGE, 9, max_shard_records=9)
    files = {name: (tmp_path / "set" / name).read_bytes() for name in ("manifest.json", "index.bin")}
    adopt(tmp_path / "set", IMAGE, overwrite=True, workers=workers)
    assert {name: (tmp_path / "set" / name).read_bytes() for name in files} == files
    tar = tmp_path / "set/small-000000.tar"
    whole = tar.read_bytes()
    for number in (7, 3):  # damaged pixels: the headers are sound
        data = media(IMAGE, number)[0]
        whole = whole.replace(
            data, data[: len(data) // 2] + bytes(len(data) // 2 - 2) + b"\xff\xd9" + data[len(data) // 2 * 2 :]
        )
    tar.write_bytes(whole)
    with pytest.raises(FormatError, match=r"key '000000003' at byte \d+: the image is damaged"):
        adopt(tmp_path / "set", IMAGE, overwrite=True, workers=workers)
    with pytest.raises(ValueError, match="workers 0: must be at least 1"):
        adopt(tmp_path / "set", IMAGE, overwrite=True, workers=0)


def test_nothing_under_the_name_unless_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path / "set", "s", IMAGE, "train") as writer:
        writer.write(record(IMAGE, 0), *media(IMAGE, 0))
        assert not (tmp_path / "set").exists()
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(FormatError, match="no_caption: 1"),
        ShardWriter(tmp_path / "set", "s", IMAGE, "train") as writer,
    ):
        writer.reject("x", "no_caption", "none")
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "rejected.jsonl"]


def test_an_empty_result_shows_the_commonest_reason_first(tmp_path: Path) -> None:
    with (
        pytest.raises(
            ValueError, match=r"such as\n  b1: image_missing: no file\n  a: no_caption: none\n  b2: image_missing"
        ),
        ShardWriter(tmp_path / "set", "small", IMAGE, "train") as writer,
    ):
        writer.reject("a", "no_caption", "none")
        for name in ("b1", "b2", "b3"):
            writer.reject(name, "image_missing", "no file")


def test_existing_folders_are_kept_unless_asked(tmp_path: Path) -> None:
    write_set(tmp_path / "set", IMAGE, 2)
    before = (tmp_path / "set/manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds a set of shards already; replace it with --overwrite"):
        write_set(tmp_path / "set", IMAGE, 3)
    assert (tmp_path / "set/manifest.json").read_bytes() == before
    assert write_set(tmp_path / "set", IMAGE, 3, overwrite=True).counts["records"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert os.access(tmp_path / "set", os.R_OK | os.X_OK)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not overwritten"):
        write_set(tmp_path / "other", IMAGE, 3, overwrite=True)


@pytest.mark.parametrize(
    ("rec", "data", "extension", "says"),
    [
        (record(IMAGE, 0), image_bytes(0), "png", "comes twice"),
        (replace(record(IMAGE, 1), split="val"), image_bytes(0), "png", "one manifest holds one split"),
        (record(IMAGE, 1), image_bytes(0), "gif", "does not fit"),
        (record(IMAGE, 1), b"not an image", "png", "not a readable"),
        (replace(record(IMAGE, 1), width=WIDTH + 1), image_bytes(0), "png", f"the image has {WIDTH} x {HEIGHT}"),
    ],
)
def test_writer_refuses_what_does_not_fit(tmp_path: Path, rec: Record, data: bytes, extension: str, says: str) -> None:
    with ShardWriter(tmp_path / "set", "s", IMAGE, "train") as writer:
        writer.write(record(IMAGE, 0), image_bytes(0), "png")
        with pytest.raises(FormatError, match=says):
            writer.write(rec, data, extension)
    assert ManifestReader(tmp_path / "set").manifest.counts["records"] == 1


def test_adopting_tars_gives_the_same_index(tmp_path: Path) -> None:
    manifest = write_set(tmp_path / "set", IMAGE_REGION, 7)
    with pytest.raises(ValueError, match="exists already"):
        adopt(tmp_path / "set", IMAGE_REGION)
    (tmp_path / "set/manifest.json").unlink()
    adopted = adopt(tmp_path / "set", IMAGE_REGION, "small")
    assert (adopted.shards, adopted.index, adopted.counts) == (manifest.shards, manifest.index, manifest.counts)
    with pytest.raises(FormatError, match="must be 0 for a point cloud"):
        adopt(tmp_path / "set", POINT_CLOUD, overwrite=True)
    with pytest.raises(ValueError, match=r"no \.tar file"):
        adopt(tmp_path, IMAGE_REGION)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format_version=9), "format_version 9"),
        (lambda m: m.update(modality="video"), "unknown modality 'video'"),
        (lambda m: m["shards"][0].update(file="../x.tar"), "must not leave"),
        (lambda m: m.pop("index"), "'index' is missing"),
        (lambda m: m["counts"].pop("samples"), "counts lacks 'samples'"),
        (lambda m: m["counts"].update(samples=99), "does not fit"),
        (lambda m: m["index"].update(sha256="0" * 64), "sha256 differs"),
        (lambda m: m["index"].update(bytes=3), "bytes, but"),
    ],
)
def test_bad_manifests_are_named(tmp_path: Path, change, says: str) -> None:
    write_set(tmp_path / "set", IMAGE, 2)
    path = tmp_path / "set/manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=says):
        ManifestReader(path)


def rows(n: int = 4) -> list[Prediction]:
    return [
        Prediction(
            f"s{i}#o", f"s{i}", "o", IMAGE_REGION, "small", "val", f"a cube \u2028{i}", ["a", "b"], [0.0, 1.0, 2.0, 3.5]
        )
        for i in range(n)
    ]


def test_predictions_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep/predictions.jsonl"
    write_predictions(path, rows(), {"decode": {"beams": 5}})
    read, meta = read_predictions(path)
    assert read == rows()
    assert meta["decode"] == {"beams": 5}
    assert meta["num_predictions"] == 4
    assert predictions_meta_path(path).name == "predictions.meta.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["predictions.jsonl", "predictions.meta.json"]
    predictions_meta_path(path).unlink()
    assert read_predictions(path) == (rows(), {})


def _edit(lines: list[str], i: int, **changes: object) -> list[str]:
    return [*lines[:i], json.dumps({**json.loads(lines[i]), **changes}), *lines[i + 1 :]]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda x: [*x, x[1]], "line 5: id 's1#o' is already in .*line 2"),
        (lambda x: x[:-1], "3 rows, but its meta file counts 4"),
        (lambda x: _edit(x, 1, id="z#o", source_id="z"), "one is missing, another was added"),
        (lambda x: _edit(x, 1, prediction="better"), "changed after its meta file"),
        (lambda x: [x[0], x[1][:-5], *x[2:]], "line 2: not valid JSON"),
        (
            lambda x: [x[0], json.dumps({k: v for k, v in json.loads(x[1]).items() if k != "id"}), *x[2:]],
            "line 2: field 'id' is missing.*repair",
        ),
        (lambda x: _edit(x, 2, id="s2"), "line 3: id 's2' does not belong"),
        (lambda x: _edit(x, 2, modality="smell"), "line 3: unknown modality"),
        (lambda x: _edit(x, 2, references="a"), "line 3: field 'references'"),
    ],
)
def test_damaged_predictions_name_line_and_remedy(tmp_path: Path, edit, says: str) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, rows(), {})
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")
    with pytest.raises(FormatError, match=says):
        read_predictions(path)


def test_repeated_ids_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="already in"):
        write_predictions(tmp_path / "p.jsonl", [*rows(), rows()[0]], {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no predictions file"):
        read_predictions(tmp_path / "p.jsonl")


def test_index_and_verify_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_set(tmp_path / "set", IMAGE_REGION, 4)
    (tmp_path / "set/manifest.json").unlink()
    assert main(["data", "index", str(tmp_path / "set"), "--modality", IMAGE_REGION]) == 0
    assert main(["data", "verify", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert f"4 records, {manifest.counts['objects']} objects, {manifest.counts['samples']} samples in 2 shards" in out
    assert "every byte is as written" in out
    assert main(["data", "index", str(tmp_path / "set"), "--modality", IMAGE_REGION]) == 2
    (tmp_path / "set/small-000001.tar").write_bytes(b"")
    assert main(["data", "verify", str(tmp_path / "set")]) == 2
    assert "small-000001.tar (altered)" in capsys.readouterr().err
