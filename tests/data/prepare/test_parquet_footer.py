"""The footer of Parquet files: equal to what the library says of sound files, a line for every damaged one, also where the library would die."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rb.data.prepare.parquet_files import read_parquet
from rb.data.prepare.parquet_footer import column_parts

HISTOGRAM = Path(__file__).with_name(
    "histogram.parquet"
)  # found by fuzzing: pyarrow ends the process when it looks at a column's part


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three row groups of texts, lists, structs, truth values and lists of structs."""
    columns = {"a": ["x", "yy"] * 45, "b": [[1.0, 2.0, 3.0]] * 90, "c": [{"p": 1, "q": "z"}] * 90}
    table = pyarrow.table(columns | {"d": [True, None] * 45, "e": [[{"k": "v"}, {"k": "w"}]] * 90})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=40, compression="zstd", write_page_index=True)
    return path


def test_parts_are_those_of_the_library(file: Path) -> None:
    with pyarrow.parquet.ParquetFile(file) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
    parts = [group.column(i) for group in groups for i in range(group.num_columns)]
    expected = [(part.path_in_schema, part.num_values, part.total_uncompressed_size) for part in parts]
    assert len(expected) == 18
    assert [(part.path, part.values, part.size) for part in column_parts(file)] == expected
    assert [part.physical_type == 6 for part in column_parts(file)] == [p.physical_type == "BYTE_ARRAY" for p in parts]


def test_a_file_that_would_end_the_process_is_refused_with_a_line() -> None:
    with pytest.raises(ValueError, match=r"histogram\.parquet: cannot be read as Parquet behind row 0"):
        list(read_parquet(HISTOGRAM, Counter()))


def test_altered_footers_give_parts_or_a_line(file: Path, tmp_path: Path) -> None:
    whole, rng, refused = file.read_bytes(), random.Random(0), 0
    size = int.from_bytes(whole[-8:-4], "little")
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[len(data) - 8 - rng.randint(1, size)] = rng.randrange(256)
        (tmp_path / "b.parquet").write_bytes(data)
        refused += refusal(tmp_path / "b.parquet") == "its footer is damaged"
    assert 50 < refused < 300
    for data in (b"", b"PAR1", whole[:-1], whole[:-8] + b"\xff\xff\xff\xff" + whole[-4:], whole[:-4] + b"PARE"):
        (tmp_path / "b.parquet").write_bytes(data)
        assert refusal(tmp_path / "b.parquet") == "its footer is damaged or encrypted"


def refusal(path: Path) -> str:
    try:
        list(column_parts(path))
    except ValueError as error:
        return str(error)
    return ""
