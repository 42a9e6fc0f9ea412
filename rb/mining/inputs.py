"""The input of mining: shards of images, of our own sets (a manifest) or tars as img2dataset packs them, and the images in one shard.

Boxes of mined regions mean the upright image, as a viewer shows it. The text that came with an image is its first caption (ours), or ``KEY.txt``,
or the field ``caption`` of ``KEY.json``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from rb.core.fingerprints import cached_sha256
from rb.core.modality import IMAGE_REGION, MODALITIES
from rb.core.strict_json import FormatError, parse_foreign
from rb.data.formats import MANIFEST_FILE, parse_record, read_manifest
from rb.data.prepare.common import RejectedError
from rb.data.prepare.custom_tars import Run, runs_in
from rb.sources.pixels import decode_upright

_END_MARK = 1024  # zeros at the end of every whole tar, in bytes
EXTENSIONS = ("jpg", "jpeg", "png", "webp")
NO_IMAGE, DAMAGED_IMAGE, DAMAGED_RECORD, SAME_KEY, CUT = (
    "no image",
    "damaged image",
    "damaged record",
    "same key twice",
    "shard is cut",
)  # reasons of rejections


@dataclass(frozen=True)
class InputImage:
    """One image of an input shard, as it is stored.

    Attributes:
        key: unique among the inputs: the source id of our records; FOLDER/KEY of a tar of others.
        text: what came with the image; none where nothing did.
    """

    key: str
    data: bytes
    extension: str
    text: str | None

    def decode(self) -> Image.Image:
        """The upright image in RGB. ``ImageError``: it cannot be read."""
        return decode_upright(self.data, self.key)[0]


@dataclass(frozen=True)
class Unreadable:
    """A part of an input shard that gives no image: its key, and one of the reasons above."""

    key: str
    reason: str


@dataclass(frozen=True)
class InputShard:
    """One tar of images.

    Attributes:
        number: its place in the sorted list of inputs; the name of its stage files.
        prefix: put before the keys of a tar of others; none for a shard of ours.
    """

    number: int
    path: Path
    prefix: str | None

    @cached_property
    def digest(self) -> str:
        """sha256 of the file, and what its keys begin with."""
        return f"{cached_sha256(self.path)} {self.prefix or ''}"

    def images(self) -> Iterator[InputImage | Unreadable]:
        """Every image of the shard in order, and what gives none. A shard that is cut ends with ``CUT``."""
        seen: set[str] = set()
        try:
            with self.path.open("rb") as file:
                for run in runs_in(file, self.path, Counter()):
                    image = self._image(run, file)
                    if image.key in seen:
                        image = Unreadable(image.key, SAME_KEY)
                    seen.add(image.key)
                    yield image
                file.seek(-min(_END_MARK, self.path.stat().st_size), os.SEEK_END)
                if file.read().strip(b"\0"):  # cut inside a header, where Python's reader ends without a word
                    raise FormatError(f"{self.path}: has no end mark")
        except FormatError:
            yield Unreadable(self.path.name, CUT)

    def _image(self, run: Run, file: BinaryIO) -> InputImage | Unreadable:
        key = run.key if self.prefix is None else f"{self.prefix}/{run.key}"
        try:
            members = run.read(file)
            if self.prefix is None:
                record = parse_record(members.get("json", b""), key)
                key, text = record.source_id, next(iter(record.captions), None)
            else:
                text = _text(members, key)
        except (FormatError, RejectedError):
            return Unreadable(key, DAMAGED_RECORD)
        extension = next((extension for extension in EXTENSIONS if extension in members), None)
        if extension is None:
            return Unreadable(key, NO_IMAGE)
        return InputImage(key, members[extension], extension, text)


def _text(members: dict[str, bytes], where: str) -> str | None:
    """The text beside an image; none where there is none. ``FormatError``: it cannot be read."""
    found: object
    if "txt" in members:
        found = members["txt"].decode("utf-8-sig", "replace")
    else:
        fields = parse_foreign(members["json"].decode("utf-8-sig", "replace"), where) if "json" in members else {}
        found = fields.get("caption") if isinstance(fields, dict) else None
    # Half a character, which no file of ours could hold, becomes a question mark.
    return found.encode("utf-8", "replace").decode().strip() or None if isinstance(found, str) else None


def find_inputs(places: Sequence[str]) -> list[InputShard]:
    """The input shards that files, folders and patterns name, sorted by path: manifests, folders with one, tars, folders of tars.

    Raises:
        ValueError: no place, one without shards, or of clouds.
    """
    if not places:
        raise ValueError("no images are named: give --input, or input in the configuration")
    found: dict[Path, str | None] = {}
    for place in places:
        for path in _paths(place):
            if path.name.endswith(".json"):
                manifest = read_manifest(path)
                if MODALITIES[manifest.modality].source != MODALITIES[IMAGE_REGION].source:
                    raise ValueError(f"input {place}: is a set of {manifest.modality}; regions are mined from images")
                found.update((path.parent / entry.file, None) for entry in manifest.shards)
            else:
                found.setdefault(path, path.absolute().parent.name)
    return [InputShard(number, path, found[path]) for number, path in enumerate(sorted(found))]


def _paths(place: str) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        manifest = path / MANIFEST_FILE
        paths = [manifest] if manifest.is_file() else sorted(path.glob("*.tar"))
    elif path.is_file():
        paths = [path]
    else:
        start = path.anchor
        paths = sorted(Path(start or ".").glob(str(path.relative_to(start))))
    if not paths:
        raise ValueError(
            f"input {place}: no shards there; give a manifest, a tar, a folder of either, or a pattern such as 'DIR/*.tar'"
        )
    return paths
