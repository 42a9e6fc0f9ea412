"""The readers of `hostile.py` under atheris: libFuzzer looks for files that reach new lines of our code, from the sound files on.

Run as a process (``python -m tests.support.fuzzing SECONDS SEED``); prints one JSON line for each kind. Every kind is fuzzed in a child, since
libFuzzer ends the process it runs in; a child's peak of memory is its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["rb"]):
    from tests.support import hostile

import torch

LONGEST_FILE, MOST_MB, MOST_S = 1 << 17, 256, 5


def fuzz(kind: str, folder: Path, seconds: int, seed: int) -> None:
    """Never returns: ends the process, with 0 where every file was taken or refused with a line."""
    file, reader, sound = hostile.readers(folder)[kind]
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, data in enumerate(sound):
        (corpus / str(i)).write_bytes(data)
        hostile.taken(kind, file, reader, folder, data)  # what the libraries load at their first use is no growth
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    options = {
        "max_total_time": seconds,
        "max_len": LONGEST_FILE,
        "timeout": MOST_S,
        "rss_limit_mb": resident + MOST_MB,
        "seed": seed,
        "print_final_stats": 1,
        "artifact_prefix": f"{tempfile.gettempdir()}/rb-fuzz-{kind.replace(' ', '-')}-",
    }
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
    atheris.Setup(arguments, lambda data: hostile.taken(kind, file, reader, folder, data))
    atheris.Fuzz()


def run(seconds: int, seed: int) -> list[dict[str, Any]]:
    """Every kind for an equal share of ``seconds``; a row each: files, coverage, growth of memory.

    Raises:
        AssertionError: a reader failed; the message has the end of the child's report, which names the file that is kept.
    """
    with tempfile.TemporaryDirectory() as name:
        kinds = list(hostile.readers(Path(name)))
    rows = []
    for number, kind in enumerate(kinds):
        # No TemporaryDirectory: a child that ends removes it, with its report.
        place = Path(tempfile.mkdtemp())
        log, folder = place / "log", place / "work"
        folder.mkdir()
        out = os.open(log, os.O_WRONLY | os.O_CREAT, 0o644)
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(out, stream)
            fuzz(kind, folder, max(seconds // len(kinds), 1), seed + number)
        os.close(out)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = log.read_text(errors="replace")
        shutil.rmtree(place)
        assert code == 0, f"{kind}: {said[-3000:]}"
        found = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", said)}
        reached = [int(value) for value in re.findall(r"cov: (\d+)", said)]
        row = {"kind": kind, "files": found["number_of_executed_units"], "new": found["new_units_added"]}
        rows.append(row | {"coverage": [reached[0], reached[-1]], "peak_mb": found["peak_rss_mb"]})
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))) + "\n")
