"""The code block of docs/use_adapters.md, run here with other names in its first two assignments."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "use_adapters.md"


def guide_caption(base: str, folder: Path, source: Path, box: Sequence[float]) -> str:
    """What the block prints. It imports nothing of this project, but runs in this process."""
    block = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert block is not None
    lines = block[1].splitlines()
    places = {
        "base, folder =": f"base, folder = {base!r}, {str(folder)!r}",
        "source, box =": f"source, box = {str(source)!r}, {list(box)!r}",
    }
    for start, line in places.items():
        (number,) = [i for i, old in enumerate(lines) if old.startswith(start)]
        lines[number] = line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n".join(lines), str(GUIDE), "exec"), {})
    return printed.getvalue().strip()
