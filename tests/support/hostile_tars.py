"""Tars whose headers lie, a few kB each. Written by hand: Python's writer would not make them."""

from __future__ import annotations

import tarfile

GIB = 1 << 30


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One header block; a size beyond 8 GiB, or below 0, in base 256."""
    info = tarfile.TarInfo("member")
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[:100] = name.encode()[:100].ljust(100, b"\0")
    block[124:136] = (
        b"%011o\0" % size
        if 0 <= size < 8 << 30
        else (b"\x80" if size >= 0 else b"\xff") + (size & (1 << 88) - 1).to_bytes(11, "big")
    )
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header with one record, ``keyword=value``, or with bytes that are none."""
    size = len(record) + 3
    while len(b"%d %s\n" % (size, record)) != size:
        size += 1
    data = b"%d %s\n" % (size, record)
    return header("pax", len(data), kind) + data.ljust(-(-len(data) // 512) * 512, b"\0")


FILE = header("k.json", 2) + b"{}".ljust(512, b"\0")
END = bytes(1024)

# Case -> a tar that must be refused at once.
TARS = {
    "a pax header of 8 GiB": header("pax", 8 * GIB, tarfile.XHDTYPE) + bytes(1024),
    "a global header of 8 GiB": header("pax", 8 * GIB, tarfile.XGLTYPE) + bytes(1024),
    "a long name of 8 GiB": header("long", 8 * GIB, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    "a long link of 7 GiB": header("long", 7 * GIB, tarfile.GNUTYPE_LONGLINK) + bytes(1024),
    "a long name of -1 byte": header("long", -1, tarfile.GNUTYPE_LONGNAME) + FILE + END,
    "3,000 pax headers in a chain": pax(b"comment=x") * 3000 + FILE + END,
    "3,000 long names in a chain": (header("long", 4, tarfile.GNUTYPE_LONGNAME) + b"name".ljust(512, b"\0")) * 3000
    + END,
    "a member that leads back to itself": pax(b"size=-1536") + FILE + END,
    "a member of a negative size": header("k.json", -1024) + FILE + END,
    "a member of 2^87 bytes": header("k.json", 1 << 87) + FILE + END,
    "a size of 4,000 digits": pax(b"size=" + b"9" * 4000) + FILE + END,
    "digits that take quadratic time": header("pax", 60_000, tarfile.XHDTYPE) + b"1" * 60_416 + FILE + END,
    "a sparse map cut short": pax(b"GNU.sparse.major=1") + FILE + END,
    "an old sparse header cut short": header("k.json", 512, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + bytes(29),
    "a record of 900 MiB": header("k.json", 900 << 20) + bytes(1024),
}
