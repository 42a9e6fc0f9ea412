"""Text files of data sets (CSV, JSON, lists, texts in pickles) as text, by one rule for their encoding. No letter is lost.

The rule: a byte-order mark decides (UTF-8, UTF-16, UTF-32); without one the file is UTF-8, and each byte that is not is read as Windows-1252
(as Latin-1 where that has no letter). Such bytes are counted.
"""

from __future__ import annotations

import codecs
from collections import Counter
from pathlib import Path

from rb.core.stand_ins import stand_in

ENCODING_NOTE = "bytes that are not UTF-8, read as Windows-1252"
HANDLER = "rb_windows_1252"  # for ``bytes.decode(errors=...)``
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def _windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: the bytes that are not UTF-8, one by one."""
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    letters = [byte.to_bytes(1, "big").decode("cp1252", "ignore") or chr(byte) for byte in wrong]
    return "".join(letters), error.end


codecs.register_error(HANDLER, _windows_1252)


def read_text(path: Path, notes: Counter[str]) -> str:
    """The whole text of ``path``, line ends as they are; ``notes[ENCODING_NOTE]`` grows by the bytes that are not UTF-8.

    Raises:
        ValueError: a file whose mark says UTF-16 or UTF-32 and that is not; a pointer or a web page in the file's place.
    """
    data = path.read_bytes()
    other = stand_in(data)
    if other:
        raise ValueError(f"{path}: {other}")
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    data = data[len(mark) :]
    if encoding != "utf-8":
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: its first bytes say {encoding}, but it is not ({error}); save it as UTF-8"
            ) from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Letters behind 127 that are left when what is not UTF-8 is dropped, against all of them.
        text = data.decode("utf-8", HANDLER)
        notes[ENCODING_NOTE] += len(text) - len(data.decode("utf-8", "ignore"))
        return text
