"""A rank's signs of progress: written by the rank, read by another process, never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rb.core import heartbeat

RANK = """
import os, sys, time
from pathlib import Path
from rb.core import heartbeat
heartbeat.begin()
first = heartbeat.read(Path(os.environ[heartbeat.VARIABLE]))
assert first is not None and (first.count, first.phase) == (1, "start")
heartbeat.phase(heartbeat.TRAINING)
heartbeat.step(7)
heartbeat.samples(["coco/%d" % i for i in range(300)])
heartbeat.written()
assert heartbeat.read(Path(os.environ[heartbeat.VARIABLE])).written == 0
with heartbeat.writing():
    pass
with heartbeat.waiting("all_reduce"):
    print("ready", flush=True)
    time.sleep(60)
"""
WRITES = """
import os, threading
from pathlib import Path
from rb.core import heartbeat
heartbeat.begin()
path = Path(os.environ[heartbeat.VARIABLE])
def write():
    with heartbeat.writing():
        for _ in range(2000):
            heartbeat.written()
        main.wait()
main, beats = threading.Event(), 0
thread = threading.Thread(target=write)
thread.start()
while beats < 2000:
    heartbeat.beat()
    beats += 1
    now = heartbeat.read(path)
    assert now is not None and now.count == beats + 1, "never half written, by whichever thread"
    assert now.written == 0 or now.time - 60 < now.written < now.time + 60
written = now.written
heartbeat.beat()
assert written > 0, "a beat is no progress of the writing"
main.set()
thread.join()
assert heartbeat.read(path).written == 0
"""


def test_another_process_reads_where_a_rank_is_and_gets_its_stacks(tmp_path: Path) -> None:
    path = tmp_path / "rank0"
    heartbeat.make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert heartbeat.read(path) is None
    environment = os.environ | {heartbeat.VARIABLE: str(path)}
    with subprocess.Popen([sys.executable, "-c", RANK], env=environment, stdout=subprocess.PIPE) as rank:
        try:
            assert rank.stdout is not None
            assert rank.stdout.readline() == b"ready\n"
            beat = heartbeat.read(path)
            assert beat is not None
            assert (beat.phase, beat.step, beat.collectives, beat.waits_in) == ("training", 7, 1, "all_reduce")
            assert beat.written == 0
            assert beat.samples == tuple(f"coco/{i}" for i in range(256))
            rank.send_signal(signal.SIGUSR1)
            stacks = Path(f"{path}{heartbeat.STACKS_SUFFIX}")
            while "in <module>" not in stacks.read_text():
                assert rank.poll() is None
            assert heartbeat.read(path) == beat  # it sleeps: no progress
        finally:
            rank.kill()


def test_what_a_thread_writes_beside_the_steps_has_its_own_time(tmp_path: Path) -> None:
    path = tmp_path / "rank0"
    heartbeat.make(path)
    subprocess.run([sys.executable, "-c", WRITES], env=os.environ | {heartbeat.VARIABLE: str(path)}, check=True)


def test_a_damaged_or_half_written_file_is_no_beat(tmp_path: Path) -> None:
    path = tmp_path / "rank0"
    for content in (
        b"",
        b"\xff" * heartbeat.SIZE,
        b"\x01" + bytes(heartbeat.SIZE - 1),
        b"\x02" + b"{" * (heartbeat.SIZE - 1),
    ):
        path.write_bytes(content)
        assert heartbeat.read(path) is None


def test_nothing_happens_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(heartbeat.VARIABLE, raising=False)
    heartbeat.begin()
    heartbeat.step(1)
    with heartbeat.waiting("barrier"), heartbeat.during(heartbeat.SAVING):
        heartbeat.samples(["a"])
    assert not heartbeat.watched()


NESTED = """
from rb.core import heartbeat
heartbeat.begin()
with heartbeat.waiting("backward"):
    with heartbeat.waiting("all_reduce", counted=False):
        pass
    print("ready", flush=True)
    input()
heartbeat.samples(["x" * 4000] * 200)
print("done", flush=True)
input()
"""


def test_collectives_may_be_nested_and_samples_that_have_no_room_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rank0"
    heartbeat.make(path)
    environment = os.environ | {heartbeat.VARIABLE: str(path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", NESTED], env=environment, **pipes) as rank:
        assert rank.stdout is not None
        assert rank.stdin is not None
        assert rank.stdout.readline() == b"ready\n"
        beat = heartbeat.read(path)
        assert beat is not None
        assert (beat.waits_in, beat.collectives) == ("backward", 1)
        rank.stdin.write(b"\n")
        rank.stdin.flush()
        assert rank.stdout.readline() == b"done\n"
        beat = heartbeat.read(path)
        assert beat is not None
        assert (beat.waits_in, len(beat.samples)) == ("", 12)
        rank.stdin.write(b"\n")
        rank.stdin.flush()
