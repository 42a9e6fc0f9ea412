"""Ranks that nobody watches any more: who gets somewhere is left alone, also a rank that waits for the disk under its checkpoint."""

from __future__ import annotations

import time

import pytest

from rb.core.heartbeat import SAVING, TRAINING, Beat
from rb.launching.patience import WRITING_S, Patience


def test_no_progress_is_given_up_and_a_write_gets_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stuck, waits = Beat(5, 0.0, TRAINING, 7), Beat(9, 0.0, SAVING, 7, 3, "gather")
    patience = Patience(8.0)
    assert not patience.over([stuck, waits])
    now[0] = 8.5
    assert patience.over([stuck, waits])  # a collective in the saving is no write
    assert not patience.over([stuck, Beat(10, 8.5, SAVING, 7, 3, "gather")])  # progress
    writes = Beat(10, 8.5, SAVING, 7, 3)
    now[0] = 100.0
    assert not patience.over([writes, waits])
    now[0] = 101.0 + WRITING_S
    assert patience.over([writes, waits])
    assert not Patience(8.0).over([None])
