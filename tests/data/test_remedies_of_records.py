"""What the messages about records, and about sets given to the wrong job, advise helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.data.check_record import check_record
from rb.data.compare_sets import difference
from rb.data.formats import ObjectAnnotation, Question, Record, read_manifest, require_captions
from rb.data.index import ManifestReader
from rb.data.samples import SampleTransform, check_fits
from rb.data.shard_writer import ShardWriter
from rb.data.shuffled_boxes import shuffle_boxes
from rb.sources.table import source_of
from tests.data.test_questions import ABOUT, ASKED
from tests.support.remedies import Said, covers, helps, remedy
from tests.support.small_data import media, record, write_set

REGION = record(IMAGE_REGION, 0)
OBJECT = REGION.objects[0]
PLAIN = record(IMAGE, 2)


def changed(item: Record | ObjectAnnotation, **values: object):
    return dataclasses.replace(item, **values)


# Message -> (record of regions or of whole images, the record as the message wants it; none where it is rejected).
RECORDS = {
    "is used twice in this record; put its captions together": (
        changed(REGION, objects=[OBJECT, OBJECT]),
        changed(REGION, objects=[changed(OBJECT, captions=OBJECT.captions * 2)]),
    ),
    "box {}: {}; clip it, or reject the object": (
        changed(REGION, objects=[changed(OBJECT, box=[2.0, 1.0, 30.0, 8.0])]),
        changed(REGION, objects=[changed(OBJECT, box=[2.0, 1.0, 20.0, 8.0])]),
    ),
    "or none at all; reject the object": (
        changed(REGION, objects=[OBJECT, changed(OBJECT, object_id="2", captions=[])]),
        REGION,
    ),
    "(or nan, None, null, N/A); leave it out": (changed(PLAIN, captions=[*PLAIN.captions, "nan"]), PLAIN),
    "is used twice in this record; keep one": (
        changed(ABOUT, questions=[ASKED[0], ASKED[0]]),
        changed(ABOUT, questions=ASKED[:1]),
    ),
    "a question without words; leave it out": (
        changed(ABOUT, questions=[*ASKED, Question(1, "-")]),
        ABOUT,
    ),
    "no object, so nothing to train {} on; reject the source": (changed(REGION, objects=[]), None),
    "no caption, so nothing to train {} on; reject the source": (changed(PLAIN, captions=[]), None),
}


@pytest.mark.parametrize("says", covers(RECORDS))
def test_a_record_is_corrected_as_it_is_said(says: str) -> None:
    given, corrected = [RECORDS[says][0]], RECORDS[says][1]

    def check() -> None:
        for one in given:
            check_record(one, IMAGE_REGION if "region" in one.source_id else IMAGE, "here")

    def follow(_: Said) -> None:
        given.clear()
        given.extend([] if corrected is None else [corrected])

    helps(says, check, follow)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", IMAGE, 4)
    return tmp_path / "set"


@remedy("comes twice; put everything said of a source into one record")
def test_a_source_of_two_records(tmp_path: Path):
    told = [changed(PLAIN, captions=[caption]) for caption in PLAIN.captions]

    def write() -> None:
        with ShardWriter(tmp_path / "set", "small", IMAGE, "train") as writer:
            for one in told:
                writer.write(one, *media(IMAGE, 2))

    return write, lambda _: told.__setitem__(slice(None), [PLAIN])


@remedy("in a set of {}; make two sets of them")
def test_questions_among_captions(tmp_path: Path):
    said_of = {"set": [(PLAIN, media(IMAGE, 2)), (changed(ABOUT, split="train"), media(IMAGE, 0))]}

    def write() -> None:
        for name, both in said_of.items():
            with ShardWriter(tmp_path / name, "small", IMAGE, "train") as writer:
                for one, data in both:
                    writer.write(one, *data)

    def follow(_: Said) -> None:
        both = said_of.pop("set")
        said_of.update(captions=both[:1], questions=both[1:])

    return write, follow


@remedy("so there is no caption to train on, to validate or to predict; give a manifest of captions")
def test_questions_where_captions_are_needed(small: Path, tmp_path: Path):
    with ShardWriter(tmp_path / "asked", "small", IMAGE, "val") as writer:
        writer.write(ABOUT, *media(IMAGE, 0))
    folder = [tmp_path / "asked"]
    call = lambda: require_captions(read_manifest(folder[0]), folder[0])  # noqa: E731
    return call, lambda _: folder.append(folder.pop() and small)


@remedy("its samples are captions, so there is no question to answer; give a manifest of questions")
def test_captions_where_questions_are_needed(small: Path, tmp_path: Path):
    with ShardWriter(tmp_path / "asked", "small", IMAGE, "val") as writer:
        writer.write(ABOUT, *media(IMAGE, 0))
    folder = [small]
    call = lambda: check_fits(ManifestReader(folder[0]), IMAGE, True, of_questions=True)  # noqa: E731
    return call, lambda _: folder.append(folder.pop() and tmp_path / "asked")


@remedy("inputs cannot be mirrored; leave it out")
def test_a_mirror_of_what_has_none(small: Path, foundation, monkeypatch):
    """As a new source has no axes until it states them."""
    monkeypatch.setattr(source_of(IMAGE), "mirror_axes", lambda up: ())
    rules = {IMAGE: "always"}
    transform = SampleTransform(
        mirror=rules, **{f.name: None for f in dataclasses.fields(SampleTransform) if f.name != "mirror"}
    )
    return lambda: transform._mirror(IMAGE, "a cube", (0,)), lambda _: rules.clear()


@remedy("give two sets of one modality")
def test_sets_of_two_modalities(small: Path, tmp_path: Path):
    write_set(tmp_path / "clouds", POINT_CLOUD, 2)
    write_set(tmp_path / "images", IMAGE, 2)
    other = ["clouds"]
    return lambda: difference(small, tmp_path / other[0]), lambda _: other.append(other.pop() and "images")


@remedy("which cannot serve {}; give a manifest prepared for {}")
def test_a_set_of_another_modality(small: Path, tmp_path: Path):
    sets = {IMAGE_REGION: small}
    write_set(tmp_path / "regions", IMAGE_REGION, 2)
    follow = lambda said: sets.update({said.found(r"prepared for (\w+)"): tmp_path / "regions"})  # noqa: E731
    return lambda: check_fits(ManifestReader(sets[IMAGE_REGION]), IMAGE_REGION, True), follow


@remedy("so there are no boxes to shuffle; give regions")
def test_boxes_of_whole_images(small: Path, tmp_path: Path):
    folder = [small]
    write_set(tmp_path / "regions", IMAGE_REGION, 4)
    return lambda: shuffle_boxes(ManifestReader(folder[0])), lambda _: folder.append(folder.pop().with_name("regions"))
