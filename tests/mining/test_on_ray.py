"""Mining on Ray: an actor that dies is replaced, and the bytes are those of one process. More is in tests/drill/test_mining_kills.py."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rb.mining.inputs import InputShard
from rb.mining.local import run_local
from rb.mining.on_ray import run_on_ray
from rb.mining.record import ImageRecord
from rb.mining.settings import StageSize
from rb.mining.stage import run_stage
from rb.mining.work import Made, alone_in
from tests.support.mined import ColourWords, Segments, input_tars
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


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(900)
def test_the_bytes_of_one_process_also_where_an_actor_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    shards, out = input_tars(tmp_path / "in", 4, 2), tmp_path / "out"
    own = builtins.print, signal.getsignal(signal.SIGTERM)
    with alone_in(out):
        sizes = {"masks": StageSize(1, 0.5), "describe": StageSize(1, 0.5)}
        run_on_ray([Segments(), DiesOnce()], shards, out, sizes)
    assert (tmp_path / "mark").exists()
    assert (builtins.print, signal.getsignal(signal.SIGTERM)) == own, "Ray leaves this process as it was"
    said = capsys.readouterr().err
    assert "the process of stage describe died; a new one goes on" in said
    assert "masks 4/4" in said
    assert "describe 4/4" in said
    for stage, before in ((Segments(), None), (ColourWords(), "masks")):
        for shard in shards:
            run_stage(stage, shard, tmp_path / "right", before)
    files = sorted(path.relative_to(tmp_path / "right") for path in (tmp_path / "right").glob("*/*.jsonl"))
    assert len(files) == 8
    assert [(out / file).read_bytes() for file in files] == [(tmp_path / "right" / file).read_bytes() for file in files]


@remedy("Ray does not start here ({}); use --local for one process without Ray")
def test_ray_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[], object], Callable[[Said], object]]:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))  # longer than the name of a socket may be
    shards, on_ray = input_tars(tmp_path / "in", 1, 1), [True]

    def run() -> None:
        with alone_in(tmp_path / "out"):
            if on_ray[0]:
                run_on_ray([Segments()], shards, tmp_path / "out", {})
            else:
                run_local([Segments()], shards, tmp_path / "out")

    return run, lambda said: on_ray.__setitem__(0, not said.found("use (--local)"))
