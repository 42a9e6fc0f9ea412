"""Whether a job that broke off is started again, and when. Pure: no clock, no processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from rb.core.exit_codes import ABORTED, FINISHED, STOPPED, WRONG_REQUEST

FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0
FINAL = (FINISHED, WRONG_REQUEST, ABORTED)  # another attempt would end the same way


@dataclass
class RestartPolicy:
    """The rule for one job.

    Args:
        limit: restarts at most.
    """

    limit: int
    done: int = 0
    """Restarts so far."""
    why_not: str = ""
    """Why there is no other restart; empty where that needs no word."""
    _last_step: int | None = field(default=None, repr=False)

    def wait_after(self, code: int, asked: bool, step: int) -> float | None:
        """Seconds until the next attempt; none where the job ends with this one.

        Args:
            code: exit code of the attempt.
            asked: its user wanted it to end.
            step: steps made; -1 where none was begun.
        """
        self.why_not = ""
        if self.limit == 0 or code in FINAL or (code == STOPPED and asked) or asked:
            return None
        if step == self._last_step:
            where = "before the first step" if step < 0 else f"after step {step}"
            self.why_not = f"the job broke off twice {where}; another restart would not help"
            return None
        if self.done >= self.limit:
            self.why_not = f"it was restarted {self.done} times (--restart {self.limit})"
            return None
        self._last_step = step
        wait = min(FIRST_WAIT_S * 2**self.done, LONGEST_WAIT_S)
        self.done += 1
        return wait


def usable_nodes(ranks: list[int], divides: list[bool], at_least: int) -> int:
    """How many of the reachable nodes a job goes on with: the most whose ranks the batch sizes divide over; 0 where too few are left.

    Args:
        ranks: of every reachable node, in order; only their number counts here.
        divides: whether a job on the first n + 1 of them can divide its batches.
        at_least: nodes.
    """
    fitting = [count for count in range(1, len(ranks) + 1) if divides[count - 1] and count >= at_least]
    return max(fitting, default=0)
