"""The streaming reader of JSON: equal to the reader of whole files on every input, wherever a piece is cut; small memory on hostile ones."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rb.core import json_stream
from rb.core.json_stream import MAX_OTHERS, stream_list, stream_lists
from rb.core.strict_json import MAX_DEPTH, FormatError, parse_foreign
from rb.core.text_encoding import ENCODING_NOTE
from tests.support.remedies import remedy

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)
LAYOUTS = st.sampled_from([{}, {"indent": 1}, {"separators": (" ,\r\n", "\t: ")}, {"ensure_ascii": False}])
FIELDS = frozenset({"a", "b", ""})


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_PIECE", 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream") / "a.json"


def encoded(value: object, layout: dict) -> bytes:
    return json.dumps(value, **layout).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("piece", [1, 1 << 18])
def test_a_list_is_read_as_the_whole_file_is(file: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(json_stream, "_PIECE", piece)

    @settings(max_examples=30)
    @given(st.lists(VALUES, max_size=5), LAYOUTS)
    def same(items: list, layout: dict) -> None:
        file.write_bytes(encoded(items, layout))
        expected = parse_foreign(file.read_text(), "", FIELDS)
        assert repr(list(stream_list(file, FIELDS, Counter()))) == repr(expected)  # NaN equals nothing, itself included

    same()


def test_lists_of_an_object_are_read_as_the_whole_file_is(file: Path, small_pieces: None) -> None:
    @settings(max_examples=30)
    @given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.lists(VALUES, max_size=3), LAYOUTS)
    def same(rest: dict, items: list, layout: dict) -> None:
        content = {"images": items} | {k: v for k, v in rest.items() if k != "images"} | {"more": items[:1]}
        file.write_bytes(encoded(content, layout))
        whole = parse_foreign(file.read_text(), "")
        others: dict = {}
        found = list(stream_lists(file, {"images": None, "more": None}, Counter(), others=others))
        assert repr(found) == repr([(name, item) for name in ("images", "more") for item in whole[name]])
        assert repr(others) == repr({k: v for k, v in whole.items() if k not in ("images", "more")})

    same()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_letters_are_kept_in_any_encoding_wherever_a_piece_is_cut(
    file: Path, small_pieces: None, encoding: str
) -> None:
    file.write_bytes('[{"a": "café €"}, "naïve"]'.encode(encoding))
    notes: Counter[str] = Counter()
    assert list(stream_list(file, None, notes)) == [{"a": "café €"}, "naïve"]
    assert notes[ENCODING_NOTE] == (3 if encoding == "cp1252" else 0)


REFUSED = {
    "nothing": ("", "the file: not valid JSON (the file ends there); download it again"),
    "an object": ('{"a": 1}', "the file: must be a list, but begins with '{'; this is another file"),
    "cut in a text": ('[{"a": 1}, {"a": "x', "item 2 of the list: not valid JSON (Unterminated string"),
    "cut behind an item": ("[1, 2", "item 2 of the list: not valid JSON (, or ] is expected behind it)"),
    "cut behind a comma": ("[1, ", "item 2 of the list: not valid JSON (the file ends there)"),
    "a comma too many": ("[1,]" + " " * 40, "item 2 of the list: not valid JSON (Expecting value)"),
    "no comma": ("[1 2]" + " " * 40, "item 1 of the list: not valid JSON (, or ] is expected behind it)"),
    "half a word": ("[tru, 1]" + " " * 40, "item 1 of the list: not valid JSON (Expecting value)"),
    "wrong inside": (
        '[{"a": 1}, {"a": [1 2]}]' + " " * 40,
        "item 2 of the list: not valid JSON (Expecting ',' delimiter",
    ),
    "two values": ("[1] [2]", "behind its end: not valid JSON (more text follows)"),
    "too deep": ("[" * 5000, "item 1 of the list: not valid JSON (more than 64 lists and objects within each other)"),
    "just too deep": (f"[{'[' * (MAX_DEPTH + 1)}{']' * (MAX_DEPTH + 1)}]", "more than 64 lists and objects"),
    "a large item": ('["' + "x" * 200 + '"]', "item 1 of the list: more than 100 letters; this is another file"),
    "a large number": ("[1, " + "9" * 200 + "]", "item 2 of the list: more than 100 letters; this is another file"),
    "a git-lfs pointer": (
        "version https://git-lfs.github.com/spec/v1\n",
        "it is a git-lfs pointer, not the file itself",
    ),
    "a web page": ("<!DOCTYPE html><html></html>", "it is a web page, not the file itself"),
}


@pytest.mark.parametrize("piece", [1, 1 << 18])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, piece: int
) -> None:
    monkeypatch.setattr(json_stream, "_PIECE", piece)
    content, said = REFUSED[case]
    path = tmp_path / "hostile.json"
    path.write_text(content)
    most = {} if "deep" in case else {"most": 100}
    with pytest.raises(FormatError) as error:
        list(stream_list(path, None, Counter(), **most))
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", r"the file: must be an object with 'a', 'b', but begins with '\['; this is another file"),
        ('{"a": []}', "field 'b' is missing; this is another file"),
        ('{"a": {"0": 1}, "b": []}', r"field 'a': must be a list, but begins with '\{'; this is another file"),
        ('{"a": [1], "b": [1, }', r"item 2 of 'b': not valid JSON \(Expecting value\); look"),
        ('{"a": [], "b": [], "c": [1, 2', r"field 'c': not valid JSON \(the file ends there\); look"),
        ('{"a": [], "b": [], "c": {"x" 2}}', r"field 'c': not valid JSON \(Expecting ':' delimiter.*\); look"),
        ('{"a": [] "b": []}', r"behind field 'a': not valid JSON \(a comma or } is expected\); look"),
        ("{1: 2}", r"its first field: not valid JSON \(the name of a field is expected\); look"),
        ('{"a": [],', r"behind field 'a': not valid JSON \(the name of a field is expected\); look"),
    ],
)
def test_an_object_that_cannot_be_read_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=rf"a\.json: {said}"):
        list(stream_lists(path, {"a": None, "b": None}, Counter(), others={}, remedy="look"))


def test_odd_values_pass_as_in_whole_files(file: Path, small_pieces: None) -> None:
    file.write_text('[{"id": NaN}, {"id": 1, "id": 2}, {"id": %s}, {"id": "\\ud800"}, -Infinity, 1e999]' % ("9" * 4000))
    items = list(stream_list(file, None, Counter()))
    assert repr(items) == repr(
        [{"id": float("nan")}, {"id": 2}, {"id": float("inf")}, {"id": "\ud800"}, float("-inf"), float("inf")]
    )


def test_other_values_are_handed_out_up_to_a_limit_together(file: Path) -> None:
    text = "x" * (MAX_OTHERS // 2)
    file.write_text(json.dumps({"a": text, "rows": [1], "b": {"deep": [text, '"]}']}, "c": text, "d": 7}))
    others: dict = {}
    assert list(stream_lists(file, {"rows": None}, Counter(), others=others)) == [("rows", 1)]
    assert others == {"a": text, "d": 7}
    assert list(stream_lists(file, {"rows": None}, Counter())) == [("rows", 1)]


def peak_mb(items: Iterator[object]) -> float:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="letters"):
            for _ in items:
                pass
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_memory_stays_small_whatever_the_file_holds(tmp_path: Path) -> None:
    """Pieces of at most 256 KiB, and no more of an item than is allowed; what is passed over costs nothing."""
    path = tmp_path / "a.json"
    path.write_bytes(b'{"skip": {"x": ["' + b"\\n" * (16 << 20) + b'"]}, "rows": ["' + b"x" * (32 << 20) + b'"]}')
    assert peak_mb(stream_lists(path, {"rows": None}, Counter(), others={})) < 24
    path.write_bytes(b"[[" + (b"[" * 60 + b"]" * 60 + b",") * 4000 + b"0]]")
    assert peak_mb(stream_list(path, None, Counter(), most=1 << 17)) < 40


@remedy("its first bytes say {}, but it is not ({}); save it as UTF-8")
def test_a_file_that_is_not_what_its_mark_says(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe\x00\xd8[\x00")
    return lambda: list(stream_list(path, None, Counter())), lambda _: path.write_bytes(b"[1]")


@remedy("{}: {}: not valid JSON ({}); {}")
def test_a_file_that_was_cut_by_its_download(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[1, [2")
    return lambda: list(stream_list(path, None, Counter())), lambda _: path.write_bytes(b"[1, [2]]")
