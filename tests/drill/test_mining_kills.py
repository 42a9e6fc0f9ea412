"""A mining job killed at 20 random moments: the driver without Ray, the driver on Ray, the actors; and two Ray nodes. The bytes are those of an undisturbed job."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from rb.mining.inputs import InputShard
from rb.mining.on_ray import run_on_ray
from rb.mining.record import ImageRecord
from rb.mining.settings import StageSize
from rb.mining.work import Made, alone_in
from tests.support.mined import SIZES, ColourWords, Segments, check_whole, input_tars, job, outputs
from tests.support.remedies import Said, remedy
from tests.support.trials import Figures, Trials

ROOT = Path(__file__).resolve().parents[2]
SHARDS, IMAGES = 12, 6
PAUSE_S = 0.05  # of an image: a job then takes long enough for kills in its middle
LIMIT_S = 600


def start(kind: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.support.mined",
        kind,
        str(folder / "in"),
        str(folder / "out"),
        str(PAUSE_S),
        *more,
    ]
    said = (folder / "said").open("a")
    return subprocess.Popen(
        command, cwd=ROOT, stdout=said, stderr=said, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def ends_well(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.wait(LIMIT_S) == 0, (folder / "said").read_text()[-3000:]


def prepared(folder: Path) -> tuple[list[InputShard], dict[str, str]]:
    """Inputs, and the digests of an undisturbed job."""
    shards = input_tars(folder / "in", SHARDS, IMAGES)
    job(folder / "right", shards)
    return shards, outputs(folder / "right")


def records(folder: Path) -> int:
    return len(list((folder / "out").glob("*/*.done")))


def wait_for_records(process: subprocess.Popen[str], folder: Path, number: int) -> bool:
    """Until so many units are finished; false if the process ended before."""
    while records(folder) < number and process.poll() is None:
        time.sleep(0.01)
    return process.poll() is None


def test_drivers_are_killed(trials: Trials, tmp_path: Path) -> None:
    draws = random.Random(17)
    names = [f"local {i}" for i in range(10)] + [f"ray {i}" for i in range(4)]
    for name in trials.left(names):
        folder = tmp_path / name
        folder.mkdir()
        with trials.trial(name) as figures:
            _, right = prepared(folder)
            process = start(name.split()[0], folder)
            assert wait_for_records(process, folder, draws.randint(1, 3 * SHARDS - 2)), (folder / "said").read_text()
            time.sleep(draws.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.wait()
            figures["units before the kill"] = records(folder)
            ends_well(start(name.split()[0], folder), folder)
            assert outputs(folder / "out") == right
            check_whole(folder / "out", SHARDS * IMAGES)


def test_six_actors_are_killed(figures: Figures, tmp_path: Path) -> None:
    draws = random.Random(18)
    _, right = prepared(tmp_path)
    process = start("ray", tmp_path)
    killed = 0
    for number in sorted(draws.sample(range(1, 3 * SHARDS - 8), 6)):
        assert wait_for_records(process, tmp_path, number)
        actors = [
            p for p in psutil.Process(process.pid).children(recursive=True) if p.name().startswith("ray::_Worker")
        ]
        if actors:
            draws.choice(actors).kill()
            killed += 1
    ends_well(process, tmp_path)
    figures["actors killed"] = killed
    assert killed == 6
    assert outputs(tmp_path / "out") == right
    check_whole(tmp_path / "out", SHARDS * IMAGES)
    assert (tmp_path / "said").read_text().count("died; a new one goes on") >= 1


class DiesAt(ColourWords):
    """Its process ends at the shards whose names hold ``word``."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        if self.word and self.word in shard.path.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(shard, before)


@remedy("give the stage more memory, or leave the shard out")
def test_a_shard_that_ends_its_process_every_time(
    tmp_path: Path,
) -> tuple[Callable[[], object], Callable[[Said], object]]:
    shards = input_tars(tmp_path / "in", 3, 2)

    def run() -> None:
        with alone_in(tmp_path / "out"):
            run_on_ray([Segments(), DiesAt("00001")], shards, tmp_path / "out", SIZES)

    def leave_out(said: Said) -> None:
        name = said.found("(0000[0-9].tar): the process of stage describe died 3 times")
        shards[:] = [shard for shard in shards if shard.path.name != name]

    return run, leave_out


@remedy("lower ray.STAGE.actors, or add nodes")
def test_a_cluster_that_is_too_small(tmp_path: Path) -> tuple[Callable[[], object], Callable[[Said], object]]:
    shards = input_tars(tmp_path / "in", 1, 2)
    sizes = {"masks": StageSize(200, 0.01, gpus=1)}

    def run() -> None:
        with alone_in(tmp_path / "out"):
            run_on_ray([Segments()], shards, tmp_path / "out", sizes)

    return run, lambda said: sizes.update(masks=StageSize(int(said.found("ask for (200) GPUs")) // 100, 0.25))


@contextmanager
def two_nodes(folder: Path) -> Iterator[str]:
    """Two Ray nodes of one CPU each on this machine; the address."""
    head = ("--head", "--port=6391", "--include-dashboard=false", "--min-worker-port=20000", "--max-worker-port=20500")
    second = ("--address=127.0.0.1:6391", "--min-worker-port=20600", "--max-worker-port=21000")
    nodes = []
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        for options in (head, second):
            command = [
                str(Path(sys.executable).with_name("ray")),
                "start",
                "--block",
                "--num-cpus=1",
                "--object-store-memory=100000000",
            ]
            said = (folder / f"node{len(nodes)}").open("w")
            nodes.append(
                subprocess.Popen(
                    [*command, "--node-ip-address=127.0.0.1", *options],
                    stdout=said,
                    stderr=said,
                    env=env,
                    cwd=ROOT,
                    start_new_session=True,
                )
            )
            limit = time.monotonic() + 180
            while "Ray runtime started" not in (folder / f"node{len(nodes) - 1}").read_text():
                assert time.monotonic() < limit, (folder / f"node{len(nodes) - 1}").read_text()
                time.sleep(0.2)
        yield "127.0.0.1:6391"
    finally:
        for node in reversed(nodes):
            family = psutil.Process(node.pid).children(recursive=True)
            node.terminate()
            node.wait(60)
            for process in family:
                if process.is_running():
                    process.kill()


def test_two_nodes_write_the_same_bytes(figures: Figures, tmp_path: Path) -> None:
    _, right = prepared(tmp_path)
    with two_nodes(tmp_path) as address:
        began = time.monotonic()
        ends_well(start("ray", tmp_path, address), tmp_path)
        figures["s"] = round(time.monotonic() - began, 1)
    assert outputs(tmp_path / "out") == right
    check_whole(tmp_path / "out", SHARDS * IMAGES)


def test_a_second_driver_leaves(figures: Figures, tmp_path: Path) -> None:
    _, right = prepared(tmp_path)
    process = start("local", tmp_path)
    assert wait_for_records(process, tmp_path, 2)
    second = start("ray", tmp_path)
    assert second.wait(LIMIT_S) != 0
    assert "another mining job works in this folder" in (tmp_path / "said").read_text()
    ends_well(process, tmp_path)
    figures["units"] = records(tmp_path)
    assert outputs(tmp_path / "out") == right
