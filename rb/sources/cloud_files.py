"""Point clouds as people have them: a .ply, .pcd, .npy, .npz, .pt or .xyz file to [N, 3 | 6] float32.

Used by ``rb caption``, the API and the converters. Coordinates stay as they are in the file; colours become numbers in [0, 1]. What a header says of counts is held against the size of the
file before a library or numpy believes it. Shards have one form only, which ``points.py`` reads.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.core.colours import unit_colours
from rb.core.npy_files import npy_array
from rb.core.stand_ins import stand_in
from rb.sources.cloud_arrays import MAX_BYTES, WIDTHS, read_npz, read_pt
from rb.sources.points import PointsError

MAX_HEADER = 1 << 16
_PLY_KINDS = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
COLOURS_DIVIDED = "colours from 0 to 255, divided by 255"
_SPACES = bytes.maketrans(b",;\t", b"   ")
_RATIO, _UNPACKED_FREE = (
    20,
    1 << 26,
)  # unpacked bytes for a packed one; scans have 2 to 5, LZF itself could claim 88, deflate 1,000
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


@dataclass(frozen=True)
class CloudFile:
    """A cloud as read: [N, 3 | 6] float32, colours in [0, 1]; and what was done to it, in sentences for people."""

    points: NDArray[np.float32]
    notes: tuple[str, ...] = ()


class NotFiniteError(PointsError):
    """A cloud with a number that is NaN or infinite."""


class ColoursError(PointsError):
    """A cloud whose columns behind x y z are no colours."""


def read_cloud(path: Path, most_bytes: int = MAX_BYTES) -> CloudFile:
    """The points of a file, by its extension.

    Args:
        most_bytes: of the file, and of what it unpacks to.

    Raises:
        PointsError: no such kind of file, cut short, larger than allowed, a header that does not fit the file, no coordinates.
        ColoursError: columns that are no colours.
        NotFiniteError: numbers that are not finite in float32.
        ValueError: the library that reads this kind is not installed.
    """
    _reader(path.suffix, str(path))
    size = path.stat().st_size
    if not size:
        raise PointsError(f"{path}: the file is empty; save it again")
    if size > most_bytes:
        raise PointsError(f"{path}: has {size:,} bytes, more than {most_bytes:,}; thin the cloud")
    return parse_cloud(path.read_bytes(), path.suffix, str(path), most_bytes)


def parse_cloud(data: bytes, extension: str, where: str, most_bytes: int = MAX_BYTES) -> CloudFile:
    """As ``read_cloud``, for the bytes of a file, such as a member of an archive."""
    reader, other = _reader(extension, where), stand_in(data)
    if other is not None:
        raise PointsError(f"{where}: {other}")
    try:
        found = reader(data, where, most_bytes)
    except PointsError:
        raise
    except ImportError:
        package = {".ply": "plyfile", ".pcd": "pypcd4"}[extension.lower()]
        raise ValueError(
            f"{where}: reading {extension.lower()} needs the package {package}: pip install {package}"
        ) from None
    except Exception as error:  # noqa: BLE001 (libraries have many ways to stumble over a damaged file)
        raise PointsError(f"{where}: cannot be read ({' '.join(str(error).split())[:200]}); save it again") from None
    if len(found.xyz) == 0:
        raise PointsError(f"{where}: holds no points")
    with np.errstate(over="ignore"):
        columns = [part.astype(np.float32) for part in (found.xyz, found.colours) if part is not None]
    bad = ~np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in columns])
    if bad.any():
        raise NotFiniteError(
            f"{where}: {int(bad.sum())} of {len(bad)} points are not finite (NaN or infinite), first {int(bad.argmax())}; remove them"
        )
    shares, notes = _shares(found.colours, where)
    points = columns[0] if shares is None else np.column_stack([columns[0], shares])
    return CloudFile(np.ascontiguousarray(points, dtype=np.float32), (*found.notes, *notes))


@dataclass(frozen=True)
class _Columns:
    """What a reader finds: coordinates [N, 3], colours [N, 3] of any range or none, and what was done to them."""

    xyz: NDArray[Any]
    colours: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()


def _reader(extension: str, where: str) -> Callable[[bytes, str, int], _Columns]:
    reader = _READERS.get(extension.lower())
    if reader is None:
        raise PointsError(f"{where}: not a cloud of a known kind; it must end in {', '.join(EXTENSIONS)}")
    return reader


def _shares(colours: NDArray[Any] | None, where: str) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """Colours in [0, 1], and what was done; those that count to 255 (or 65,535) are divided by it."""
    if colours is None:
        return None, ()
    if colours.dtype.kind == "u" and colours.dtype.itemsize <= 2:
        return colours / np.float32(np.iinfo(colours.dtype).max), ()
    try:
        shares, divided = unit_colours(colours)
    except ValueError as error:
        raise ColoursError(f"{where}: {error}") from None
    return shares, (COLOURS_DIVIDED,) if divided else ()


def _named(columns: Any, names: tuple[str, ...], where: str) -> _Columns:
    """Coordinates and colours of a table with named columns."""
    lost = [name for name in "xyz" if name not in names]
    if lost:
        raise PointsError(f"{where}: its points have no {lost[0]}; they have {', '.join(names)[:200]}")
    trio = next((trio for trio in _COLOURS if set(trio) <= set(names)), None)
    colours = None if trio is None else np.column_stack([columns[name] for name in trio])
    return _Columns(np.column_stack([columns[name] for name in "xyz"]), colours)


def _plain(array: NDArray[Any], where: str) -> _Columns:
    """Coordinates and colours of a table without names."""
    if array.ndim != 2 or array.shape[1] not in WIDTHS:
        raise PointsError(
            f"{where}: has shape {list(array.shape)}; give [N, 3] x y z, or [N, 6] x y z and red green blue"
        )
    return _Columns(array[:, :3], array[:, 3:] if array.shape[1] == 6 else None)


def _too_short(where: str, claimed: str, least: int, there: int) -> PointsError:
    return PointsError(
        f"{where}: its header says {claimed}, which need at least {least} bytes, but {there} follow; the file is cut short or damaged"
    )


def _ply(data: bytes, where: str) -> _Columns:
    import plyfile

    found = re.match(rb"ply\r?\n(.*?\n)end_header[ \t]*\r?\n", data[:MAX_HEADER], re.DOTALL)
    if found is None:
        raise PointsError(
            f"{where}: not a PLY file with a header of at most {MAX_HEADER} bytes; starts with {data[:40]!r}"
        )
    lines = found[1].decode("ascii", "replace").splitlines()
    last = _last_line_of_vertices(lines, len(data) - found.end(), where)
    if (
        lines[0].split()[:2] == ["format", "ascii"]
        and sum(line.split()[:1] == ["element"] for line in lines[:last]) == 1
    ):
        vertices = _text_vertices(lines[:last], data[found.end() :], where)
        return _named(vertices, vertices.dtype.names or (), where)
    # What follows the vertices (mostly faces, which a library reads one by one) is left out.
    newline = "\r\n" if data[3:4] == b"\r" else "\n"
    header = newline.join(["ply", *lines[:last], "end_header", ""]).encode("ascii", "replace")
    with (
        tempfile.TemporaryFile() as file
    ):  # a file, since plyfile maps its numbers at once and reads streams one by one
        file.write(header)
        file.write(memoryview(data)[found.end() :])
        file.seek(0)
        vertices = plyfile.PlyData.read(file)["vertex"].data
        return _named(vertices, vertices.dtype.names or (), where)


def _text_vertices(lines: list[str], body: bytes, where: str) -> NDArray[Any]:
    """The vertices, named by their properties, of a text that begins with them: 7 times as fast as the library, which goes row by row."""
    words = [line.split() for line in lines]
    kinds = np.dtype([(names[-1], _PLY_KINDS[kind]) for _, kind, *names in (w for w in words if w[:1] == ["property"])])
    count = next(int(w[-1]) for w in words if w[:1] == ["element"])
    vertices = np.loadtxt(io.BytesIO(body), kinds, comments=None, max_rows=count, ndmin=1)
    if len(vertices) != count:
        raise PointsError(
            f"{where}: its header says {count} rows of vertex, but {len(vertices)} follow; the file is cut short"
        )
    return vertices


def _last_line_of_vertices(lines: list[str], body: int, where: str) -> int:
    """How many header lines end with the vertices' own, after the counts of all elements up to there were held against ``body`` bytes."""
    text = any(line.split()[:2] == ["format", "ascii"] for line in lines)
    name, count, row, least, last = (
        "",
        0,
        0,
        0,
        0,
    )  # the element under way: its rows, least bytes of one; of all; its last line
    for number, line in enumerate([*lines, "element end 0"], 1):
        kind, *words = line.split() or [""]
        if kind == "element":
            least += count * row
            if count and not row:
                raise PointsError(f"{where}: element {name} has {count} rows without a property")
            if least - text > body:  # the last number in a text may end the file
                raise _too_short(where, f"{count} rows of {name}", least, body)
            if name == "vertex":
                return last
            if len(words) != 2 or not re.fullmatch(r"\d{1,18}", words[1], re.ASCII):
                raise PointsError(
                    f"{where}: line {number + 1} of its header is {line[:80]!r}; it must be: element NAME COUNT"
                )
            name, count, row = words[0], int(words[1]), 0
        elif kind == "property":
            if words[:1] == ["list"]:  # each becomes a small object: a file of megabytes would need gigabytes
                raise PointsError(
                    f"{where}: its element {name} has lists before the vertices end; save the file with its vertices first"
                )
            number_kind = _PLY_KINDS.get(words[0] if words else "")
            if number_kind is None:
                raise PointsError(f"{where}: line {number + 1} of its header has an unknown type: {line[:80]!r}")
            row, last = row + (2 if text else int(number_kind[1])), number
    raise PointsError(f"{where}: has no element named vertex")


def _pcd(data: bytes, where: str) -> _Columns:
    from pypcd4 import MetaData, PointCloud

    found = re.match(rb"(.*?\n|)DATA[ \t]+(ascii|binary|binary_compressed)[ \t]*\r?\n", data[:MAX_HEADER], re.DOTALL)
    if found is None:
        raise PointsError(
            f"{where}: not a PCD file with a header of at most {MAX_HEADER} bytes; starts with {data[:40]!r}"
        )
    lines = [line for line in found[0].decode("ascii", "replace").splitlines() if line and not line.startswith("#")]
    if not any(line.startswith("COUNT") for line in lines):  # one each, says the format
        fields = next((line.split()[1:] for line in lines if line.startswith("FIELDS")), [])
        lines.insert(-1, f"COUNT {' '.join('1' for _ in fields)}")
    meta, body = MetaData.parse_header(lines), data[found.end() :]
    if not len(meta.fields) == len(meta.size) == len(meta.type) == len(meta.count):
        raise PointsError(f"{where}: FIELDS, SIZE, TYPE and COUNT of its header are of different lengths")
    row = sum(size * count for size, count in zip(meta.size, meta.count, strict=True))
    if found[2] == b"ascii":
        least = 2 * meta.points * sum(meta.count) - 1
    elif found[2] == b"binary":
        least = meta.points * row
    else:
        packed, whole = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
        least = 8 + packed
        if whole != meta.points * row or whole > max(packed * _RATIO, _UNPACKED_FREE):
            raise PointsError(
                f"{where}: its header says {meta.points} points of {row} bytes, its data {packed} bytes packed from {whole}; save it again uncompressed"
            )
    if sum(meta.count) > MAX_HEADER or least > len(body):
        raise _too_short(where, f"{meta.points} points", least, len(body))
    table = PointCloud.from_fileobj(io.BytesIO("\n".join([*lines, ""]).encode("ascii") + body)).pc_data  # type: ignore[arg-type]
    if len(table) != meta.points:
        raise PointsError(f"{where}: its header says {meta.points} points, but it has {len(table)}")
    names = table.dtype.names or ()
    if {"x", "y", "z"} <= set(names):
        # Organised clouds mark pixels without a measurement by NaN; that is the format's own way, and no fault.
        seen = ~(np.isnan(table["x"]) & np.isnan(table["y"]) & np.isnan(table["z"]))
        notes = (f"{int((~seen).sum())} of {len(table)} points without a measurement (NaN) left out",) * (
            not seen.all()
        )
        table = table[seen]
        packed_colour = next((name for name in ("rgb", "rgba") if name in names), None)
        if packed_colour is not None and table.dtype[packed_colour].itemsize == 4:
            xyz = np.column_stack([table[name] for name in "xyz"])
            return _Columns(xyz, PointCloud.decode_rgb(np.ascontiguousarray(table[packed_colour])), notes)
        return replace(_named(table, names, where), notes=notes)
    return _named(table, names, where)


def text_table(data: bytes, where: str) -> NDArray[np.float64]:
    """The table [N, C] in a text: numbers between spaces or commas, behind remarks and the count that some tools write.

    Raises:
        PointsError: no numbers, lines of different lengths, another count.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").translate(_SPACES).replace(b"//", b"#")
    stream, claimed, place = io.BytesIO(text), None, 0
    for line in stream:  # up to the first point: remarks, and the count that some tools write
        words = line.split(b"#")[0].split()
        if len(words) > 1 or (words and not re.fullmatch(rb"\d{1,18}", words[0])):
            break
        claimed = int(words[0]) if words else claimed
        place += len(line)
        if place > MAX_HEADER:
            raise PointsError(f"{where}: holds no points in its first {MAX_HEADER:,} bytes")
    if place == len(text):
        raise PointsError(f"{where}: holds no points")
    stream.seek(place)
    try:
        table = np.loadtxt(stream, ndmin=2, encoding="latin-1")
    except ValueError as error:
        raise PointsError(
            f"{where}: {str(error).split(';')[0].rstrip('.')}; every line must be x y z, or x y z red green blue"
        ) from None
    if claimed not in (None, len(table)):
        raise PointsError(f"{where}: its first line says {claimed} points, but {len(table)} follow")
    return table


_READERS: dict[str, Callable[[bytes, str, int], _Columns]] = {
    ".ply": lambda data, where, _: _ply(data, where),
    ".pcd": lambda data, where, _: _pcd(data, where),
    ".npy": lambda data, where, _: _plain(npy_array(data), where),
    ".npz": lambda data, where, most: _plain(read_npz(data, min(most, max(_UNPACKED_FREE, _RATIO * len(data)))), where),
    ".pt": lambda data, where, _: _plain(read_pt(data), where),
    ".xyz": lambda data, where, _: _plain(text_table(data, where), where),
}
EXTENSIONS = tuple(_READERS)
