"""Kills at random moments, bad images and a shard that is cut: the bytes of an undisturbed job, exact counts, finished shards that stay."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from rb.core.files import file_sha256
from rb.mining.finish import finish
from rb.mining.inputs import CUT, find_inputs
from rb.mining.screen import SCREEN
from rb.mining.settings import FinishConfig
from rb.mining.stage import stage_file
from rb.mining.work import TooManyRejectedError, recorded
from tests.support.mined import check_whole, drawn, input_tars, job, outputs, write_tar


def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    shards, draws = input_tars(tmp_path / "in", 4, 3), random.Random(0)
    began = time.monotonic()
    job(tmp_path / "right", shards)
    took = time.monotonic() - began
    for _ in range(3):
        child = os.fork()
        if not child:
            job(tmp_path / "out", shards)
            os._exit(0)
        time.sleep(draws.random() * took / 2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    job(tmp_path / "out", shards)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "right")
    check_whole(tmp_path / "out", 12)


@pytest.mark.parametrize("bad", [1, 50, 100])
def test_bad_images_are_counted_or_stop_the_job(tmp_path: Path, bad: int) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "0.tar", [(f"a{i:03d}", drawn(i)) for i in range(3)])
    write_tar(
        tmp_path / "in" / "1.tar", [(f"{i:03d}", b"no image" if i < bad else drawn(3 + i % 7)) for i in range(100)]
    )
    shards, out = find_inputs([str(tmp_path / "in")]), tmp_path / "out"
    if bad > 1:
        with pytest.raises(
            TooManyRejectedError, match=rf"{bad} of 100 images were rejected, more than max_rejected = 0.1"
        ):
            job(out, shards, max_rejected=0.1)
        assert recorded(stage_file(out, SCREEN, 0)), "finished shards stay"
        assert not stage_file(out, "masks", 1).exists()
    first = file_sha256(stage_file(out, "masks", 0)) if bad > 1 else ""
    job(out, shards, max_rejected=1.0)
    done = recorded(stage_file(out, "masks", 1))
    assert done is not None
    assert (done.taken, dict(done.rejected)) == (100, {"damaged image": bad})
    assert not first or file_sha256(stage_file(out, "masks", 0)) == first
    check_whole(out, 103 - bad)


def test_a_shard_that_is_cut(tmp_path: Path) -> None:
    shards, out = input_tars(tmp_path / "in", 2, 4), tmp_path / "out"
    whole = shards[1].path.read_bytes()
    shards[1].path.write_bytes(whole[:3000])  # in the middle of an image
    shards = find_inputs([str(tmp_path / "in")])
    with pytest.raises(TooManyRejectedError, match=f"00001.tar .{CUT}."):
        job(out, shards, max_rejected=0.1)
    assert recorded(stage_file(out, SCREEN, 0))
    job(out, shards, max_rejected=1.0)
    shards[1].path.write_bytes(whole)  # brought back: its units, and what comes of them, are made again
    shards = find_inputs([str(tmp_path / "in")])
    job(out, shards, max_rejected=0.1)
    job(tmp_path / "right", shards)
    assert outputs(out) == outputs(tmp_path / "right")
    assert finish(out, shards, SCREEN, FinishConfig(max_shard_bytes=20_000))[1] is False
