"""``docs/reliability.md``, written from the results of the drills: ``python -m tests.support.reliability_page``; ``make drill`` does it at its end.

A part whose results are not in this checkout keeps the row and the figures that the page has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rb.core.files import write_whole
from tests.support.trials import RESULTS, ROOT, Row, read_rows

PAGE = ROOT / "docs" / "reliability.md"
PARTS = {path.stem.removeprefix("test_"): path for path in sorted((ROOT / "tests" / "drill").glob("test_*.py"))}
TITLE = """# Reliability

What was done to trainings and other commands on purpose, and what held. `make drill` runs all parts and writes this page, `make drill PART=NAME` runs one.
Results lie in `drill/`, a JSON file a part. A trial that passed is not repeated at the same commit, so a drill that was ended goes on. A part begins no new trial after 30
minutes. Most parts have a short form in `make test`.

| part | trials passed | commit | machine | date |
|---|---|---|---|---|
"""
FIGURES = " Largest figures:\n\n"
RESULT = (
    r"^## (\w+)\n(?:(?!## ).*\n)*?(Of \d+ trials .*\n(?:\n- .*\n(?:- .*\n)*)?)"  # of a section: name, what came out
)


def page(parts: Mapping[str, Path], results: Mapping[str, Sequence[Row]], earlier: str) -> str:
    """The page's text.

    Args:
        parts: name -> file of the part.
        results: name -> its rows; a part may lack.
        earlier: the page as it is, for rows and figures of such parts.
    """
    kept = {found[1]: line for line in earlier.splitlines() if (found := re.match(r"\| \[(\w+)\]", line))}
    said = dict(re.findall(RESULT, earlier, re.MULTILINE))
    rows = [table_row(name, results[name]) if results.get(name) else kept.get(name, not_run(name)) for name in parts]
    sections = []
    for name, file in parts.items():
        came_out = outcome(results[name]) if results.get(name) else said.get(name, "")
        sections.append(f"## {name}\n\n{docstring(file)}\n" + (f"\n{came_out}" if came_out else ""))
    return TITLE + "\n".join(rows) + "\n\n" + "\n".join(sections)


def not_run(name: str) -> str:
    """The row of a part that nobody has run yet."""
    return _line(name, "not run", "", "", "")


def table_row(name: str, rows: Sequence[Row]) -> str:
    """The row of a part: trials passed of all, and where."""
    last = rows[-1]
    passed = sum(row.passed is True for row in rows)
    waiting = sum(row.passed is None for row in rows)
    counts = f"{passed} of {len(rows)}" + (f", {waiting} not run" if waiting else "")
    return _line(name, counts, last.commit, last.machine, max(row.date for row in rows))


def outcome(rows: Sequence[Row]) -> str:
    """What came out of a part: how many trials passed, which failed, the largest figures."""
    text = f"Of {len(rows)} trials {sum(row.passed is True for row in rows)} passed."
    if failed := [row.name for row in rows if row.passed is False]:
        text += f" Failed: {'; '.join(failed)}."
    if waiting := sum(row.passed is None for row in rows):
        text += f" Not run: {waiting}."
    figures = "".join(_largest(rows))
    return text + (f"{FIGURES}{figures}" if figures else "\n")


def docstring(file: Path) -> str:
    """What a part does and what must hold: the docstring of its file, as Markdown."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.replace("``", "`").strip()


def _line(name: str, counts: str, commit: str, machine: str, date: str) -> str:
    return f"| [{name}](#{name}) | {counts} | {commit} | {machine} | {date} |"


def _largest(rows: Sequence[Row]) -> list[str]:
    """A line for every figure that is a number."""
    largest: dict[str, float] = {}
    for row in rows:
        for figure, value in row.figures.items():
            if isinstance(value, int | float):
                largest[figure] = max(value, largest.get(figure, value))
    return [f"- {figure.replace('_', ' ')}: {value:,.4g}\n" for figure, value in largest.items()]


def main() -> None:
    """Write the page."""
    results = {name: read_rows(RESULTS / f"{name}.json") for name in PARTS}
    write_whole(PAGE, page(PARTS, results, PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""))


if __name__ == "__main__":
    main()
