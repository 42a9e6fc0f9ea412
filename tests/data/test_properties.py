"""Laws of the data order and of records for any input, searched by hypothesis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rb.core.modality import MODALITIES
from rb.data.check_record import check_record
from rb.data.formats import FormatError, ObjectAnnotation, Prediction, Record, parse_record
from rb.data.permutation import permute
from rb.data.predictions import read_predictions, write_predictions

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
captions = st.lists(st.text(max_size=12), max_size=3)
finite = st.floats(allow_nan=False, allow_infinity=False)
objects = st.builds(ObjectAnnotation, names, st.lists(finite, max_size=6), captions)
records = st.builds(
    Record, names, names, names, st.integers(0, 50), st.integers(0, 50), captions, st.lists(objects, max_size=3)
)


@given(st.integers(1, 300), st.integers(0, 10), st.integers(0, 10))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permute(i, size, seed, "image", epoch) for i in range(size)) == list(range(size))


@given(st.integers(2**40, 2**50), st.data())
def test_far_apart_places_do_not_meet(size: int, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    found = permute(first, size, 0), permute(second, size, 0)
    assert max(found) < size
    assert (found[0] == found[1]) == (first == second)


@given(records)
def test_a_record_is_read_back_as_it_was_written(record: Record) -> None:
    data = record.to_json()
    assert b"\n" not in data
    assert parse_record(data, "here") == record


@given(records, st.sampled_from(list(MODALITIES)))
def test_a_record_that_fits_has_a_sample_and_one_that_does_not_says_where(record: Record, modality: str) -> None:
    try:
        check_record(record, modality, "this record")
        problem = ""
    except FormatError as error:
        problem = str(error)
    usable = (
        record.objects and all(i.captions for i in record.objects) if MODALITIES[modality].regional else record.captions
    )
    assert problem.startswith("this record: ") or usable


@given(st.lists(st.tuples(names, st.none() | names, st.text(), st.lists(st.text(), max_size=3)), max_size=4))
def test_predictions_are_read_back_as_they_were_written(tmp_path_factory, rows) -> None:
    made = {}
    for source, item, prediction, references in rows:
        sample = source if item is None else f"{source}#{item}"
        box = None if item is None else [0.5, 1.0, 2.0, 3.25]
        made[sample] = Prediction(sample, source, item, "image_region", "set", "val", prediction, references, box)
    path = tmp_path_factory.mktemp("predictions") / "said.jsonl"
    write_predictions(path, list(made.values()), {"variant": "base"})
    found, meta = read_predictions(path)
    assert found == list(made.values())
    assert meta["num_predictions"] == len(made)
