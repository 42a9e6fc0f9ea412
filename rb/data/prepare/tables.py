"""Tables of one's own annotations, row by row: CSV, TSV, JSON lines, a JSON list, COCO's JSON, Parquet. Used by `custom.py`.

A row is a mapping from column to value. A row that cannot be read is handed on as an error with its number; the others stay.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rb.core.strict_json import FormatError, parse_foreign
from rb.data.prepare.common import objects_of, read_json
from rb.data.prepare.raw_text import read_text

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | ValueError]]  # number of the row, from 1 (of its line, where a row is a line)

_DELIMITERS = ",;\t|"
_BATCH = 1000
_BUFFER = 1 << 20  # bytes read at a time: else a whole column of a row group, which may be images
_MOST_GROUP, _MOST_ROWS = 1 << 30, 1 << 27  # of a Parquet file: bytes unpacked at a time, rows
_COCO_FIELDS = frozenset(
    {"images", "annotations", "id", "image_id", "file_name", "bbox", "caption", "phrase", "sentence", "text"}
    | {"description", "captions", "split"}
)


def read_csv(path: Path, notes: Counter[str]) -> Rows:
    """Rows of a table with a header line; the delimiter is the one that cuts the header into most cells."""
    lines = io.StringIO(read_text(path, notes), newline="")
    header = lines.readline()
    delimiter = max(_DELIMITERS, key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if len(names) < 2 or doubled:
        what = f"column {doubled[0]!r} comes twice" if doubled else "its first line must name at least two columns"
        raise ValueError(f"{path}: {what}; give every column its own name, separated by commas")
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        number = reader.line_num + 2  # the header is line 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, ValueError(f"not a row of CSV ({error})")
            continue
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
    images = {item.get("id"): item for item in objects_of(content.get("images"), f"{path}: images")}
    for number, item in enumerate(objects_of(content.get("annotations"), f"{path}: annotations"), 1):
        image = images.get(item.get("image_id"))
        if image is None:
            yield number, ValueError(f"image_id {item.get('image_id')!r:.80} is none of the images")
            continue
        # Detection files without captions of annotations may carry them at the image, as MDETR's do.
        yield number, {k: v for k, v in image.items() if k != "id"} | {k: v for k, v in item.items() if k != "image_id"}


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns of a Parquet file. ``ValueError`` where it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}); download or write it again"
        ) from None


def read_parquet(
    path: Path,
    notes: Counter[str],  # noqa: ARG001 (Parquet states its encoding)
    columns: Sequence[str] | None = None,
    batch_rows: int = _BATCH,
) -> Rows:
    """Rows of a Parquet file, ``batch_rows`` at a time; ``columns``: only these are read."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER) as file:
            # The footer's own claims: equal texts take no room on the disk and all of it in memory.
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
            if max(groups, default=0) > _MOST_GROUP or file.metadata.num_rows > _MOST_ROWS:
                raise ValueError(
                    f"a row group of {max(groups):,} bytes; write it with at most {_MOST_GROUP:,}, or in parts"
                )
            for batch in file.iter_batches(batch_rows, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as Parquet behind row {number} ({' '.join(str(error).split())}); write it again"
        ) from None


READERS: dict[str, Callable[[Path, Counter[str]], Rows]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "json-list": read_json_list,
    "coco": read_coco,
    "parquet": read_parquet,
}
