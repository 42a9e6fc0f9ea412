"""What a converter knows of its raw files: `RawSet`, and for one split the `Plan` by which `convert.py` makes shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from rb.data.prepare.common import Conversion, RejectedError

_Item = TypeVar("_Item")


class Items(Sequence[_Item]):
    """Items that are made whenever they are asked for: what a sequence needs beside ``__len__`` and ``item``."""

    def item(self, number: int) -> _Item:
        """Item ``number``, from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, number: int) -> _Item: ...
    @overload
    def __getitem__(self, number: slice) -> list[_Item]: ...
    def __getitem__(self, number: int | slice) -> _Item | list[_Item]:
        if isinstance(number, slice):
            return [self.item(k) for k in range(*number.indices(len(self)))]
        return self.item(number)


@dataclass(frozen=True)
class Plan:
    """One split, its annotations read.

    The items must be the same in the same order whenever the same raw files are converted: a killed conversion goes on by their number.

    Attributes:
        name: of the set, and the first part of its shards' names.
        unit: what ``Tally`` counts, in the plural.
        collect: rejects what the annotations alone rule out, and returns the items: the images, clouds or scenes to read.
        read: the content of one item; called by threads, several items ahead. ``RejectedError`` where it cannot be used.
        write: counts an item, rejects what cannot be used of it, and writes at most one record; gets the error in place of the content
            where ``read`` raised it.
        finish: called when all items are done; may raise a ``ValueError``, then nothing is kept.
        notes: what was counted while the annotations were read.
        exif: as of `rb.data.shard_writer.ShardWriter`.
    """

    name: str
    modality: str
    split: str
    unit: str
    collect: Callable[[Conversion], Sequence[Any]]
    read: Callable[[Any], Any]
    write: Callable[[Conversion, Any, Any | RejectedError], None]
    finish: Callable[[Conversion], None] = lambda _: None
    notes: Counter[str] = field(default_factory=Counter)
    exif: str | None = None


@dataclass(frozen=True)
class RawSet:
    """A raw data set that was opened.

    Attributes:
        splits: the published splits that its files hold, in their usual order.
        files: every annotation file that was read: if one changes, a killed conversion begins again.
        plan: of a split by name; ``ValueError`` names those that are there.
        title: of what was found, in a line for people; empty where there is nothing to say.
    """

    splits: tuple[str, ...]
    files: list[Path]
    plan: Callable[[str], Plan]
    title: str = ""
