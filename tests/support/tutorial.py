"""The commands of docs/tutorial.md, as they are printed. For ``tests/test_tutorial.py`` and ``tests/drill/test_tutorial.py``."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import markdown

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"


def commands() -> list[str]:
    """Every line of the page's blocks that a reader types."""
    lines = markdown.block_lines(PAGE.read_text(encoding="utf-8"))
    return [line for line in lines if re.match(r"(rb|python|pip|cp) ", line)]
