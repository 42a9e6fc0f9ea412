"""How long ranks that nobody watches any more are left alone: as long as they get somewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rb.core.heartbeat import END, SAVING, Beat

WRITING_S = 300.0  # a rank that writes a checkpoint does not beat while it waits for the disk


class Patience:
    """A look at ranks from time to time.

    Args:
        usual_s: without progress for so long they are given up.
    """

    def __init__(self, usual_s: float) -> None:
        self._usual_s = usual_s
        self._counts: list[int] = []
        self._since = time.monotonic()

    def over(self, beats: Sequence[Beat | None]) -> bool:
        """Whether none of them has made progress for too long; ``beats`` are the newest of the ranks that still run."""
        now, counts = time.monotonic(), [beat.count if beat else 0 for beat in beats]
        if counts != self._counts:
            self._counts, self._since = counts, now
        writes = any(beat and beat.phase in (SAVING, END) and not beat.waits_in for beat in beats)
        return now - self._since > (max(WRITING_S, self._usual_s) if writes else self._usual_s)
