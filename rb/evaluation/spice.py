"""SPICE of captions: each different text is parsed once, in chunks of bounded size, and kept in a cache; then pairs are scored from it.

Parsing is nearly all of SPICE's time (docs/results.md). SPICE asks its cache once, when a chunk begins, and what it parses it adds when the chunk
has ended. So a text that comes twice in a chunk would be parsed twice, and a job that is killed loses the chunk that it was at, no more.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rb.core import progress
from rb.core.files import sha256
from rb.core.locks import FileLock
from rb.evaluation.java import Java, JavaMemoryError, JavaTimeoutError, JavaToolError
from rb.evaluation.spice_process import Pair, Spice, SpiceRow

LOG = logging.getLogger(__name__)
T = TypeVar("T")

# Words of a caption that SPICE reads. Its parser's time grows with the cube of a sentence: 60 words take it 1 s, 100 take 5 s, and 1,000 (a
# model that loops) held 8 GB for minutes. BLIP's caption processor keeps 50.
MAX_WORDS = 60

# GB of heap. Where the first is not enough, a second process with more goes on, which finds in the cache what the first has parsed.
HEAPS_GB = (2, 8)

PARSED_AT_ONCE = 500  # texts
SCORED_AT_ONCE = 1000  # pairs
MAX_KEY = 511  # bytes of a text in SPICE's cache (LMDB's limit); a longer one is parsed where it is scored

PARSED: Counter[str] = Counter()  # "texts": how many this process has had parsed


def default_cache() -> Path:
    """Where parsed captions are kept between scorings: ``$XDG_CACHE_HOME/regionblip/spice`` or ``~/.cache/regionblip/spice``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regionblip" / "spice"


def cut_for_spice(texts: Sequence[str]) -> tuple[list[str], int]:
    """Tokenised texts with at most ``MAX_WORDS`` words each, and how many lost some."""
    words = [text.split() for text in texts]
    return [" ".join(one[:MAX_WORDS]) for one in words], sum(len(one) > MAX_WORDS for one in words)


def spice_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    java: Java,
    jars: Sequence[Path],
    cache: Path | None = None,
) -> tuple[float, list[SpiceRow]]:
    """SPICE of the corpus (mean of the captions' f) and of each caption in detail; texts are tokenised ones.

    SPICE merges synonyms in hash order, so that about 1 caption of 1,000 may change between runs; a cache freezes the first parse. A ``cache``
    that another process uses is passed by: a folder for this call takes its place. Where none can be used, every text is parsed where it stands.

    Raises:
        JavaToolError: SPICE died or took too long.
    """
    pairs = list(zip(predictions, references, strict=True))
    heap_gb = HEAPS_GB[0]
    with _locked(cache, jars) as locked, tempfile.TemporaryDirectory(prefix="rb-spice-parses-") as own:
        folder: Path | None = locked or Path(own)
        while True:
            try:
                with Spice(java, jars, heap_gb, folder) as spice:
                    rows = _rows(spice, pairs, cached=folder is not None)
                return sum(row["All"]["f"] or 0.0 for row in rows) / len(rows), rows
            except JavaTimeoutError:
                raise  # without its cache it would take longer still
            except JavaMemoryError as error:
                if heap_gb == HEAPS_GB[1]:
                    raise
                heap_gb = HEAPS_GB[1]
                LOG.warning("%s; once more with %d GB", error, heap_gb)
            except JavaToolError as error:
                if folder is None:
                    raise
                # Its LMDB refuses some file systems, processors and full disks; the result does not depend on it.
                LOG.warning("SPICE without its cache %s: %s", folder, error)
                folder = None


def _rows(spice: Spice, pairs: Sequence[Pair], cached: bool) -> list[SpiceRow]:
    """Each different text once, so that all are in the cache, then the pairs."""
    try:
        if cached:
            texts = [text for text in dict.fromkeys(t for one, more in pairs for t in (one, *more)) if _fits(text)]
            with progress.bar(total=len(texts), desc="SPICE: parses", unit=" texts", delay=5) as bar:
                for chunk in _chunks(texts, PARSED_AT_ONCE):
                    # Two texts to a pair, as caption and reference: SPICE takes nothing else.
                    spice.rows([(two[0], two[1:]) for two in _chunks(chunk, 2)])
                    bar.update(len(chunk))
        rows: list[SpiceRow] = []
        with progress.bar(total=len(pairs), desc="SPICE: compares", unit=" captions", delay=5) as bar:
            for some in _chunks(pairs, SCORED_AT_ONCE):
                rows += spice.rows(some)
                bar.update(len(some))
        return rows
    finally:
        PARSED["texts"] += spice.parsed


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _fits(text: str) -> bool:
    """Whether SPICE's cache can have it: its serializer takes 4 bytes, and 1 or 3 for each 16 bits of a character."""
    return 4 + sum(1 if c < "\xff" else 3 if c < "\U00010000" else 6 for c in text) <= MAX_KEY


@contextmanager
def _locked(cache: Path | None, jars: Sequence[Path]) -> Iterator[Path | None]:
    """The cache's folder for these jars, ours alone while in the block (a shared LMDB freezes both), or None."""
    if cache is None:
        yield None
        return
    identity = sha256(repr([(jar.name, jar.stat().st_size) for jar in jars]))[:12]
    folder = cache / identity
    lock = FileLock(folder / "lock")
    try:
        ours = lock.acquire() and lock.certain
    except OSError:
        ours = False
    try:
        yield folder if ours else None
    finally:
        lock.release()
