"""Tables of one's own annotations, row by row: CSV, TSV, JSON lines, a JSON list, COCO's JSON, Parquet. Used by `custom.py`.

A row is a mapping from column to value. A row that cannot be read is handed on as an error with its number; the others stay.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rb.core.strict_json import FormatError, parse_foreign
from rb.data.prepare.common import objects_of, read_json
from rb.data.prepare.parquet_files import Row, Rows, read_parquet
from rb.data.prepare.raw_text import read_text

_DELIMITERS = ",;\t|"
_MOST_LINES = 50  # of one row
_COCO_FIELDS = frozenset(
    {"images", "annotations", "id", "image_id", "file_name", "bbox", "caption", "phrase", "sentence", "text"}
    | {"description", "captions", "split"}
)


def read_csv(path: Path, notes: Counter[str]) -> Rows:
    """Rows of a table with a header line; the delimiter is the one that cuts the header into most cells.

    A quote that is never closed would swallow the rows behind it without a word; here it costs its own line only.
    """
    header, *lines = list(io.StringIO(read_text(path, notes), newline="")) or [""]
    delimiter = max(_DELIMITERS, key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if len(names) < 2 or doubled:
        what = f"column {doubled[0]!r} comes twice" if doubled else "its first line must name at least two columns"
        raise ValueError(f"{path}: {what}; give every column its own name, separated by commas")
    at = 0
    while at < len(lines):
        number = at + 2  # the header is line 1
        try:
            reader = csv.reader(lines[at : at + _MOST_LINES], delimiter=delimiter, strict=True)
            cells = next(reader)
            at += reader.line_num
        except csv.Error as error:
            at += 1
            if lines[at - 1].count('"') % 2 or len(lines[at - 1]) > csv.field_size_limit():
                yield number, ValueError(f"not a row of CSV ({error}); are its quotes closed?")
                continue
            cells = next(csv.reader([lines[at - 1]], delimiter=delimiter))  # "one" word in quotes
        if not cells or cells == [""]:
            continue
        if len(cells) == len(names):
            yield number, dict(zip(names, cells, strict=True))
        else:
            yield number, ValueError(f"{len(cells)} cells, but the header names {len(names)} columns")


def read_jsonl(path: Path, notes: Counter[str]) -> Rows:
    """One JSON object a line."""
    for number, line in enumerate(io.StringIO(read_text(path, notes)), 1):
        if not line.strip():
            continue
        try:
            row = parse_foreign(line, f"line {number}", remedy="correct it")
        except FormatError as error:
            yield number, error
            continue
        yield number, row if isinstance(row, dict) else ValueError(f"a JSON object is needed, got {line.strip():.80}")


def read_json_list(path: Path, notes: Counter[str]) -> Rows:
    """A list of JSON objects in one file."""
    yield from enumerate(objects_of(parse_foreign(read_text(path, notes), str(path)), str(path)), 1)


def read_coco(path: Path, notes: Counter[str]) -> Rows:
    """The annotations of a file in COCO's form, each with its image's ``file_name``; ``bbox`` is x, y, width, height in pixels."""
    content = read_json(path, _COCO_FIELDS, notes)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be an object with 'images' and 'annotations'")
    images: dict[object, Row] = {}
    doubled: set[object] = set()
    for item in objects_of(content.get("images"), f"{path}: images"):
        key = _key(item.get("id"))
        if key is not None and images.setdefault(key, item) != item:
            doubled.add(key)
    for number, item in enumerate(objects_of(content.get("annotations"), f"{path}: annotations"), 1):
        key = _key(item.get("image_id"))
        image = images.get(key)
        if image is None or key in doubled:
            what = "none of the images" if image is None else "the id of two images"
            yield number, ValueError(f"image_id {item.get('image_id')!r:.80} is {what}")
            continue
        # Detection files without captions of annotations may carry them at the image, as MDETR's do.
        yield number, {k: v for k, v in image.items() if k != "id"} | {k: v for k, v in item.items() if k != "image_id"}


def _key(value: object) -> int | str | None:
    """An id: a text, or a whole number, also written as 1.0. None for what is neither; true is not 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def read_class_folders(folder: Path, notes: Counter[str]) -> Rows:  # noqa: ARG001 (a reader like the others)
    """A row for each file below a folder of folders, one a class: its caption is the name of its class as words."""
    files = sorted(path.relative_to(folder) for path in folder.glob("*/**/*") if path.is_file())
    named = (file for file in files if not any(part.startswith(".") for part in file.parts))
    for number, file in enumerate(named, 1):
        yield number, {"file": file.as_posix(), "caption": file.parts[0].replace("_", " ")}


CLASS_FOLDERS = "class-folders"
READERS: dict[str, Callable[[Path, Counter[str]], Rows]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "json-list": read_json_list,
    "coco": read_coco,
    "parquet": read_parquet,
    CLASS_FOLDERS: read_class_folders,
}
TABLES = tuple(kind for kind in READERS if kind != CLASS_FOLDERS)  # those that are files
