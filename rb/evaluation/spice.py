"""SPICE 1.0 as a separate process, on Java 8 to 25.

The wheel of ``pycocoevalcap`` brings SPICE's jar (AGPL-3) and most of its libraries; Stanford CoreNLP 3.6.0 and its models (GPL-3) are the
user's to fetch (``spice_jars.py``). None of them is part of this project. What is ours: ``spice_engine/``, the replacement
for the JavaScript engine that Java 15 removed and that SPICE prints through. Rebuild it (any JDK), in that folder, with

    javac --release 8 -d out JsonPassthrough.java && mkdir -p out/META-INF/services
    echo JsonPassthrough > out/META-INF/services/javax.script.ScriptEngineFactory && jar -c -f json-engine.jar -C out .
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rb.core.files import naming, sha256
from rb.core.locks import FileLock
from rb.core.strict_json import read
from rb.evaluation.java import (
    LEAVE_WHEN_FULL,
    Java,
    JavaMemoryError,
    JavaTimeoutError,
    JavaToolError,
    coco_jars,
    java_command,
    run_tool,
)

LOG = logging.getLogger(__name__)

ENGINE = Path(__file__).parent / "spice_engine" / "json-engine.jar"
OPENED = (
    "lang",
    "math",
    "util",
    "util.concurrent",
    "net",
    "text",
)  # what fst-2.47 reaches into; all six, with a cache or without

# Words of a caption that SPICE reads. Its parser's time grows with the cube of a sentence: 60 words take it 1 s, 100 take 5 s, and 1,000 (a
# model that loops) held 8 GB for minutes. BLIP's caption processor keeps 50.
MAX_WORDS = 60

# GB of heap. Where the first is not enough, one more start with the second follows, which finds the parses of the first in its cache.
HEAPS_GB = (3, 8)

# {"All": {"pr": .., "re": .., "f": ..}, "Object": {..}, ...}; None where a category has no tuple.
SpiceRow = dict[str, dict[str, float | None]]


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

    Cold 36 captions a second on 2 cores (predictions and references counted) after 8 s; with all captions in ``cache`` 2 s in all.
    SPICE merges synonyms in hash order, so that about 1 caption of 1,000 may change between runs; a cache freezes the first parse.
    A ``cache`` that another process uses, or that cannot be used, is passed by.

    Raises:
        JavaToolError: SPICE died or took too long.
    """
    with _locked(cache, jars) as folder:
        kept = [] if folder is None else ["-cache", str(folder)]
        try:
            return _run(predictions, references, java, jars, HEAPS_GB[0], kept)
        except JavaTimeoutError:
            raise  # without its cache it would take longer still
        except JavaMemoryError as error:
            LOG.warning("%s; once more with %d GB", error, HEAPS_GB[1])
            return _run(predictions, references, java, jars, HEAPS_GB[1], kept)
        except JavaToolError as error:
            if folder is None:
                raise
            # Its LMDB refuses some file systems and full disks; the result does not depend on it.
            LOG.warning("SPICE without its cache %s: %s", folder, error)
    return _run(predictions, references, java, jars, HEAPS_GB[0], [])


def _run(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    java: Java,
    jars: Sequence[Path],
    heap_gb: int,
    extra: list[str],
) -> tuple[float, list[SpiceRow]]:
    rows = [
        {"image_id": str(i), "test": text, "refs": list(refs)}
        for i, (text, refs) in enumerate(zip(predictions, references, strict=True))
    ]
    num_texts = len(predictions) + sum(len(refs) for refs in references)
    home = coco_jars() / "spice"
    options = ["-XX:+UseParallelGC", LEAVE_WHEN_FULL]
    if java.major >= 9:
        options += [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENED]
    if java.major >= 22:
        options += ["--enable-native-access=ALL-UNNAMED"]
    classpath = ":".join(str(path) for path in (home / "spice-1.0.jar", ENGINE, home / "lib" / "*", *jars))
    with tempfile.TemporaryDirectory(prefix="rb-spice-") as temp:
        source, target = Path(temp) / "in.json", Path(temp) / "out.json"
        with naming(source, source):
            source.write_text(json.dumps(rows), encoding="ascii")
        call = [
            "-cp",
            classpath,
            "edu.anu.spice.SpiceScorer",
            str(source),
            "-out",
            str(target),
            "-subset",
            "-silent",
            *extra,
        ]
        command = java_command(java, heap_gb, options, Path(temp), call)
        run_tool(command, "SPICE", timeout_s=600 + num_texts, show=f"SPICE of {num_texts:,} texts")
        try:
            found = {item["image_id"]: item["scores"] for item in read(target)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JavaToolError(f"SPICE wrote no readable result ({error})") from error
    if set(found) != {row["image_id"] for row in rows}:
        raise JavaToolError(f"SPICE answered {len(found)} of {len(rows)} captions")
    detailed: list[SpiceRow] = [
        {category: {k: found[str(i)][category][k] for k in ("pr", "re", "f")} for category in found[str(i)]}
        for i in range(len(rows))
    ]
    return sum(row["All"]["f"] or 0.0 for row in detailed) / len(detailed), detailed


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
