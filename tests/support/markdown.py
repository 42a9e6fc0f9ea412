"""Reading the documentation's Markdown: its links, headings, command lines and names of files. For ``tests/test_docs.py``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1\s*$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
# What a placeholder stands for if a parser does not take its name as it is.
VALUES = {
    "MODALITY": "image_region",
    "N": "2",
    "K": "2",
    "X1": "1",
    "Y1": "2",
    "X2": "3",
    "Y2": "4",
    "SECTION.KEY=VALUE": "train.seed=1",
    "section.key=value": "train.seed=1",
}


def prose(text: str) -> str:
    """The text without fenced blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Targets of all links, ``file.md#heading`` or an address."""
    return LINK.findall(prose(text))


def anchors(text: str) -> set[str]:
    """Names of all headings as GitHub and MkDocs make them: lower case, words joined by ``-``."""
    names = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in HEADING.findall(prose(text)))
    return {re.sub(r"\s+", "-", name) for name in names}


def spans(text: str) -> list[str]:
    """Everything between single backticks outside fenced blocks."""
    return SPAN.findall(prose(text))


def block_lines(text: str) -> Iterator[str]:
    """Lines of fenced blocks that are shell (no language, ``sh`` or ``bash``); lines ending in ``\\`` are joined."""
    for _, language, body in FENCE.findall(text):
        if language in ("", "sh", "bash"):
            yield from body.replace("\\\n", " ").splitlines()


def command_spans(text: str) -> Iterator[str]:
    """Everything between backticks in tables that have a column ``command`` or ``how``."""
    inside = False
    for before, line in pairwise(["", *prose(text).splitlines()]):
        if line.startswith("|") and not before.startswith("|"):
            inside = bool(re.search(r"\| (command|how) \|", line))
        if inside and line.startswith("|"):
            yield from SPAN.findall(line)


def words_of(command: str) -> list[str]:
    """A command line's words, without variables before it, comment, brackets and ``...``; placeholders get a value."""
    words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command), comments=True)
    plain = (word.strip("[]") for word in words)
    return [VALUES.get(word, word) for word in plain if word not in ("", "...")]


def named_paths(text: str, tops: set[str]) -> Iterator[tuple[str, str]]:
    """Every ``path/in/the/repository`` between backticks whose first folder is one of ``tops``, with the name after ``path: NAME``."""
    for span in spans(text):
        match = re.fullmatch(r"([\w.{},*+-]+(?:/[\w.{},*+-]+)*/?)(?::\s*([\w.]+)(?:\(.*\))?)?", span)
        if match and "/" in match[1] and match[1].split("/")[0] in tops:
            yield match[1], match[2] or ""


def expand(path: str) -> list[str]:
    """``a/{b,c}.py`` -> ``a/b.py``, ``a/c.py``."""
    match = re.search(r"\{([^{}]*)\}", path)
    if not match:
        return [path]
    return [one for part in match[1].split(",") for one in expand(path[: match.start()] + part + path[match.end() :])]


def markdown_files(root: Path) -> list[Path]:
    """The pages that we write for readers."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]
