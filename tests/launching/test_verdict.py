"""The verdict on a job, rule by rule, from states made by hand: two nodes with two ranks each unless said otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rb.core.config import LimitsConfig
from rb.core.exit_codes import CANNOT_WRITE, FINISHED, HUNG, NODE_LOST, STOPPED, WRONG_REQUEST
from rb.core.heartbeat import END, SAVING, START, TRAINING, VALIDATION, Beat
from rb.launching.states import NodeState, RankState
from rb.launching.verdict import ENDED, HANG, LOST, STOP, Culprit, Verdict, judge

LIMITS = LimitsConfig(start_s=100, training_s=30, validation_s=40, saving_s=50, node_s=20)


def beat(phase: str = TRAINING, step: int = 7, collectives: int = 50, waits_in: str = "") -> Beat:
    return Beat(count=9, time=1.0, phase=phase, step=step, collectives=collectives, waits_in=waits_in)


def running(rank: int, silent_s: float = 0.1, found: Beat | None = None, stopped: bool = False) -> RankState:
    return RankState(rank, 100 + rank, beat=found or beat(), silent_s=silent_s, stopped=stopped)


def waiting(rank: int, silent_s: float = 31, collectives: int = 50, phase: str = TRAINING) -> RankState:
    return running(rank, silent_s, beat(phase, collectives=collectives, waits_in="all_reduce"))


def ended(rank: int, code: int, ended_s: float, phase: str = TRAINING) -> RankState:
    return RankState(rank, 100 + rank, code=code, ended_s=ended_s, beat=beat(phase))


def job(*ranks: RankState) -> list[NodeState]:
    half = (len(ranks) + 1) // 2
    return [NodeState(0, "one", ranks[:half]), NodeState(1, "two", ranks[half:])]


def verdict(*ranks: RankState) -> Verdict | None:
    return judge(job(*ranks), LIMITS)


def certain(*ranks: RankState) -> Verdict:
    found = verdict(*ranks)
    assert found is not None
    return found


def test_a_job_that_gets_on_or_has_ended_well_has_no_verdict() -> None:
    assert verdict(*(running(rank) for rank in range(4))) is None
    assert verdict(*(ended(rank, FINISHED, 30, END) for rank in range(4))) is None
    assert verdict(*(ended(rank, STOPPED, 30) for rank in range(4))) is None
    # The last rank needs a moment longer, and an agent leaves once its ranks have.
    assert verdict(*(ended(rank, FINISHED, 3, END) for rank in range(3)), running(3, found=beat(END))) is None
    left = [
        replace(node, gone="its agent ended") for node in job(*(ended(rank, FINISHED, 1, END) for rank in range(4)))
    ]
    assert judge(left, LIMITS) is None


def test_a_killed_rank_is_judged_at_once_and_is_the_cause_of_what_follows() -> None:
    found = certain(running(0), running(1), ended(2, 128 + 9, 0.2), running(3))
    assert (found.code, found.kind, found.culprits) == (137, ENDED, (Culprit(1, "two", 2),))
    assert (found.phase, found.step) == (TRAINING, 7)
    assert (
        found.sentence
        == "rank 2 on two was ended by SIGKILL, as the kernel does where memory is short, in training, 7 steps made while 3 of 4 ranks still ran"
    )
    # The others lost their connection to it, and were seen to end in the same look.
    found = certain(ended(0, 1, 0.4), ended(1, 128 + 6, 0.4), ended(2, 137, 0.4), running(3))
    assert (found.code, found.culprits[0].rank) == (137, 2)


def test_a_rank_that_leaves_with_a_code_gives_the_others_time_to_leave_with_it() -> None:
    assert verdict(ended(0, CANNOT_WRITE, 0.5), running(1), running(2), running(3)) is None
    found = certain(*(ended(rank, CANNOT_WRITE, 0.5) for rank in range(4)))
    assert (found.code, found.kind) == (CANNOT_WRITE, ENDED)
    found = certain(ended(0, 1, 6), running(1), running(2), ended(3, WRONG_REQUEST, 9))  # the first one, 3 s earlier
    assert (found.code, found.culprits) == (WRONG_REQUEST, (Culprit(1, "two", 3),))


def test_a_node_that_is_silent_or_gone_is_lost() -> None:
    nodes = job(*(waiting(rank, 5) for rank in range(4)))
    nodes[1] = replace(nodes[1], silent_s=19)
    assert judge(nodes, LIMITS) is None
    nodes[1] = replace(nodes[1], silent_s=21)
    found = judge(nodes, LIMITS)
    assert found is not None
    assert (found.code, found.kind, found.culprits) == (NODE_LOST, LOST, (Culprit(1, "two"),))
    assert found.sentence == "node lost: two: silent for 21 s (limits.node_s is 20)"
    nodes[1] = replace(nodes[1], silent_s=0, gone="its agent ended")
    found = judge(nodes, LIMITS)
    assert found is not None
    assert found.sentence == "node lost: two: its agent ended"
    assert judge([replace(nodes[0], ranks=(), gone="refused")], LIMITS) is not None  # before its ranks were started


def test_ranks_that_fail_while_a_node_falls_silent_wait_for_the_word_on_that_node() -> None:
    nodes = job(ended(0, 1, 8), ended(1, 1, 8), running(2), running(3))
    nodes[1] = replace(nodes[1], silent_s=9)
    assert judge(nodes, LIMITS) is None
    nodes[1] = replace(nodes[1], silent_s=0.5)  # heard again
    found = judge(nodes, LIMITS)
    assert found is not None
    assert (found.code, found.kind) == (1, ENDED)


@pytest.mark.parametrize(("phase", "limit"), [(START, 100), (TRAINING, 30), (VALIDATION, 40), (SAVING, 50), (END, 50)])
def test_each_phase_has_its_limit(phase: str, limit: float) -> None:
    def after(silent_s: float) -> Verdict | None:
        return verdict(
            *(waiting(rank, silent_s - 1, 51, phase) for rank in range(3)), running(3, silent_s, beat(phase))
        )

    assert after(limit - 0.5) is None
    found = after(limit + 0.5)
    assert found is not None
    assert (found.code, found.kind, found.culprits, found.phase) == (HUNG, HANG, (Culprit(1, "two", 3),), phase)


def test_a_rank_without_a_beat_is_in_start_up() -> None:
    silent = RankState(1, 7, silent_s=101)
    assert verdict(running(0), replace(silent, silent_s=99)) is None
    found = certain(running(0, 101, beat(START, -1, 1, "join")), silent)
    assert (found.culprits, found.phase, found.step) == ((Culprit(1, "two", 1),), START, -1)


def test_a_stopped_process_is_to_blame_whatever_else_looks_wrong() -> None:
    found = certain(waiting(0), waiting(1, collectives=40), running(2, 33, stopped=True), waiting(3))
    assert found.culprits == (Culprit(1, "two", 2),)
    assert found.sentence == (
        "hang: rank 2 on two: no progress for 33 s in training, 7 steps made (limits.training_s is 30): "
        "its process is stopped (SIGSTOP or a debugger); ranks 0, 1, 3 wait in all_reduce"
    )
    assert certain(*(running(rank, 31, stopped=True) for rank in range(4))).culprits == tuple(
        Culprit(rank // 2, "one" if rank < 2 else "two", rank) for rank in range(4)
    )


def test_who_is_in_no_collective_while_others_wait_is_to_blame() -> None:
    found = certain(waiting(0), running(1, 32), waiting(2), waiting(3))
    assert found.culprits == (Culprit(0, "one", 1),)
    assert "it is in no collective; ranks 0, 2, 3 wait in all_reduce" in found.sentence
    # Of two such ranks the one behind: on a GPU a collective is begun, and waited for later.
    found = certain(waiting(0), running(1, 32, beat(collectives=50)), running(2, 32, beat(collectives=49)), waiting(3))
    assert found.culprits == (Culprit(1, "two", 2),)


def test_else_who_is_behind_is_to_blame() -> None:
    assert certain(waiting(0), waiting(1), waiting(2, collectives=49), waiting(3)).culprits == (Culprit(1, "two", 2),)
    late = running(3, 31, beat(step=6, waits_in="broadcast"))
    assert certain(waiting(0), waiting(1), waiting(2), late).culprits == (Culprit(1, "two", 3),)


def test_a_rank_that_has_left_is_to_blame_where_all_others_wait() -> None:
    found = certain(ended(0, FINISHED, 40, END), waiting(1), waiting(2), waiting(3))
    assert found.culprits == (Culprit(0, "one", 0),)
    assert "it ended with exit code 0 while the others wait for it" in found.sentence


def test_where_all_look_the_same_it_is_said() -> None:
    found = certain(*(waiting(rank) for rank in range(4)))
    assert (found.code, found.culprits) == (HUNG, ())
    assert "not known which rank, all look the same" in found.sentence
    assert certain(running(0, 31)).culprits == (Culprit(0, "one", 0),)  # a rank alone


def test_waiting_for_a_rank_that_gets_on_is_no_hang() -> None:
    assert verdict(running(0, 0.5, beat(SAVING)), *(waiting(rank, 300) for rank in (1, 2, 3))) is None
    # But one that is in no collective is judged by itself.
    assert certain(running(0, 31), *(running(rank, 0.5) for rank in (1, 2, 3))).culprits == (Culprit(0, "one", 0),)


def test_a_wish_to_stop_is_passed_on_to_everybody() -> None:
    found = certain(running(0), ended(1, STOPPED, 0.2, START), running(2), running(3))
    assert (found.code, found.kind, found.culprits) == (STOPPED, STOP, (Culprit(0, "one", 1),))
    early = RankState(1, 7, code=128 + 15, ended_s=9)  # SIGTERM before Python had started in it
    assert certain(running(0), early).kind == STOP
    nodes = job(*(running(rank) for rank in range(4)))
    asked = judge([nodes[0], replace(nodes[1], asked="SIGTERM")], LIMITS)
    assert asked is not None
    assert (asked.code, asked.sentence) == (STOPPED, "two was asked to stop: SIGTERM")
    # A stop that hangs is a hang.
    hung = judge([replace(node, asked="SIGTERM") for node in job(waiting(0), running(1, 31))], LIMITS)
    assert hung is not None
    assert hung.kind == HANG


def test_a_checkpoint_that_is_not_written_is_found_while_training_goes_on() -> None:
    writes = replace(running(0), write_silent_s=49)
    assert verdict(writes, running(1), running(2), running(3)) is None
    found = certain(replace(writes, write_silent_s=51), running(1), running(2), running(3))
    assert (found.code, found.culprits, found.phase) == (HUNG, (Culprit(0, "one", 0),), SAVING)
    assert found.sentence == (
        "hang: rank 0 on one: no progress for 51 s in writing a checkpoint, 7 steps made (limits.saving_s is 50)"
    )
    # The step that waits for it is as patient as it: the others wait for this rank, which is not silent.
    waits = replace(running(0, 20, beat(SAVING)), write_silent_s=20)
    assert verdict(waits, *(waiting(rank, 51, phase=SAVING) for rank in (1, 2, 3))) is None
    stopped = replace(running(0, 20, stopped=True), write_silent_s=51)
    assert certain(stopped, running(1)).sentence.endswith(": its process is stopped (SIGSTOP or a debugger)")


def test_ranks_that_an_agent_does_not_start_are_a_hang_of_its_node() -> None:
    late = NodeState(1, "two", silent_s=0.2, unstarted_s=101)
    found = judge([NodeState(0, "one", (waiting(0, 101, phase=START),)), late], LIMITS)
    assert found is not None
    assert (found.code, found.kind, found.culprits, found.phase) == (HUNG, HANG, (Culprit(1, "two"),), START)
    assert "two: has not started its ranks for 101 s (limits.start_s is 100)" in found.sentence
    assert judge([NodeState(0, "one", (running(0),)), replace(late, unstarted_s=99)], LIMITS) is None
