"""Work on items by threads, handed back in order: for reading and decoding, during which NumPy, Pillow and libjpeg release Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def default_workers() -> int:
    """As many threads as cores, at most 8."""
    return min(8, os.cpu_count() or 1)


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, ahead: int
) -> Iterator[tuple[_Item, _Result]]:
    """(item, its result) in the order of ``items``, which are taken at most ``ahead`` at a time; an error of ``work`` comes in its turn.

    Raises:
        ValueError: ``workers`` is below 1.
    """
    if workers < 1:
        raise ValueError(f"workers {workers}: must be at least 1")
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[_Item, Future[_Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) >= ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:  # after an error nobody needs the rest
            for _, future in waiting:
                future.cancel()
