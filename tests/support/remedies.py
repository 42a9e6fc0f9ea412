"""Tests of what the program advises: the fault is real, its message is found in the source, the advice is followed, and the same call works.

A new message that tells the user to do something needs a test, anywhere in tests/:

    @remedy("exists already; say --overwrite")          # a piece of the message as it stands in the source, {} for what is filled in
    def test_manifest_there(tmp_path):
        write_set(tmp_path, IMAGE, 4)
        again = {"overwrite": False}
        return lambda: adopt(tmp_path, IMAGE, **again), lambda said: again.update(overwrite=True)

It returns (what fails, what follows the advice); ``said`` is what was printed, ``said.commands`` what stands in it in backquotes. ``also``
names messages of the same mechanism, which this test stands for. Many rows of one kind: ``covers`` and ``helps``. `tests/test_remedies.py` holds
that no message is forgotten, and lists those that cannot be run here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.printed import Message, remedies
from tests.support.raw_data import cli_run

COVERED: dict[str, str] = {}  # piece of a message -> the test file that runs it or stands for it
Fault = Callable[[], object]


class Said(str):
    """What the program printed."""

    @property
    def commands(self) -> list[str]:
        return re.findall("`([^`]*)`", self)

    def found(self, pattern: str) -> str:
        """The first group of ``pattern`` in it: an option, a value or a path that the advice names."""
        match = re.search(pattern, self, re.DOTALL)
        assert match is not None, f"{pattern} is not in: {self}"
        return match[1]

    def ran(self) -> None:
        """Run every command in it."""
        assert self.commands, self
        for command in self.commands:
            ran(command)


def ran(command: str) -> None:
    """A printed command: ours in this process, others as they are."""
    words = shlex.split(command)
    if words[0] == "rb":
        assert cli_run(*words[1:]) == 0, command
    else:
        subprocess.run([{"python": sys.executable}.get(words[0], words[0]), *words[1:]], check=True)


def typed(*words: object) -> str:
    """What ``rb WORDS`` says on both streams."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        cli_run(*map(str, words))
    return err.getvalue() + out.getvalue()


def covers(says: Iterable[str], also: Iterable[str] = ()) -> list[str]:
    """Say that the calling file's tests run the messages ``says``, and that they stand for ``also``; gives ``says``."""
    file = Path(sys._getframe(1).f_globals["__file__"]).as_posix()
    COVERED.update(dict.fromkeys([*says, *also], file))
    return list(says)


def the_message(piece: str) -> Message:
    """The one remedy of the source that is ``piece``, or else holds it; the same text may stand at several places."""
    found = {message.text: message for message in remedies() if piece in message.text}
    assert piece in found or len(found) == 1, f"{piece!r} is in {len(found)} messages: {sorted(found)}"
    return found.get(piece) or next(iter(found.values()))


def helps(piece: str, fault: Fault, follow: Callable[[Said], object]) -> None:
    """``fault`` prints the message that holds ``piece``; after ``follow`` it neither fails nor prints it."""
    pattern = the_message(piece).pattern()
    first, failed = _outcome(fault)
    assert pattern.search(first), f"expected {piece!r}, got {'' if failed else 'no error, '}{first!r}"
    follow(Said(first))
    again, failed = _outcome(fault)
    assert not failed, f"the remedy does not help: {first}\n-> {again}"
    assert not pattern.search(again), f"the remedy does not help: {again}"


def remedy(piece: str, also: Iterable[str] = ()) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """Makes a test of a function that returns (fault, follow); see above."""

    def make(case: Callable[..., object]) -> Callable[..., None]:
        COVERED.update(dict.fromkeys([piece, *also], case.__code__.co_filename))

        @functools.wraps(case)
        def test(*args: object, **fixtures: object) -> None:
            helps(piece, *case(*args, **fixtures))  # type: ignore[misc]

        return test

    return make


def _outcome(fault: Fault) -> tuple[str, bool]:
    """(what was printed, logged or raised, whether it failed). A text that ``fault`` returns counts as printed."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    loggers = [logging.getLogger(name) for name in ("", "rb")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            result = fault()
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001 (of any room; a wrong one does not fit the message)
        return f"{heard.getvalue()}{error}", True
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    text = heard.getvalue() + (result if isinstance(result, str) else "")
    return text, bool(re.search(r"(?m)^[\w ]*: error: ", text))
