"""What the writers of toy raw data share: which item is spoiled how, and writing files. Used by rb/toy/raw/data_sets.py and rb/toy/raw/rooms.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path


def plan(sizes: Mapping[str, int], kinds: tuple[str, ...]) -> Iterator[tuple[str, int, str | None]]:
    """(split, index, how to spoil it or none) of every item: the good ones, and behind them one spoiled for every hundred.

    Train has at least one of each kind.
    """
    for split, count in sizes.items():
        spoiled = max(round(count / 100), len(kinds) if split == "train" else 0)
        for index in range(count + spoiled):
            yield split, index, None if index < count else kinds[(index - count) % len(kinds)]


def write_file(path: Path, data: bytes) -> None:
    """With its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """On one line."""
    write_file(path, json.dumps(value).encode())
