"""The one rule for the encoding of other people's text, for whole files and for streams. No letter is lost.

A byte-order mark decides (UTF-8, UTF-16, UTF-32); without one the text is UTF-8, and each byte that is not is read as Windows-1252 (as Latin-1
where that has no letter). Such bytes are counted.
"""

from __future__ import annotations

import codecs
from collections import Counter

ENCODING_NOTE = "bytes that are not UTF-8, read as Windows-1252"
HANDLER = "rb_windows_1252"  # for ``bytes.decode(errors=...)``
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECODERS = {
    "utf-8": codecs.utf_8_decode,
    "utf-32-le": codecs.utf_32_le_decode,
    "utf-32-be": codecs.utf_32_be_decode,
    "utf-16-le": codecs.utf_16_le_decode,
    "utf-16-be": codecs.utf_16_be_decode,
}


def _windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: the bytes that are not UTF-8, one by one."""
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    letters = [byte.to_bytes(1, "big").decode("cp1252", "ignore") or chr(byte) for byte in wrong]
    return "".join(letters), error.end


codecs.register_error(HANDLER, _windows_1252)


def byte_order_mark(head: bytes) -> tuple[int, str]:
    """(length of the mark, encoding) by the first bytes of a file; (0, "utf-8") without a mark."""
    return next(((len(mark), encoding) for mark, encoding in _MARKS if head.startswith(mark)), (0, "utf-8"))


def decode(data: bytes, encoding: str, where: str, notes: Counter[str], final: bool = True) -> tuple[str, int]:
    """(text of ``data``, number of bytes used); ``notes[ENCODING_NOTE]`` grows by the bytes that are not UTF-8.

    Args:
        final: whether nothing follows; else a letter that is cut by the end of ``data`` is left for the next piece.

    Raises:
        ValueError: what a mark called UTF-16 or UTF-32 and is not.
    """
    decoder = _DECODERS[encoding]
    try:
        return decoder(data, "strict", final)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(
                f"{where}: its first bytes say {encoding}, but it is not ({error}); save it as UTF-8"
            ) from None
    # Letters behind 127 that are left when what is not UTF-8 is dropped, against all of them.
    text, used = decoder(data, HANDLER, final)
    notes[ENCODING_NOTE] += len(text) - len(decoder(data, "ignore", final)[0])
    return text, used
