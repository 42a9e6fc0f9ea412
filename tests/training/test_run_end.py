"""What is made of the end of a run's ranks, and of the marker in which the run itself says how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from rb.core.exit_codes import ABORTED, FAILED, FINISHED, STOPPED, WRONG_REQUEST
from rb.core.run_layout import RUN_END
from rb.training.run_end import ATTEMPT_VARIABLE, clear_end, outcome, read_end, write_end


def test_the_exit_code_is_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(tmp_path, "a", FINISHED) == FAILED  # nobody wrote how it ended: it did not
    assert "did not finish (its ranks left without a word); the same command starts again" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert outcome(tmp_path, "a", 137) == 137
    assert f"where memory is short); go on with --resume {tmp_path}" in capsys.readouterr().err
    for code in (STOPPED, WRONG_REQUEST, ABORTED):  # the ranks have said why
        assert outcome(tmp_path, "a", code) == code
    assert outcome(tmp_path / "removed", "a", FINISHED) == FAILED
    capsys.readouterr()

    monkeypatch.setenv(ATTEMPT_VARIABLE, "a")
    write_end(tmp_path, FINISHED, 60, 60)
    assert outcome(tmp_path, "a", FINISHED) == FINISHED
    assert capsys.readouterr().err == ""
    assert outcome(tmp_path, "a", 1) == FINISHED  # a rank that fell while it left changes nothing
    for damaged in ('{"format": 1, "attempt": "a"}', "[]", "{", '{"format": 2}'):
        (tmp_path / RUN_END).write_text(damaged)
        assert read_end(tmp_path) is None
    clear_end(tmp_path)
    clear_end(tmp_path)
    assert read_end(tmp_path) is None

    write_end(tmp_path, STOPPED, 7, 60)
    assert outcome(tmp_path, "a", 137) == STOPPED  # the ranks saved, whatever ended their launcher then
    assert "the run itself ended with code 75 at step 7 of 60" in capsys.readouterr().err
    assert outcome(tmp_path, "b", 137) == 137  # the marker is of another start
    assert "the run did not finish (its launcher or a rank was ended by signal 9" in capsys.readouterr().err
