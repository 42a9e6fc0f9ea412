"""Mining on Ray: a cluster that is too small is refused, an actor that dies is replaced, and the bytes are those of one process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rb.mining.finish import finish
from rb.mining.inputs import InputShard
from rb.mining.on_ray import run_on_ray
from rb.mining.record import ImageRecord
from rb.mining.screen import SCREEN
from rb.mining.settings import FinishConfig, StageSize
from rb.mining.work import Made, alone_in
from tests.support.mined import SIZES, ColourWords, check_whole, input_tars, job, outputs, stages
from tests.support.remedies import Said, remedy

pytest.importorskip("ray")
MARK = "RB_TEST_MARK"  # environment variable: the file that says that an actor has died


class DiesOnce(ColourWords):
    """Its process ends at the first shard that any of them gets."""

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        mark = Path(os.environ[MARK])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(shard, before)


@remedy("lower ray.STAGE.actors, or add nodes")
def test_the_bytes_of_one_process_also_where_an_actor_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[], object], Callable[[Said], object]]:
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    shards, out = input_tars(tmp_path / "in", 5, 3), tmp_path / "out"
    sizes = {**SIZES, "masks": StageSize(2, 0.25, gpus=100)}
    masks, _, screen = stages()

    def run() -> None:
        with alone_in(out):
            run_on_ray([masks, DiesOnce(), screen], shards, out, sizes)
            finish(out, shards, SCREEN, FinishConfig(max_shard_bytes=20_000))
        assert (tmp_path / "mark").exists()
        job(tmp_path / "right", shards)
        assert outputs(out) == outputs(tmp_path / "right")
        check_whole(out, 15)

    return run, lambda said: sizes.update(masks=StageSize(2, float(said.found("ask for (200) GPUs")) / 800))
