"""Flickr30k Entities on hand-written raw files in the true form: boxes to the pixel, groups, entities without a box, every reason of rejection."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from rb.data.formats import read_rejected
from rb.data.prepare import flickr_entities
from rb.data.prepare.common import RejectedError
from rb.data.prepare.entity_files import read_entities
from rb.data.prepare.xml_files import MAX_BYTES, read_xml
from tests.support.raw_data import cli_run, convert, found, jpeg, reasons
from tests.support.remedies import covers, helps

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#0/notvisual something] in [/EN#8/scene the yard] .
[/EN#1/people Two men] in [/EN#5/clothing green shirts] are near [/EN#4/scene/other many , many bushes] .
[/EN#6/people A man] enjoys [/EN#10/other time] .
"""
BOX = "\t<bndbox>\n\t\t\t<xmin>{}</xmin>\n\t\t\t<ymin>{}</ymin>\n\t\t\t<xmax>{}</xmax>\n\t\t\t<ymax>{}</ymax>\n\t\t</bndbox>\n"
SCENE = "\t<scene>1</scene>\n\t\t<nobndbox>0</nobndbox>\n"
NO_BOX = "\t<scene>0</scene>\n\t\t<nobndbox>1</nobndbox>\n"
OBJECTS = [
    (("1",), BOX.format(3, 1, 10, 20)),
    (("4",), BOX.format(1, 12, 32, 24)),  # to the right and lower edge of the image
    (("1", "6"), BOX.format(15, 5, 26, 24)),  # one box of two entities
    (("2",), BOX.format(0, 2, 9, 6)),  # one pixel to the left of the image
    (("5",), NO_BOX),
    (("8",), SCENE),
    (("10",), NO_BOX),
    (("77",), BOX.format(1, 1, 4, 4)),  # in no sentence
]


def annotation(stem: str, objects: Iterable[tuple[Iterable[str], str]], size: tuple[object, object] = (32, 24)) -> str:
    width, height = size
    head = f"<annotation>\n\t<filename>{stem}.jpg</filename>\n\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n"
    rows = ""
    for names, body in objects:
        rows += "\t<object>\n" + "".join(f"\t\t<name>{name}</name>\n" for name in names) + f"\t{body}\t</object>\n"
    return f"{head}\t\t<depth>3</depth>\n\t</size>\n{rows}</annotation>\n"


def entities_raw(folder: Path, texts: dict[str, tuple[str, str]], splits: dict[str, str] | None = None) -> Path:
    """``texts``: image -> its XML and its sentences."""
    for name in ("Annotations", "Sentences", "flickr30k-images"):
        (folder / name).mkdir(parents=True)
    for stem, (xml, sentences) in texts.items():
        (folder / f"Annotations/{stem}.xml").write_text(xml)
        (folder / f"Sentences/{stem}.txt").write_text(sentences)
        (folder / f"flickr30k-images/{stem}.jpg").write_bytes(jpeg())
    for split, stems in (splits or {"train": "\n".join(texts)}).items():
        (folder / f"{split}.txt").write_text(stems + "\n")
    return folder


def regions(out: Path, source: str = "flickr30k/36979") -> dict[str, tuple[list[float], list[str]]]:
    return {item.object_id: (item.box, item.captions) for item in found(out)[source].record.objects}


def test_phrases_become_the_captions_of_their_boxes(tmp_path: Path) -> None:
    raw = entities_raw(tmp_path / "raw", {"36979": (annotation("36979", OBJECTS), SENTENCES)})
    tally = convert(flickr_entities, raw, tmp_path / "out", "train")
    assert regions(tmp_path / "out") == {
        "1": ([2, 0, 26, 24], ["Two young guys", "Two men"]),  # the box around both of its boxes
        "2": ([0, 1, 9, 6], ["shaggy hair"]),
        "4": ([0, 11, 32, 24], ["many , many bushes"]),
        "6": ([14, 4, 26, 24], ["A man"]),
    }
    record = found(tmp_path / "out")["flickr30k/36979"].record
    assert record.dataset == "flickr_entities"
    assert record.captions == [
        "Two young guys with shaggy hair look at something in the yard .",
        "Two men in green shirts are near many , many bushes .",
        "A man enjoys time .",
    ]
    assert (tally.unit, tally.read, tally.used, tally.captions) == ("regions", 4, 4, 5)
    assert {name: count for name, count in tally.notes.items() if count} == {
        "boxes": 5,
        "boxes cut to the image (1 px at most)": 1,
        "boxes of entities that no sentence names": 1,
        "entities of several boxes": 1,
        "entities without a box: not to be seen": 2,
        "entities without a box: the whole scene": 1,
        "images": 1,
        "objects": 4,
        "phrases of nothing to be seen": 1,
    }


def test_groups_are_united_or_each_or_left_out_and_the_set_says_so(tmp_path: Path) -> None:
    raw = entities_raw(tmp_path / "raw", {"36979": (annotation("36979", OBJECTS), SENTENCES)})
    convert(flickr_entities, raw, tmp_path / "each", "train", groups="each")
    each = regions(tmp_path / "each")
    assert [*each] == ["1-1", "1-2", "2", "4", "6"]
    assert each["1-1"] == ([2, 0, 10, 20], ["Two young guys", "Two men"])
    assert each["1-2"] == ([14, 4, 26, 24], ["Two young guys", "Two men"])
    assert found(tmp_path / "each")["flickr30k/36979"].record.dataset == "flickr_entities_each"
    convert(flickr_entities, raw, tmp_path / "single", "train", groups="leave-out")
    assert [*regions(tmp_path / "single")] == ["2", "4", "6"]
    assert found(tmp_path / "single")["flickr30k/36979"].record.dataset == "flickr_entities_leave_out"


def test_every_split_and_sentences_of_other_images(tmp_path: Path) -> None:
    texts = {stem: (annotation(stem, OBJECTS), SENTENCES) for stem in ("1", "2", "3")}
    raw = entities_raw(tmp_path / "raw", texts, {"train": "1\n1", "val": "2", "test": "3\r"})
    (raw / "UNRELATED_CAPTIONS").write_text("# format: <imageID> <sentence number>\n3 2\n3 9\n")
    assert (
        cli_run("prepare", "flickr_entities", "--raw", str(raw), "--out", str(tmp_path / "out"), "--split", "all") == 0
    )
    assert {split: [*found(tmp_path / "out" / split)] for split in ("train", "val", "test")} == {
        "train": ["flickr30k/1"],
        "val": ["flickr30k/2"],
        "test": ["flickr30k/3"],
    }
    assert regions(tmp_path / "out/test", "flickr30k/3")["1"][1] == ["Two young guys"]
    assert len(found(tmp_path / "out/test")["flickr30k/3"].record.captions) == 2


def test_what_cannot_be_used_is_rejected_and_counted(tmp_path: Path) -> None:
    one = "[/EN#1/people A man] .\n"
    good = annotation("x", [(("1",), BOX.format(1, 1, 9, 9))])
    bad_boxes = [
        (("1",), BOX.format(1, 1, 9, "nan")),
        (("2",), BOX.format(1, 1, 9, 9)),
        (("2",), "<bndbox><xmin>1</xmin></bndbox>"),  # a group with a box that cannot be read
        (("3",), BOX.format(1, 1, 40, 9)),
        (("4",), BOX.format(9, 1, 3, 9)),
    ]
    phrases = (
        "".join(f"[/EN#{n}/other thing {n}] " for n in (1, 2, 3, 4, 5)) + "[/EN#6/other ...] .\n[/EN#7/other a [ b] .\n"
    )
    texts = {
        "1": (good, one),
        "2": (annotation("2", bad_boxes), phrases),
        "3": (good, one),  # no image
        "4": (good, one),  # no XML
        "5": (good, one),  # no sentences
        "6": ("<annotation>", one),
        "7": (annotation("7", [], ("wide", 24)), one),
        "8": (annotation("8", [(("1",), BOX.format(1, 1, 9, 9))], (24, 32)), one),
        "9": ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', one),
    }
    raw = entities_raw(tmp_path / "raw", texts, {"train": " ".join([*texts, "../up", "a#b", "a\x01b"])})
    for name in ("flickr30k-images/3.jpg", "Annotations/4.xml", "Sentences/5.txt"):
        (raw / name).unlink()
    tally = convert(flickr_entities, raw, tmp_path / "out", "train")
    assert [*found(tmp_path / "out")] == ["flickr30k/1"]
    expected = {
        "box_empty": 3,
        "box_outside_image": 1,
        "unknown_object": 2,  # entities 5 and 6
        "malformed_row": 1,
        "image_missing": 1,
        "boxes_missing": 1,
        "no_caption": 1,
        "boxes_unreadable": 3,
        "image_size_mismatch": 1,
        "unsafe_name": 3,
    }
    assert dict(reasons(tmp_path / "out")) == dict(tally.rejected) == expected
    assert (tally.read, tally.used) == (sum(expected.values()) + 1, 1)
    assert read_rejected(tmp_path / "out/rejected.jsonl")[-1].source == r"flickr30k/a\x01b"


def test_a_long_line_of_open_marks_is_read_in_a_moment(tmp_path: Path) -> None:
    raw = entities_raw(tmp_path, {"1": (annotation("1", []), "[/EN#1/a " * 15_000 + " " * 100_000)})
    entities = read_entities(raw, "1", set())
    assert len(entities.broken) == 1
    (raw / "Sentences/1.txt").write_text("x" * (MAX_BYTES + 1))
    with pytest.raises(RejectedError, match=r"1\.txt: more than 262,144 bytes"):
        read_entities(raw, "1", set())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><l>&b;</l>', "document types and entities are refused"),
        (
            b'<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/hostname">]><l>&a;</l>',
            "document types and entities are refused",
        ),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE l><l/>'.encode("utf-16"), "are refused"),
        (b"<a>" * 30_000 + b"</a>" * 30_000, "more than 64 elements within each other"),
        (b"<a>" + b" " * MAX_BYTES + b"</a>", "more than 262,144 bytes"),
        (b'<?xml version="1.0" encoding="zlib"?><l/>', "not a text encoding"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "no element found"),
    ],
)
def test_hostile_xml_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "1.xml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.xml: .*" + message) as refused:
        read_xml(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "says"),
    zip(
        ("train.txt", "Annotations/1.xml", "Annotations/1.xml"),
        covers(
            [
                "{}: names no image; download it again",
                "{}: not an XML file that can be used ({}); download it again",
                "{}: size: {}; download it again",
            ]
        ),
        strict=True,
    ),
)
def test_a_damaged_file_is_downloaded_again(tmp_path: Path, file: str, says: str) -> None:
    raw = entities_raw(tmp_path / "raw", {"1": (annotation("1", OBJECTS), SENTENCES)})
    sound = (raw / file).read_text()
    (raw / file).write_text(
        sound.replace("<width>32", "<width>") if "size" in says else sound[:40] if "XML" in says else "\n"
    )

    def follow(said: str) -> None:
        (raw / file).write_text(sound)

    helps(says, lambda: convert(flickr_entities, raw, tmp_path / "out", "train"), follow)


def test_clear_errors(tmp_path: Path) -> None:
    raw = entities_raw(tmp_path / "raw", {"1": (annotation("1", OBJECTS), SENTENCES)})
    with pytest.raises(ValueError, match=r"val\.txt: not found; the splits of .*raw are train"):
        convert(flickr_entities, raw, tmp_path / "out", "val")
    (raw / "train.txt").unlink()
    for missing, name in (("train.txt", "train"), ("Sentences", "Sentences"), ("Annotations", "Annotations")):
        if (raw / missing).is_dir():
            (raw / missing).rename(raw / f"no-{missing}")
        with pytest.raises(ValueError, match=rf"{name}.*: not found\. The raw folder should look like this"):
            flickr_entities.open_raw(raw)
    assert not (tmp_path / "out").exists()
