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
from pathlib import Path
from typing import IO

from pycocoevalcap.meteor.meteor import METEOR_JAR
from tqdm import tqdm

from rb.core.text import one_line
from rb.evaluation.java import Java, JavaToolError, coco_jars, java_command, read_back, started


def meteor_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], java: Java
) -> tuple[float, list[float]]:
    """METEOR of the corpus and of each caption, fractions; texts are tokenised ones.

    Loading its paraphrase table takes 7 to 18 s and 1.2 GB; then about 1,000 captions a second.

    Raises:
        JavaToolError: the jar died, took too long or answered something that is no number.
    """
    timeout_s = 180 + 0.1 * len(predictions)
    with tempfile.TemporaryDirectory(prefix="rb-meteor-") as temp, tempfile.TemporaryFile() as err:
        jar = coco_jars() / "meteor" / METEOR_JAR
        command = java_command(java, 2, (), Path(temp), ["-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"])
        with started(command, "METEOR", subprocess.PIPE, subprocess.PIPE, err) as process:
            timer = threading.Timer(timeout_s, process.kill)
            timer.start()
            try:
                return _converse(process, predictions, references)
            except (ValueError, OSError, EOFError) as error:
                late = f"; it was given {timeout_s:.0f} s" if not timer.is_alive() else ""
                raise JavaToolError(
                    f"METEOR failed ({error}{late}); its stderr ends: {read_back(err)[-300:].strip()}"
                ) from error
            finally:
                timer.cancel()


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
    counts = [_read(process.stdout) for _ in tqdm(predictions, desc="METEOR", unit=" captions", delay=5)]
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
