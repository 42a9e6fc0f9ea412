"""Text files of data sets (CSV, JSON, lists) as text, by the project's one rule for their encoding (``rb/core/text_encoding.py``)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rb.core.stand_ins import stand_in
from rb.core.text_encoding import byte_order_mark, decode


def read_text(path: Path, notes: Counter[str]) -> str:
    """The whole text of ``path``, line ends as they are; ``notes[ENCODING_NOTE]`` grows by the bytes that are not UTF-8.

    Raises:
        ValueError: a file whose mark says UTF-16 or UTF-32 and that is not; a pointer or a web page in the file's place.
    """
    data = path.read_bytes()
    other = stand_in(data)
    if other:
        raise ValueError(f"{path}: {other}")
    mark, encoding = byte_order_mark(data)
    return decode(data[mark:], encoding, str(path), notes)[0]
