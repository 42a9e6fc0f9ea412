"""Images inside Parquet files, as Hugging Face's mirrors hold them: a column ``image`` of ``{bytes, path}``. Read once, from begin to end.

The items of a set stand in the order of the rows that hold their images, so that each file is gone through once and a few images are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rb.data.formats import MAX_RECORD_BYTES
from rb.data.prepare.common import CheckedImage, Reason, RejectedError, check_image
from rb.data.prepare.image_sets import ImageFile, RegionImage
from rb.data.prepare.parquet_files import Rows, read_parquet
from rb.data.prepare.plan import Items

COLUMN = "image"
_BATCH = 16  # rows at a time; a photo has some 200 kB


@dataclass(frozen=True)
class ParquetImage(ImageFile):
    """An image in row ``row`` (from 1) of the file ``root``; ``data`` is what the column holds, once it was read."""

    row: int = 0
    data: object = None

    def read(self, exif: str | None) -> CheckedImage:
        """As of ``ImageFile``."""
        content = self.data.get("bytes") if isinstance(self.data, dict) else self.data
        where = f"{self.root}, row {self.row}"
        if not isinstance(content, bytes) or not content:
            raise RejectedError(Reason.IMAGE_MISSING, f"{where}: its column {COLUMN!r} holds no bytes of an image")
        if len(content) > MAX_RECORD_BYTES:
            raise RejectedError(Reason.UNREADABLE_IMAGE, f"{where}: more than {MAX_RECORD_BYTES:,} bytes")
        return check_image(content, where, exif)


class WithImages(Items[RegionImage]):
    """``items``, whose files are all ``ParquetImage`` in the order of files and rows: each gets its bytes while one goes through them."""

    def __init__(self, items: Sequence[RegionImage]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def item(self, number: int) -> RegionImage:
        """As of ``Items``; without the bytes."""
        return self._items[number]

    def __iter__(self) -> Iterator[RegionImage]:
        path: Path | None = None
        rows: Rows = iter(())
        for item in self._items:
            file = item.file
            assert isinstance(file, ParquetImage)
            if file.root != path:
                path, rows = file.root, read_parquet(file.root, Counter(), (COLUMN,), _BATCH)
            for number, row in rows:
                if number == file.row:
                    assert not isinstance(row, ValueError)
                    yield replace(item, file=replace(file, data=row[COLUMN]))
                    break
