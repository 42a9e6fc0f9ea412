"""Whether a job that broke off is started again, and on which nodes."""

from __future__ import annotations

from rb.core.exit_codes import ABORTED, CANNOT_WRITE, FINISHED, HUNG, NODE_LOST, STOPPED, WRONG_REQUEST
from rb.launching.restart import RestartPolicy, usable_nodes


def test_faults_are_waited_out_longer_and_longer_and_never_more_often_than_allowed() -> None:
    policy = RestartPolicy(9)
    waits = [
        policy.wait_after(code, False, step)
        for step, code in enumerate([HUNG, NODE_LOST, 137, CANNOT_WRITE, 1, 5, 5, 5, 5])
    ]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert policy.why_not == ""
    assert policy.wait_after(HUNG, False, 20) is None
    assert policy.why_not == "it was restarted 9 times (--restart 9)"


def test_what_would_end_the_same_way_is_not_tried_again() -> None:
    for code in (FINISHED, WRONG_REQUEST, ABORTED):
        policy = RestartPolicy(3)
        assert policy.wait_after(code, False, 7) is None
        assert policy.why_not == ""
    assert RestartPolicy(3).wait_after(STOPPED, True, 7) is None  # its user wanted it
    assert RestartPolicy(3).wait_after(137, True, 7) is None  # and would still want it
    assert RestartPolicy(3).wait_after(STOPPED, False, 7) == 5  # its launcher was killed, it saved
    assert RestartPolicy(0).wait_after(137, False, 7) is None


def test_a_fault_that_repeats_at_one_step_ends_the_job() -> None:
    policy = RestartPolicy(9)
    assert [policy.wait_after(137, False, step) for step in (40, 60, 60)] == [5, 10, None]
    assert policy.why_not == "the job broke off twice after step 60; another restart would not help"
    policy = RestartPolicy(9)
    assert [policy.wait_after(137, False, -1) for _ in range(2)] == [5, None]
    assert "before the first step" in policy.why_not


def test_a_restart_takes_as_many_nodes_as_the_batch_divides_over() -> None:
    assert usable_nodes([8, 8, 8], [True, True, False], 1) == 2
    assert usable_nodes([8, 8, 8], [True, False, True], 2) == 3
    assert usable_nodes([8, 8, 8], [True, False, False], 2) == 0
    assert usable_nodes([], [], 0) == 0
