"""The nocaps converter on a hand-made file in the true format: domains survive, what cannot be used is rejected by reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rb.data.index import ManifestReader
from rb.data.prepare import nocaps
from tests.support.raw_data import cli_run, convert, found, jpeg, reasons

DOMAINS = ("in-domain", "near-domain", "out-domain")


def image(number: Any, domain: str | None, name: str) -> dict[str, Any]:
    return {
        "license": 0,
        "open_images_id": name.split(".")[0],
        "width": 32,
        "height": 24,
        "coco_url": f"https://s3.amazonaws.com/nocaps/val/{name}",
        "file_name": name,
        "date_captured": "2018-11-06 11:04:33",
        "id": number,
        **({} if domain is None else {"domain": domain}),
    }


def nocaps_raw(raw: Path, images: list[dict[str, Any]], annotations: list[Any], folder: str = "images") -> Path:
    """The file and its pictures; every image has its annotations."""
    (raw / folder).mkdir(parents=True)
    for one in images:
        (raw / folder / Path(str(one["file_name"])).name).write_bytes(jpeg())
    said = [{"image_id": one["id"], "id": k, "caption": f"a cube {k}."} for one in images for k in range(10)]
    content = {
        "licenses": [],
        "info": {"url": "http://nocaps.org", "version": "0.1", "year": 2018},
        "images": images,
        "annotations": said + annotations,
    }
    (raw / "nocaps_val_4500_captions.json").write_text(json.dumps(content))
    return raw


def test_the_domain_of_an_image_survives(tmp_path: Path, capsys) -> None:
    images = [image(i, domain, f"0013ea208702090{i}.jpg") for i, domain in enumerate(DOMAINS)]
    raw = nocaps_raw(tmp_path / "raw", images, [])
    assert cli_run("prepare", "nocaps", "--raw", str(raw), "--out", str(tmp_path / "out")) == 0
    reader = ManifestReader(tmp_path / "out")
    records = [record for record, _ in reader.records()]
    assert [(r.source_id, r.domain, r.split) for r in records] == [
        (f"nocaps/{i}", domain, "val") for i, domain in enumerate(DOMAINS)
    ]
    assert records[2].captions == [f"a cube {k}." for k in range(10)]
    assert reader.manifest.counts["samples"] == 30
    capsys.readouterr()
    assert cli_run("data", "stats", str(tmp_path / "out")) == 0
    assert "nocaps val, domains: in-domain 1, near-domain 1, out-domain 1" in capsys.readouterr().out


def test_what_cannot_be_used_is_rejected_by_reason(tmp_path: Path) -> None:
    images = [image(0, "in-domain", "a.jpg"), image(1, None, "b.jpg"), image("2", "in-domain", "c.jpg")]
    images += [image(3, "elsewhere", "../d.jpg"), image(0, "in-domain", "a.jpg")]
    raw = nocaps_raw(tmp_path / "raw", images, [{"image_id": 9, "caption": "whose?"}, 7], "val")
    tally = convert(nocaps, raw, tmp_path / "out", "val")
    assert reasons(tmp_path / "out") == {"unknown_image": 2, "unsafe_name": 1, "duplicate_source": 1}
    assert tally.notes["images without a domain"] == 2
    assert tally.notes["annotations without the number of an image, passed over"] == 11
    assert (tally.read, tally.used) == (6, 2)
    assert {source: one.record.domain for source, one in found(tmp_path / "out").items()} == {
        "nocaps/0": "in-domain",
        "nocaps/1": None,
    }


def test_other_files_and_splits_are_named(tmp_path: Path) -> None:
    raw = nocaps_raw(tmp_path / "raw", [image(0, "in-domain", "a.jpg")], [])
    with pytest.raises(ValueError, match="split 'test': only 'val' has published captions"):
        convert(nocaps, raw, tmp_path / "out", "test")
    file = tmp_path / "captions_val2014.json"
    for content, message in (
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}, "another file than nocaps ships"),
        ({"images": [image(0, "in-domain", "a.jpg")]}, "field 'annotations' is missing"),
        ([], "must be an object with 'images', 'annotations'"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            convert(nocaps, raw, tmp_path / "out", "val", annotations=file)
    (raw / "images").rename(raw / "pictures")
    with pytest.raises(ValueError, match=r"images, .*: not found"):
        convert(nocaps, raw, tmp_path / "out", "val")
    convert(nocaps, raw, tmp_path / "out", "val", images=raw / "pictures")
