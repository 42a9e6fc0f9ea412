"""METEOR 1.5 through the jar that ``pycocoevalcap`` ships, spoken to over its stdin.

``pycocoevalcap``'s own wrapper hangs on a line break in a caption, in a locale with decimal commas, and when the JVM dies; this one
cannot: texts are on one line, the locale is set, one thread writes while another reads, and a timer ends the process.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from pycocoevalcap.meteor.meteor import METEOR_JAR

from rb.core import progress
from rb.core.text import one_line
from rb.evaluation.java import Java, JavaToolError, coco_jars, java_command, read_back, started


class Meteor:
    """One METEOR process for any number of sets: it starts at the first one and is gone when the ``with`` block is left.

    Loading its paraphrase table takes 5 to 18 s and 1.2 GB; then about 1,000 captions a second.
    """

    def __init__(self, timeout_s: float = 180.0) -> None:
        self._timeout_s = timeout_s
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._err: IO[bytes] | None = None

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def scores(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], java: Java
    ) -> tuple[float, list[float]]:
        """METEOR of the corpus and of each caption, fractions; texts are tokenised ones.

        Raises:
            JavaToolError: the jar died, took too long or answered something that is no number. The next call starts a new process.
        """
        process = self._process or self._start(java)
        timeout_s = self._timeout_s + 0.1 * len(predictions)
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            return _converse(process, predictions, references)
        except (ValueError, OSError, EOFError) as error:
            late = f" after its {timeout_s:.0f} s were over" if not timer.is_alive() else ""
            said = read_back(self._err).strip()[-300:] if self._err else ""
            self._close()
            raise JavaToolError(f"METEOR failed{late}: {error}; its stderr ends: {said or '(nothing)'}") from error
        except BaseException:
            self._close()  # interrupted in mid-sentence: nothing it says later would fit
            raise
        finally:
            timer.cancel()

    def _start(self, java: Java) -> subprocess.Popen[bytes]:
        temp = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rb-meteor-"))
        self._err = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
        call = ["-jar", str(coco_jars() / "meteor" / METEOR_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
        command = java_command(java, 2, (), Path(temp), call)
        self._process = self._stack.enter_context(
            started(command, "METEOR", subprocess.PIPE, subprocess.PIPE, self._err)
        )
        return self._process

    def _close(self) -> None:
        self._process = None
        self._stack.close()


def _converse(
    process: subprocess.Popen[bytes], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    assert process.stdin is not None
    assert process.stdout is not None
    requests = (
        "SCORE ||| " + " ||| ".join(_field(t) for t in (*refs, text))
        for text, refs in zip(predictions, references, strict=True)
    )
    writer = threading.Thread(target=_write, args=(process.stdin, requests), daemon=True)
    writer.start()
    counts = [_read(process.stdout) for _ in progress.bar(predictions, desc="METEOR", unit=" captions", delay=5)]
    writer.join()
    # Second round: the counts of all captions give the score of each and, pooled, that of the corpus.
    process.stdin.write(f"EVAL ||| {' ||| '.join(counts)}\n".encode())
    process.stdin.flush()
    scores = [float(_read(process.stdout)) for _ in predictions]
    return float(_read(process.stdout)), scores


def _write(pipe: IO[bytes], lines: Iterator[str]) -> None:
    try:
        for line in lines:
            pipe.write(line.encode() + b"\n")
        pipe.flush()
    except (OSError, ValueError):
        return  # the process is gone: the reader sees the end of its output and reports it


def _read(pipe: IO[bytes]) -> str:
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError("it ended before it had answered")
    return line.decode().strip()


def _field(text: str) -> str:
    """One field of the protocol: one line, without the separator ``|||``."""
    return one_line(re.sub(r"\|{2,}", " ", text))
