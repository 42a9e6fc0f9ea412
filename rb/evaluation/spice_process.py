"""One process of SPICE 1.0, on Java 8 to 25, that scores chunk after chunk. What is put into a chunk, and why, is ``spice.py``'s.

The wheel of ``pycocoevalcap`` brings SPICE's jar (AGPL-3) and most of its libraries; Stanford CoreNLP 3.6.0 and its models (GPL-3) are the
user's to fetch (``spice_jars.py``). None of them is part of this project. What is ours, ``spice_engine/``: the replacement for the JavaScript
engine that Java 15 removed and that SPICE prints through, and a program that runs SPICE's once for each chunk. Rebuild it (any JDK), there, with

    javac --release 8 -d out *.java && mkdir -p out/META-INF/services
    echo JsonPassthrough > out/META-INF/services/javax.script.ScriptEngineFactory && jar -c -f json-engine.jar -C out .
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from rb.core.files import naming
from rb.core.strict_json import read
from rb.evaluation.java import (
    LEAVE_WHEN_FULL,
    STATUS_FULL,
    Java,
    JavaMemoryError,
    JavaTimeoutError,
    JavaToolError,
    coco_jars,
    java_command,
    last_words,
    read_back,
    started,
)

ENGINE = Path(__file__).parent / "spice_engine" / "json-engine.jar"
OPENED = ("lang", "math", "util", "util.concurrent", "net", "text")  # what fst-2.47 reaches into; all six are needed

# Parsing threads; each holds 0.3 GB for a caption of 60 words.
MAX_THREADS = 4
TIMEOUT_S = 600.0  # of a chunk, and one for each text

# SPICE writes this to stderr when a chunk has the first caption that its cache lacks.
_PARSES = b"Initiating Stanford parsing pipeline"

# {"All": {"pr": .., "re": .., "f": ..}, "Object": {..}, ...}; None where a category has no tuple.
SpiceRow = dict[str, dict[str, float | None]]
# A caption and its references.
Pair = tuple[str, Sequence[str]]


class Spice:
    """SPICE in a ``with`` block; it starts at the first chunk and is gone when the block is left.

    Attributes:
        parsed: texts in the chunks in which SPICE had to parse any; a text is in it as often as it may have been parsed.
    """

    def __init__(self, java: Java, jars: Sequence[Path], heap_gb: int, cache: Path | None) -> None:
        self.parsed = 0
        self._java, self._jars, self._heap_gb, self._cache = java, jars, heap_gb, cache
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._temp = Path()
        self._err: IO[bytes] | None = None

    def __enter__(self) -> Spice:
        return self

    def __exit__(self, *_: object) -> None:
        self._process = None
        self._stack.close()

    def rows(self, pairs: Sequence[Pair]) -> list[SpiceRow]:
        """The scores of a chunk's captions, in their order.

        Raises:
            JavaToolError: SPICE died, (``JavaMemoryError``) filled its heap, (``JavaTimeoutError``) took too long, or answered something else.
        """
        num_texts = sum(1 + len(references) for _, references in pairs)
        if self._process is None:
            self._process = self._start()
        assert self._err is not None
        said = os.fstat(self._err.fileno()).st_size
        source, target = self._temp / "in.json", self._temp / "out.json"
        asked = [
            {"image_id": str(i), "test": text, "refs": list(references)} for i, (text, references) in enumerate(pairs)
        ]
        with naming(source, source):
            source.write_text(json.dumps(asked), encoding="ascii")
        kept = [] if self._cache is None else ["-cache", str(self._cache)]
        threads = min(MAX_THREADS, os.cpu_count() or 1)
        self._run(
            [str(source), "-out", str(target), "-subset", "-silent", "-threads", str(threads), *kept],
            TIMEOUT_S + num_texts,
        )
        # Not read: that would move the position at which the process writes.
        if _PARSES in os.pread(self._err.fileno(), 1 << 20, said):
            self.parsed += num_texts
        try:
            found = {item["image_id"]: item["scores"] for item in read(target)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JavaToolError(f"SPICE wrote no readable result ({error})") from error
        if set(found) != {row["image_id"] for row in asked}:
            raise JavaToolError(f"SPICE answered {len(found)} of {len(asked)} captions")
        return [
            {category: {k: found[str(i)][category][k] for k in ("pr", "re", "f")} for category in found[str(i)]}
            for i in range(len(asked))
        ]

    def _start(self) -> subprocess.Popen[bytes]:
        self._temp = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rb-spice-")))
        self._err = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        options = ["-XX:+UseSerialGC", LEAVE_WHEN_FULL]
        if self._java.major >= 9:
            options += [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENED]
        if self._java.major >= 22:
            options += ["--enable-native-access=ALL-UNNAMED"]
        home = coco_jars() / "spice"
        classpath = ":".join(str(path) for path in (home / "spice-1.0.jar", ENGINE, home / "lib" / "*", *self._jars))
        call = ["-cp", classpath, "Again", "edu.anu.spice.SpiceScorer"]
        command = java_command(self._java, self._heap_gb, options, self._temp, call)
        return self._stack.enter_context(started(command, "SPICE", subprocess.PIPE, subprocess.PIPE, self._err))

    def _run(self, arguments: Sequence[str], timeout_s: float) -> None:
        """One run of the program; arguments have no tab and no line break."""
        process, err = self._process, self._err
        assert process is not None
        assert err is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            process.stdin.write("\t".join(arguments).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if answer == b"done\n":
                return
            answer += process.stdout.read()
        except OSError:  # it is gone
            answer = b""
        finally:
            timer.cancel()
        process.wait(60)
        text = last_words(answer.decode(errors="replace") + read_back(err))  # that its heap is full stands in stdout
        if late.is_set():
            raise JavaTimeoutError(f"SPICE did not finish in {timeout_s:.0f} s; its stderr ends: {text}")
        if process.returncode == STATUS_FULL:
            raise JavaMemoryError(f"SPICE filled its heap: {text}")
        raise JavaToolError(f"SPICE ended with status {process.returncode}: {text}")
