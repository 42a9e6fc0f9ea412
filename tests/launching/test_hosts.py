"""The hosts that other tests train on are hosts: each has its name, its processes, its clock and its sshd, and none is left afterwards."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.hosts import ROOT, hosts

CONNECT = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1")


@pytest.mark.dist
def test_hosts_are_hosts(tmp_path: Path) -> None:
    with hosts(2, tmp_path / "hosts", own_name="127.0.1.1") as two:
        one, other = two
        said = one.run("pdsh", "-S", "-R", "ssh", "-w", "node1,node2", "echo $(hostname) $(hostname -I)").finish()
        assert sorted(said.split("\n"))[1:] == ["node1: node1 10.77.0.1", "node2: node2 10.77.0.2"]
        assert one.run("getent", "hosts", "node1").finish().split()[0] == "127.0.1.1"
        assert one.run("getent", "hosts", "node2").finish().split()[0] == "10.77.0.2"

        # Its processes: each host sees only its own, the test sees all, and a signal reaches the command.
        there = one.run(*CONNECT, "node2", "sleep 600")
        while not other.processes("sleep 600"):
            time.sleep(0.02)
        assert [p.name() for p in one.processes("sleep 600")] == ["ssh"]
        assert "sleep 600" not in one.run("ps", "-o", "args", "-C", "sleep").finish(1)
        there.terminate()
        there.finish(255)
        other.processes("sleep 600")[0].kill()
        assert not two.left_after(10)

        # Its clock, and only the wall clock.
        other.clock(-3600)
        clocks = f"{sys.executable} -c 'import time; print(time.time(), time.monotonic())'"
        wall, monotonic = map(float, one.run(*CONNECT, "node2", clocks).finish().split())
        assert 3000 < time.time() - wall < 3700
        assert abs(time.monotonic() - monotonic) < 100

        # What it sees of a folder; whom it lets in; its cable; its power.
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "shard").touch()
        other.view(tmp_path / "data")
        assert one.run(*CONNECT, "node2", "ls", tmp_path / "data").finish() == ""
        assert one.run("ls", tmp_path / "data").finish() == "shard\n"
        other.authorise(False)
        assert "Permission denied" in one.run(*CONNECT, "node2", "true").finish(255)
        other.authorise(True)
        other.link(False)
        assert "timed out" in one.run(*CONNECT, "node2", "true").finish(255)
        other.link(True)
        stays = other.run("sleep", 600)
        process = stays.process()
        other.kill()
        stays.finish(-9)
        assert not process.is_running()
        other.start()
        assert one.run(*CONNECT, "node2", "hostname").finish() == "node2\n"
        other.stop_sshd()
        assert "refused" in one.run(*CONNECT, "node2", "true").finish(255)
        last = one.run("sleep", 600).process()
    assert not last.is_running()


def test_hosts_end_with_the_test_process(tmp_path: Path) -> None:
    script = """if True:
        import os, sys
        from pathlib import Path
        from tests.support.hosts import hosts
        with hosts(1, Path(sys.argv[1])) as (host,):
            print(host.run("sleep", 600).process().pid, flush=True)
            os.kill(os.getpid(), 9)
    """
    ended = subprocess.run([sys.executable, "-c", script, tmp_path / "hosts"], cwd=ROOT, capture_output=True, text=True)
    if "hosts cannot be made here" in ended.stderr:
        pytest.skip("hosts cannot be made here")
    assert ended.returncode == -9, ended.stderr
    end = time.monotonic() + 60
    while psutil.pid_exists(int(ended.stdout)):
        assert time.monotonic() < end
        time.sleep(0.02)
