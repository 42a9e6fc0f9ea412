"""How long ranks that nobody watches any more are left alone: as long as they get somewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rb.core.heartbeat import END, SAVING, Beat

ALONE_S = 8.0  # for ranks whose controller is lost, or whose agent was given up
WRITING_S = 300.0  # a rank that writes a checkpoint makes no progress while it waits for the disk under a large file


class Patience:
    """A look at ranks from time to time.

    Args:
        usual_s: without progress for so long they are given up.
    """

    def __init__(self, usual_s: float) -> None:
        self._usual_s = usual_s
        self._seen: list[tuple[int, float]] = []
        self._since = time.monotonic()

    def over(self, beats: Sequence[Beat | None]) -> bool:
        """Whether none of them has made progress for too long; ``beats`` are the newest of the ranks that still run."""
        now, seen = time.monotonic(), [(beat.count, beat.written) if beat else (0, 0.0) for beat in beats]
        if seen != self._seen:
            self._seen, self._since = seen, now
        writes = any(beat and (beat.written or (beat.phase in (SAVING, END) and not beat.waits_in)) for beat in beats)
        return now - self._since > (max(WRITING_S, self._usual_s) if writes else self._usual_s)
