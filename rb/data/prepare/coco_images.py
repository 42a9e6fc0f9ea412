"""Where COCO's images lie on a disk: under the names of 2014 or of 2017, for annotations of either year. Used by every set on COCO's images.

2014: ``train2014/COCO_train2014_000000000009.jpg`` and ``val2014/...``; 2017: ``train2017/000000000009.jpg`` and ``val2017/...``, the same
123,287 images, divided otherwise.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rb.data.prepare.common import RejectedError, require_raw, safe_path
from rb.data.prepare.image_sets import ImageFile

FOLDERS = ("train2014", "val2014", "train2017", "val2017")
_TEST = "test2015"  # the same in both years


def coco_name(folder: str, number: int) -> str:
    """The file of an image below ``folder``."""
    return f"{number:012d}.jpg" if folder.endswith("2017") else f"COCO_{folder}_{number:012d}.jpg"


@dataclass(frozen=True)
class CocoImageFile(ImageFile):
    """An image of COCO by its number: where ``parts`` is not there, it is looked for in ``folders``."""

    number: int = 0
    folders: tuple[str, ...] = ()

    def path(self) -> Path:
        """The image's file; that of ``parts`` where it is in no folder."""
        own = safe_path(self.root, *self.parts)
        with contextlib.suppress(OSError):  # a name that no file can have
            if own.exists():
                return own
        others = (self.root / folder / coco_name(folder, self.number) for folder in self.folders)
        return next((path for path in others if path.exists()), own)


@dataclass(frozen=True)
class CocoFolder:
    """The folder of COCO's images: ``root``, and which of ``FOLDERS`` are in it."""

    root: Path
    folders: tuple[str, ...]

    def image(self, source: str, parts: tuple[object, ...], number: int) -> CocoImageFile:
        """An image that the annotations say to be ``parts``, below the root."""
        return CocoImageFile(source, self.root, parts, None, number, self.folders)

    def check(self, places: Sequence[tuple[object, ...]], layout: str) -> None:
        """A whole folder that is not there, nor the folders of the other year, is a mistake of the call, not 100,000 rejected images."""
        wanted = Counter(str(PurePosixPath(*map(str, parts)).parent) for parts in places)
        for folder, count in wanted.items():
            other = "2017" if folder.endswith("2014") else "2014"
            elsewhere = folder in FOLDERS and any(name.endswith(other) for name in self.folders)
            if count * 100 < len(places) or elsewhere:
                continue
            with contextlib.suppress(RejectedError, OSError):  # an unsafe name: its images are rejected one by one
                require_raw(safe_path(self.root, folder), layout)


def find_coco_images(raw: Path, images: Path | None) -> CocoFolder:
    """``images``, else ``raw``, or ``raw/images`` where the folders of COCO are in there (LAVIS's layout)."""
    for root in [images] if images else [raw, raw / "images"]:
        folders = tuple(name for name in FOLDERS if (root / name).is_dir())
        if folders or (root / _TEST).is_dir():
            return CocoFolder(root, folders)
    return CocoFolder(images or raw, ())
