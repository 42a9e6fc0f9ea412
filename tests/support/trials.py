"""Results of drills: what was tried, whether it passed, its figures. One JSON file for each part, ``drill/PART.json``, which git ignores.

The file is written after every trial, whole or not at all, so that a drill that is killed goes on: a trial that passed at this very commit is
not repeated, one that failed is. Rows of another commit are dropped. At most 30 minutes of a part are run in one go. A trial that fails does not
end its part: a test that is a loop of trials fails at its end, with all that failed.
"""

from __future__ import annotations

import os
import subprocess
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from rb.core.files import write_json
from rb.core.strict_json import read

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "drill"
PAGES = ("docs/reliability.md", "docs/results.md")  # written from results: changed, they are the same commit still
LIMIT_S = 30 * 60
DIRTY = "-dirty"
Figures = dict[str, Any]  # name -> a number, or a text


@dataclass(frozen=True)
class Row:
    """One trial. ``passed`` is none where it was not run: the time was over, or it was skipped. Of a figure, more is worse."""

    name: str
    passed: bool | None
    seconds: float
    figures: Figures
    commit: str
    machine: str
    date: str


class Trials:
    """The trials of one part.

    Args:
        part: its name; its file is ``tests/drill/test_PART.py``.
        folder: of the results.
        commit: of the checkout.
        limit_s: after so many seconds no further trial begins.

    Attributes:
        rows: name -> the newest row.
        out_of_time: a trial did not begin for that reason.
        repeated: how many trials were not run because they had passed.
    """

    def __init__(self, part: str, folder: Path = RESULTS, commit: str = "", limit_s: float = LIMIT_S) -> None:
        self.part, self.commit = part, commit or commit_now()
        self.out_of_time, self.repeated = False, 0
        self._failed: list[str] = []
        self._file, self._end = folder / f"{part}.json", time.monotonic() + limit_s
        self.rows = {row.name: row for row in read_rows(self._file) if row.commit == self.commit}

    def passed(self, name: str) -> bool:
        """Whether it passed at this commit. At a commit with changes nothing counts: they may be others now."""
        return name in self.rows and self.rows[name].passed is True and not self.commit.endswith(DIRTY)

    def left(self, names: Iterable[str]) -> Iterator[str]:
        """Those still to be run, for a test that is a loop of trials; the time may end it early."""
        names = list(names)
        self.expect(names)
        for name in names:
            if self.passed(name):
                self.repeated += 1
            elif self._time_is_over():
                self._record(name, None, 0.0, {})
            else:
                yield name

    def expect(self, names: Iterable[str]) -> None:
        """Those that have no row yet count as not run from now on, however the part ends."""
        for name in names:
            if name not in self.rows:
                self._record(name, None, 0.0, {})

    def skip_reason(self, name: str) -> str:
        """Why a test that is one trial need not run; empty where it must."""
        if self.passed(name):
            self.repeated += 1
            return "passed at this commit"
        if self._time_is_over():
            self._record(name, None, 0.0, {})
            return self.how_to_go_on()
        return ""

    @contextmanager
    def trial(self, name: str) -> Iterator[Figures]:
        """One trial of a loop; an exception is printed and kept for ``all_of_them``, so that the loop goes on. Gives the dict of its figures."""
        try:
            with self.only_trial(name) as figures:
                yield figures
        except Exception as error:  # noqa: BLE001 - whatever a trial raises
            traceback.print_exc()
            self._failed.append(f"{name}: {type(error).__name__}: {error}")

    @contextmanager
    def all_of_them(self) -> Iterator[None]:
        """Around a test that is a loop of trials: it fails at its end if one of them did."""
        self._failed.clear()
        yield
        if self._failed:
            pytest.fail("\n\n".join([f"{len(self._failed)} trials failed:", *self._failed]), pytrace=False)

    @contextmanager
    def only_trial(self, name: str) -> Iterator[Figures]:
        """The only trial of a test: it passed if the block ends without an exception, which passes on. Gives the dict of its figures."""
        figures: Figures = {}
        passed: bool | None = False
        began = time.monotonic()
        try:
            yield figures
            passed = True
        except (KeyboardInterrupt, pytest.skip.Exception):
            passed = None
            raise
        finally:
            self._record(name, passed, time.monotonic() - began, figures)

    def how_to_go_on(self) -> str:
        """For the last line of a part that ran out of time."""
        return f"{LIMIT_S // 60} minutes are over; `make drill PART={self.part}` goes on"

    def summary(self) -> str:
        """``host_kills: 37 of 50 trials passed (12 of them earlier), 13 not run; 30 minutes are over ...``."""
        passed = sum(row.passed is True for row in self.rows.values())
        waiting = sum(row.passed is None for row in self.rows.values())
        earlier = f" ({self.repeated} of them earlier)" if self.repeated else ""
        line = f"{self.part}: {passed} of {len(self.rows)} trials passed{earlier}"
        line += f", {waiting} not run" if waiting else ""
        return f"{line}; {self.how_to_go_on()}" if self.out_of_time else line

    def _time_is_over(self) -> bool:
        self.out_of_time = self.out_of_time or time.monotonic() > self._end
        return self.out_of_time

    def _record(self, name: str, passed: bool | None, seconds: float, figures: Figures) -> None:
        self.rows[name] = Row(name, passed, round(seconds, 2), figures, self.commit, machine(), time.strftime("%F"))
        self._file.parent.mkdir(exist_ok=True)
        write_json(self._file, {"format": 1, "trials": [asdict(row) for row in self.rows.values()]})


def read_rows(file: Path) -> list[Row]:
    """The rows of a part's file; none where there is none."""
    return [Row(**row) for row in read(file)["trials"]] if file.exists() else []


@lru_cache
def commit_now() -> str:
    """The checkout's commit, with "-dirty" where tracked files, the pages of results aside, differ from it."""
    but_pages = [f":!{page}" for page in PAGES]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *but_pages)
    return _git("rev-parse", "--short=10", "HEAD") + (DIRTY if changed else "")


@lru_cache
def machine() -> str:
    """``2 cores, AMD EPYC 7763``."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return ", ".join([f"{os.cpu_count()} cores", *models[:1]])


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
