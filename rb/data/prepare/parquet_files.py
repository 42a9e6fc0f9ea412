"""Parquet tables row by row: the project's one reader of them. Used by `tables.py` and `refcoco_forms.py`.

A file of 700 bytes can hold a thousand texts of a megabyte, since equal values are written once. So texts stay in that form while they are
read, few rows are taken at a time, and what these unpack to is counted before it is unpacked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rb.data.prepare.parquet_footer import BYTE_ARRAY, column_parts

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | ValueError]]  # number of the row, from 1 (of its line, where a row is a line)

# What the library raises for damaged files, beside its own errors: RuntimeError for histograms of levels that do not fit.
_DAMAGE = (ValueError, OSError, OverflowError, LookupError, RuntimeError)
_BATCH = 16  # rows
_MOST_BATCH = 1 << 27  # bytes that these unpack to
_MOST_GROUP, _MOST_VALUES, _MOST_ROWS = 1 << 30, 1 << 24, 1 << 27  # bytes and values of a column's part; rows
_BUFFER = 1 << 20  # bytes read at a time: else a whole column of a row group, which may be images
_PER_VALUE = 32  # bytes that a number takes in a list


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns of a Parquet file. ``ValueError`` where it cannot be read, or has two of one name."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
    except (pyarrow.ArrowException, *_DAMAGE) as error:
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: cannot be read as Parquet ({words}); download or write it again") from None
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise ValueError(f"{path}: column {doubled[0]!a:.80} comes twice; give every column its own name")
    return names


def read_parquet(
    path: Path,
    notes: Counter[str],  # noqa: ARG001 (Parquet states its encoding)
    columns: Sequence[str] | None = None,
    batch_rows: int = _BATCH,
) -> Rows:
    """Rows of a Parquet file, ``batch_rows`` at a time; ``columns``: only these are read.

    Raises:
        ValueError: damage, a column that comes twice, rows that unpack to too much.
    """
    import pyarrow
    import pyarrow.parquet

    parquet_columns(path)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.metadata.num_rows
        if rows > _MOST_ROWS:
            raise ValueError(f"it has {rows:,} rows, at most {_MOST_ROWS:,} are read; write it in parts")
        texts = _texts_within_limits(path, columns)
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts, buffer_size=_BUFFER) as file:
            for batch in file.iter_batches(batch_rows, columns=columns):
                size = sum(map(_unpacked, batch.columns))
                if size > _MOST_BATCH:
                    raise ValueError(f"{len(batch)} rows unpack to {size:,} bytes, at most {_MOST_BATCH:,} are read")
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, *_DAMAGE) as error:
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: cannot be read as Parquet behind row {number} ({words}); write it again") from None


def _texts_within_limits(path: Path, columns: Sequence[str] | None) -> list[str]:
    """The columns of texts, by their paths. ``ValueError`` where what the footer claims is too much already."""
    texts: dict[str, None] = {}
    for part in column_parts(path):
        if columns is not None and not any(part.path == name or part.path.startswith(f"{name}.") for name in columns):
            continue
        if part.size > _MOST_GROUP or part.values > _MOST_VALUES:
            raise ValueError(
                f"a row group has {part.size:,} bytes and {part.values:,} values in one column; write it with at "
                f"most {_MOST_GROUP:,} and {_MOST_VALUES:,}, or in parts"
            )
        if part.physical_type == BYTE_ARRAY:
            texts[part.path] = None
    return list(texts)


def _unpacked(array: Any) -> int:
    """Bytes that the values of an array need once each stands for itself, about."""
    import pyarrow.compute
    import pyarrow.types as kinds

    if kinds.is_dictionary(array.type):
        sizes = pyarrow.compute.binary_length(array.dictionary)
        return len(array) * (_PER_VALUE + (pyarrow.compute.max(sizes).as_py() or 0))
    if kinds.is_struct(array.type):
        return sum(map(_unpacked, array.flatten()))
    if kinds.is_nested(array.type):
        return len(array) * _PER_VALUE + _unpacked(array.values if kinds.is_map(array.type) else array.flatten())
    return len(array) * _PER_VALUE + array.nbytes
