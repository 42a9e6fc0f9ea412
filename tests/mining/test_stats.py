"""The counts of a job: equal to what is in the files, the paper's row beside them, the cost projected to the whole input; and progress lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rb.mining.finish import finish
from rb.mining.inputs import find_inputs
from rb.mining.record import read_records
from rb.mining.screen import SCREEN, Screen
from rb.mining.settings import FinishConfig, ScreenConfig
from rb.mining.show import show
from rb.mining.stage import run_stage, stage_file
from rb.mining.stats import PAPER_GPU_HOURS, job_stats, stats_text
from rb.mining.watch import Watch
from rb.mining.work import Done
from tests.support.mined import ColourWords, Segments, drawn, input_tars, write_tar
from tests.support.remedies import Said, remedy

STAGES = ("masks", "describe", SCREEN)


def test_counts_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for shard in range(3):
        good = [(f"{shard}{i}", drawn(10 * shard + i)) for i in range(3)]
        write_tar(tmp_path / "in" / f"{shard}.tar", [*good, ("bad", b"no image")])
    shards, out = find_inputs([str(tmp_path / "in")]), tmp_path / "out"
    for shard in shards[:2]:
        before = None
        for stage in (Segments(), ColourWords(), Screen(ScreenConfig())):
            run_stage(stage, shard, out, before)
            before = stage.name
    stats = job_stats(out, STAGES, shards, {"masks": 0.5})
    assert stats.finished is None
    assert "no set yet" in stats_text(stats)
    assert stats.images == pytest.approx(12, rel=0.1)
    masks, describe, screen = (stage.tree(stats.images) for stage in stats.stages)
    assert (masks["images"], masks["rejected"]) == (8, {"damaged image": 2})
    assert describe["images"] == screen["images"] == 6
    records = [record for shard in shards[:2] for record in read_records(stage_file(out, SCREEN, shard.number))]
    reasons = Counter((r.dropped.stage, r.dropped.reason) for record in records for r in record.regions if r.dropped)
    assert masks["regions in"] == sum(len(record.regions) for record in records)
    assert masks["dropped"] == {why: count for (stage, why), count in reasons.items() if stage == "masks"}
    assert screen["kept"] == sum(len(record.kept) for record in records) > 0
    assert masks["GPU-hours"] == pytest.approx(masks["process hours"] / 2, abs=1e-3)

    for shard in shards[2:]:
        before = None
        for stage in (Segments(), ColourWords(), Screen(ScreenConfig())):
            run_stage(stage, shard, out, before)
            before = stage.name
    done, _ = finish(out, shards, SCREEN, FinishConfig())
    tree = job_stats(out, STAGES, shards, {}).tree()
    paper, ours = tree["table 3"]
    assert paper == {
        "dataset": "RegionCap-10M (paper)",
        "images": 5_655_833,
        "regions": 10_766_958,
        "words": 9.66,
        "regions an image": 1.9,
    }
    assert (ours["images"], ours["regions"], ours["words"]) == (done.images, done.regions, 7.0)
    assert PAPER_GPU_HOURS == 40_320


def test_progress_says_speed_retention_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    watch = Watch(["a", "b"], [100, 100, 200], {"a": 1, "b": 2}, clock=lambda: now[0])
    done = Done("", "", "", "", 10, {}, {"kept": 6, "a: small": 4}, 20.0)
    now[0] = 20.0
    watch.unit("a", 0, done, True)
    assert watch.seconds_left() is None
    assert not capsys.readouterr().err
    now[0] = 40.0
    watch.unit("b", 0, Done("", "", "", "", 10, {}, {"kept": 3, "a: small": 4, "b: foreign": 3}, 10.0), True)
    assert capsys.readouterr().err == "a 1/3, 60% kept; b 1/3, 50% kept; 0.25 images/s, 1 min left\n"
    assert watch.seconds_left() == 60.0  # 300 bytes at 20 s per 100 bytes in stage a; 15 s in b, by two processes
    watch.unit("a", 1, done, False)  # found from before: no measure of speed
    watch.unit("a", 2, done, False)
    assert watch.seconds_left() == 15.0


@remedy("wait until the first stage has finished a shard")
def test_a_page_of_a_job_that_has_just_begun(tmp_path: Path) -> tuple[Callable[[], object], Callable[[Said], object]]:
    shards = input_tars(tmp_path / "in", 2, 2)

    def write() -> None:
        assert show(tmp_path / "out", tmp_path / "page.html", ["masks", "describe"], shards, count=3) > 2
        page = (tmp_path / "page.html").read_text()
        assert "kept: " in page
        assert "dropped by masks: too large: 2" in page
        assert page.count("data:image/jpeg") == page.count("<article")

    return write, lambda _: run_stage(Segments(), shards[1], tmp_path / "out", None)
