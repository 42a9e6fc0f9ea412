"""JSON, JSONL and YAML that an untrusted hand wrote: one line that names the file, whatever is in it; never a traceback, never much memory."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from rb.core.run_file import load_run
from rb.core.run_yaml import read_yaml
from rb.core.strict_json import MAX_DEPTH, FormatError, parse, parse_foreign, parse_lines, read
from rb.data.prepare.common import read_json
from rb.drawing.page import write_page
from rb.tracking.journal import Journal, metric_points, read_rows

DEEP = 100_000
JSON = {
    "nested lists": "[" * DEEP + "]" * DEEP,
    "nested lists, not closed": "[" * DEEP,
    "nested objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "nested just beyond the limit": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "a number of 4,000 digits": '{"box": [1, 2, 3, %s]}' % ("9" * 4000),
    "a number of 9,000 digits": "9" * 9000,
    "a number of 65 bits": str(2**64),
    "a negative number of 65 bits": str(-(2**63) - 1),
    "1e999": '{"step": 1e999}',
    "a fraction of 400 digits": "1" * 400 + ".5",
    "infinity": "[-Infinity]",
    "NaN": "[NaN]",
    "a lone surrogate": '["a \\ud800 b"]',
    "a lone surrogate as a field": '{"\\uDFFF": 1}',
    "two surrogates the wrong way round": '["\\udc00\\ud800"]',
    "a field given twice": '{"a": 1, "a": 2}',
    "a cut file": '{"a": [1, 2',
    "nothing": "",
}


def refused(error: pytest.ExceptionInfo[ValueError], *named: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    assert all(name in message for name in named), message


@pytest.mark.parametrize("case", JSON)
def test_json_that_cannot_be_used_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(JSON[case])
    with pytest.raises(FormatError) as error:
        read(path)
    refused(error, "hostile.json: not valid JSON (", "write or download it again")
    with pytest.raises(FormatError) as error:
        list(parse_lines(b'{"a": 1}\n\n' + JSON[case].encode() + b"\n[", "hostile.jsonl"))
    refused(error, "hostile.jsonl, line 3" if JSON[case] else "hostile.jsonl, line 4")


def test_json_at_the_limits_is_read() -> None:
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, "here")
    assert parse('["\\ud83d\\ude00", 18446744073709551615, -9223372036854775808, 1e308]', "here") == [
        "\U0001f600",
        2**64 - 1,
        -(2**63),
        1e308,
    ]
    with pytest.raises(FormatError, match="lone surrogate"):
        parse('"\ud800"', "here")


def test_a_data_set_is_not_lost_for_one_odd_value(tmp_path: Path) -> None:
    """What others write passes, and each item is checked by its converter; bottomless nesting does not pass."""
    path, notes = tmp_path / "instances.json", Counter[str]()
    path.write_text(
        '[{"id": NaN, "x": 1}, {"id": 1, "id": 2}, {"id": %s}, {"id": "\\ud800"}, {"id": 1e999}]' % ("9" * 4000)
    )
    ids = [item["id"] for item in read_json(path, frozenset({"id"}), notes)]
    assert ids[0] != ids[0]
    assert ids[1:] == [2, float("inf"), "\ud800", float("inf")]
    for case in ("nested lists", "nested objects", "nested just beyond the limit"):
        with pytest.raises(ValueError, match=r"here: not valid JSON \(more than 64 lists") as error:
            parse_foreign(JSON[case], "here")
        refused(error)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
YAML = {
    "aliases that explode": LAUGHS,
    "merges that explode": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "aliases that nest": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [[[[[*a{i - 1}]]]]]\n" for i in range(1, 60)),
    "an alias that contains itself": "a: &a [*a]",
    "nested lists": "[" * 60_000,
    "nested mappings": "{a: " * 16_000,
    "nested blocks": "".join(" " * i + f"k{i}:\n" for i in range(200)),
    "nested just beyond the limit": "[" * 70 + "]" * 70,
    "more than a run file can be": "a: " + "x" * 70_000,
    "a key that stands twice": "name: a\nname: b",
    "code": "!!python/object/apply:os.system ['touch ran']",
    "a tag without a value": "!!timestamp x",
    "a lone surrogate": 'name: "\\ud800"',
    "beyond Unicode": 'name: "\\U7fffffff"',
    "control characters": "name: \x07",
    "no UTF-8": b"name: \xff",
}
# As words these are texts of a field that refuses or takes them; by their look they would be numbers or dates.
TYPED = {
    "a number of 9,000 digits": "a: " + "9" * 9000,
    "a number of 65 bits": "a: 18446744073709551616",
    "a number to base sixty": "a: 1" + ":59" * 900,
    "infinity": "a: .inf",
    "NaN": "a: .nan",
    "a float too large": "a: 1.0e+999",
    "no day": "a: 2026-13-45",
    "half a binary number": "a: !!int 0b",
}


@pytest.mark.parametrize("case", YAML)
def test_a_run_file_that_cannot_be_used_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "hostile.yaml"
    content = YAML[case]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        load_run(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    refused(error, "hostile.yaml")
    if isinstance(content, str):
        with pytest.raises(ValueError):
            read_yaml(content, typed=True)


@pytest.mark.parametrize("case", TYPED)
def test_numbers_and_dates_that_no_field_holds(case: str) -> None:
    with pytest.raises(ValueError, match="not valid YAML: ") as error:
        read_yaml(TYPED[case], typed=True)
    refused(error)


@pytest.mark.parametrize(
    "row",
    [
        *(text for name, text in JSON.items() if name != "nothing"),
        '{"kind": "metrics", "time": 1, "step": 1e18, "values": {"a": 1}, "more": 1e999}',
        '{"kind": "metrics", "time": 1, "step": 18446744073709551615, "values": {"a": 1}}',
        '{"kind": "metrics", "time": 1, "step": 1, "values": 3}',
        '{"kind": "metrics", "time": "NaN", "step": 1, "values": {}}',
        '{"kind": "metrics", "time": 1e300, "step": 1, "values": {}}',
        '{"kind": "metrics", "time": -1, "step": 1, "values": {}}',
        '{"kind": "params", "time": 1}',
        '{"kind": "params", "time": 1, "values": [1]}',
        '{"kind": "artifact", "time": 1, "path": 3}',
        '{"kind": "status", "time": 1}',
        '{"kind": ["metrics"], "time": 1}',
        '"metrics"',
        "[]",
    ],
)
def test_a_journal_is_read_around_a_row_that_is_none(tmp_path: Path, row: str) -> None:
    path, said = tmp_path / "journal.jsonl", []
    journal = Journal(path)
    journal.metrics(1, {"loss": 0.5})
    with path.open("a") as file:
        file.write(row + "\n")
    journal.metrics(2, {"loss": 0.25})
    journal.close()
    assert [row["step"] for row, _ in read_rows(path, on_bad=said.append)] == [1, 2]
    assert len(said) == 1
    assert "not a journal row" in said[0]
    assert [point.value for point in metric_points(path, on_bad=said.append)["loss"]] == [0.5, 0.25]


def test_half_a_character_loses_neither_a_page_nor_a_journal(tmp_path: Path) -> None:
    """A caption, or the name of a run folder that is not UTF-8 (Python reads such a byte as a lone surrogate)."""
    name = b"run-\xff".decode("utf-8", "surrogateescape")
    page = write_page(tmp_path / "report.html", name, f"<p>a caption with \ud800</p><pre>{name}</pre>")
    html = page.read_text(encoding="utf-8")
    assert "<title>run-?</title>" in html
    assert "a caption with ?" in html
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("artifact", path=f"/data/{name}/report.html")
    journal.metrics(1, {"loss": 0.5})
    journal.close()
    assert [row["kind"] for row, _ in read_rows(tmp_path / "journal.jsonl")] == ["artifact", "metrics"]
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])["path"] == "/data/run-?/report.html"
