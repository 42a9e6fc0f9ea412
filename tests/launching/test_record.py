"""Who is to blame for a hang by torch's own record of collectives: written by real ranks, and read by the supervisor."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch
import torch.distributed as torch_dist

from rb.core import dist, heartbeat
from rb.core.exit_codes import HUNG, leave
from rb.core.heartbeat import BEGUN, TRAINING, Beat
from rb.launching.record import name_culprits, ranks_behind
from rb.launching.states import NodeState, RankState
from rb.launching.verdict import HANG, UNKNOWN, Verdict
from rb.train import _collectives
from tests.support.processes import finish, start_function_ranks


def one_is_behind(folder: Path) -> None:
    """Two ranks make two sums; the first one begins a third."""
    rank = os.environ["RANK"]
    os.environ[heartbeat.VARIABLE] = str(folder / f"beats{rank}")
    heartbeat.make(folder / f"beats{rank}")
    heartbeat.begin()
    dist.init()
    for _ in range(2):
        torch_dist.all_reduce(torch.ones(3))
    third = torch_dist.all_reduce(torch.ones(3), async_op=True) if rank == "0" else None
    (folder / f"{rank}.txt").write_text(_collectives())
    while not (folder / f"{1 - int(rank)}.txt").exists():
        threading.Event().wait(0.01)
    if third is None:
        torch_dist.all_reduce(torch.ones(3))
    else:
        third.wait()
    dist.shutdown()
    leave(0)


def test_the_rank_that_has_begun_fewer_collectives_is_named(tmp_path: Path) -> None:
    finish(*start_function_ranks(2, one_is_behind, tmp_path))
    texts = {rank: (tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert "all_reduce" in texts[0].splitlines()[-2]
    assert "its number 2, " in texts[1].splitlines()[-2]
    assert ranks_behind(texts) == [1]


def test_a_verdict_without_culprits_gets_them_from_the_record() -> None:
    nodes = [
        NodeState(number, f"host{number}", (RankState(number, 7, beat=Beat(1, 1.0, TRAINING, 3)),), stacks={number: text})
        for number, text in enumerate(["File\n" + BEGUN + '{"all": 4, "pair": 2}\n', "File\n" + BEGUN + '{"all": 4, "pair": 1}\n'])
    ]  # fmt: skip
    unknown = Verdict(HUNG, HANG, f"hang: {UNKNOWN}: no progress", (), TRAINING, 3)
    named = name_culprits(unknown, nodes)
    assert named.sentence == "hang: rank 1 on host1: no progress"
    assert [(culprit.host, culprit.rank) for culprit in named.culprits] == [("host1", 1)]
    assert name_culprits(named, []) == named


def test_what_the_record_does_not_tell() -> None:
    same, more = "File\n" + BEGUN + '{"all": 4}', "File\n" + BEGUN + '{"all": 5}'
    assert ranks_behind({0: same, 1: same}) == []
    assert ranks_behind({0: "File", 1: "File"}) == []  # in start-up nobody has one
    assert ranks_behind({0: more, 1: "File"}) == [1]  # Python does not run there
    assert ranks_behind({0: more, 1: "File\n" + BEGUN + "{}"}) == []
    assert ranks_behind({0: more, 1: f"File\n{BEGUN}[4", 2: same}) == [1]
