"""Several hosts on one machine, for trials over a network: Linux namespaces, a bridge between them, a real sshd on each.

                   +--------- switch: a network namespace with a bridge ----------+
                   |  port1                      port2                     portN  |
                   +----|--------------------------|-------------------------|----+
                        | (a veth pair: a cable)   |                         |
                   +----|--------------+     +-----|-------------+           |
                   | eth0 10.77.0.1    |     | eth0 10.77.0.2    |          ...
                   | hostname node1    |     | hostname node2    |
                   | sshd, own key     |     | sshd, own key     |
                   | own processes     |     | own processes     |
                   | own /dev/shm, /run|     | own /dev/shm, /run|
                   | own /etc/ssh      |     | own /etc/ssh      |
                   +-------------------+     +-------------------+
                     the file system is shared, as a cluster's is; `view` shows one host another folder at a path

A host is one network, mount, UTS and process namespace. Its first process holds it: once that has ended, the kernel ends every process of the host
and takes its cables away. The first process reads a pipe of the test process, so hosts are gone however the test process ends. Nothing has a
global name: two test processes can have the same hosts. The machine's own files and network stay as they are.

Needs root, ``ip``, ``sshd`` and ``pdsh``. Where hosts cannot be made the test is skipped; with RB_NEED_HOSTS=1 it fails.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = "RB_NEED_HOSTS"  # environment variable: a test without hosts fails
TOOLS = ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "pdsh")
SSHD = "/usr/sbin/sshd"
FAKETIME = "/usr/$LIB/faketime/libfaketimeMT.so.1"  # the dynamic linker puts this machine's folder in
# What every host has in its environment, as /etc/environment gives it: one thread for each rank, no network beyond the switch.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_SSH_CLIENT = """Host *
    IdentityFile /etc/ssh/id
    IdentitiesOnly yes
    GlobalKnownHostsFile /etc/ssh/known_hosts
    UserKnownHostsFile none
    StrictHostKeyChecking yes
"""
_SSH_SERVER = """HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
MaxStartups 100
PidFile none
"""


class Command(subprocess.Popen[str]):
    """A command that runs on a host. Signals reach the command itself; its exit code is -N where signal N ended it."""

    def __init__(self, enter: list[str], command: list[str], log: Path) -> None:
        self._log = log
        with log.open("w") as file:
            super().__init__(
                [*enter, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def process(self) -> psutil.Process:
        """The command's own process, for ``psutil``; ``pid`` is of the one that entered the namespaces and waits for it."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.poll() is None:
            with suppress(psutil.NoSuchProcess):
                if found := psutil.Process(self.pid).children():
                    return found[0]
            time.sleep(0.01)
        raise AssertionError(f"ended with {self.poll()}:\n{self.said()}")

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            self.process().send_signal(sig)

    def said(self) -> str:
        """All that it has written so far."""
        return self._log.read_text(errors="replace")

    def finish(self, code: int = 0, timeout: float = 240) -> str:
        """What it said, once it has ended with this code."""
        try:
            found = self.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {timeout} s; it said:\n{self.said()}") from None
        assert found == code, f"exit code {found}:\n{self.said()}"
        return self.said()


class Host:
    """One host; made by ``hosts``.

    Attributes:
        name: what `hostname` says there, and what the others call it.
        address: of its interface eth0.
        alive: whether it runs.
    """

    def __init__(self, number: int, folder: Path, switch: Holder) -> None:
        self._port, self._switch = f"port{number}", switch
        self.name, self.address = f"node{number}", f"10.77.0.{number}"
        self.folder = folder / self.name
        self.ssh = self.folder / "ssh"
        self.ssh.mkdir(parents=True)
        (self.folder / "home").mkdir()
        (self.folder / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        self.environment = ENVIRONMENT | {"HOME": str(self.folder / "home")}
        self.alive = False
        self._log = self.ssh / "sshd.log"
        self._commands = self._sshd = 0

    def start(self) -> None:
        """Switch it on, for the first time or after ``kill``: namespaces, cable, sshd."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        binds = {"hosts": "/etc/hosts", "ssh": "/etc/ssh", "shadow": "/etc/shadow"}
        lines = [f"hostname {self.name}", "ip link set lo up", "mount -t tmpfs tmpfs /dev/shm"]
        lines += [f"mount --bind {self.folder / own} {path}" for own, path in binds.items()]
        lines += ["mount -t tmpfs tmpfs /run", "mkdir /run/sshd"]
        if (theirs := Path(pwd.getpwuid(0).pw_dir) / ".ssh").is_dir():
            lines.append(f"mount --bind {empty} {theirs}")
        self._holder = Holder("--net --mount --uts --pid --mount-proc", lines)
        hardware = f"02:00:00:77:00:{int(self.address.split('.')[-1]):02x}"  # the same each time: others remember it
        cable = f"link add {self._port} type veth peer name eth0 address {hardware} netns {self._holder.pid}"
        self._switch.ip(cable, f"link set {self._port} master bridge up")
        self._holder.ip(f"address add {self.address}/24 dev eth0", "link set eth0 up")
        self.alive = True
        self.start_sshd()

    def run(self, *command: object, **environment: object) -> Command:
        """Start a command there, in the repository's root, with the host's environment and nothing of this process's."""
        self._commands += 1
        variables = [f"{k}={v}" for k, v in (self.environment | environment).items()]
        words = ["env", "-i", "-C", str(ROOT), *variables, *map(str, command)]
        return Command(self._holder.enter, words, self.folder / f"command{self._commands}.log")

    def processes(self, word: str = "") -> list[psutil.Process]:
        """All that runs there but the first process and the listening sshd, oldest first; only those with ``word`` in their command line."""
        if not self.alive:
            return []
        mine, found = _space(self._holder.pid), []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if _space(process.pid) != mine or process.pid in (self._holder.pid, self._sshd):
                    continue
                if process.status() != psutil.STATUS_ZOMBIE and word in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def kill(self) -> None:
        """Power off: the others see silence, no closed connection; then every process ends at once."""
        if self.alive:
            self.alive = False
            self.link(False)
            self._holder.end()
            with suppress(subprocess.CalledProcessError):  # the kernel may have taken it away already
                self._switch.ip(f"link delete {self._port}")

    def link(self, up: bool) -> None:
        """Plug its cable in or out."""
        self._switch.ip(f"link set {self._port} {'up' if up else 'down'}")

    def clock(self, offset_s: float) -> None:
        """Set the wall clock of what is started from now on; monotonic clocks stay."""
        fake = {"LD_PRELOAD": FAKETIME, "FAKETIME": f"{offset_s:+g}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        for name, value in fake.items():
            self.environment[name] = value
        self.reload()

    def authorise(self, yes: bool) -> None:
        """Whether its sshd takes the key of the others."""
        key = (self.ssh / "id.pub").read_text()
        (self.ssh / "authorized_keys").write_text(key if yes else "")

    def view(self, path: Path, other: Path | None = None) -> None:
        """Show there, at ``path``, another folder; an empty one without ``other``."""
        self._holder.do("mount", "--bind", str(other or self.folder / "empty"), str(path))

    def start_sshd(self) -> None:
        self._write_sshd_config()
        self._await_sshd(lambda: self.run(SSHD, "-D", "-E", "/etc/ssh/sshd.log"))

    def stop_sshd(self) -> None:
        """No new connection is taken; those that are there stay."""
        listening = psutil.Process(self._sshd)
        listening.kill()
        while listening.is_running() and listening.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        self._sshd = 0

    def reload(self) -> None:
        """Let its sshd take over a changed ``environment``."""
        self._write_sshd_config()
        self._await_sshd(lambda: os.kill(self._sshd, signal.SIGHUP))

    def _write_sshd_config(self) -> None:
        variables = " ".join(f"{k}={v}" for k, v in self.environment.items())
        (self.ssh / "sshd_config").write_text(f"{_SSH_SERVER}SetEnv {variables}\n")

    def _await_sshd(self, start: Callable[[], Any]) -> None:
        def listens() -> int:
            return self._log.read_text().count("Server listening on 0.0.0.0") if self._log.exists() else 0

        before, end = listens(), time.monotonic() + 60
        started = start()
        while listens() == before:
            assert time.monotonic() < end, f"sshd: {self._log.read_text() if self._log.exists() else ''}"
            time.sleep(0.01)
        if isinstance(started, Command):
            self._sshd = started.process().pid


class Holder:
    """A process that holds namespaces. It ends when asked, and when this process ends."""

    def __init__(self, spaces: str, lines: list[str]) -> None:
        script = "\n".join(["set -e", *lines, "echo $$", "read -r _"])
        command = ["unshare", *spaces.split(), "--fork", "--kill-child", "bash", "-c", script]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert self._popen.stdout is not None
        if not self._popen.stdout.readline():
            raise OSError(self._popen.communicate()[1].strip())
        self.pid = psutil.Process(self._popen.pid).children()[0].pid
        flags = ["--mount", "--uts", "--pid"] if "--pid" in spaces else []
        self.enter = ["nsenter", "--target", str(self.pid), "--net", *flags]

    def do(self, *command: str) -> None:
        subprocess.run([*self.enter, *command], check=True, capture_output=True, text=True)

    def ip(self, *lines: str) -> None:
        """Commands of `ip` in this network."""
        command = [*self.enter, "ip", "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), check=True, capture_output=True, text=True)

    def end(self) -> None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid).kill()
        self._popen.communicate()


class Hosts(list[Host]):
    """All hosts of a trial; ``hosts[0]`` is the first, node1."""

    def processes(self, word: str = "") -> list[psutil.Process]:
        """What runs on any of them."""
        return [process for host in self for process in host.processes(word)]

    def end_all(self) -> None:
        """SIGKILL to all that is left of a trial."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()

    @contextmanager
    def clean(self) -> Iterator[None]:
        """Around a trial: afterwards, however it ended, nothing of it runs, all cables are in and all hosts on."""
        try:
            yield
        finally:
            for host in self:
                if host.alive:
                    host.link(True)
                else:
                    host.start()
            self.end_all()

    def hostfile(self, path: Path, slots: int = 1) -> Path:
        """Write the host file of all of them."""
        path.write_text("".join(f"{host.name} slots={slots}\n" for host in self))
        return path

    def left_after(self, seconds: float, word: str = "") -> list[str]:
        """Command lines of processes that are still there after so long; empty as soon as none is."""
        end = time.monotonic() + seconds
        while (left := self.processes(word)) and time.monotonic() < end:
            time.sleep(0.1)
        said = []
        for process in left:
            with suppress(psutil.Error):
                said.append(" ".join(process.cmdline()))
        return said


def _space(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def why_not() -> str:
    """Why hosts cannot be made here; empty where they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None] + [SSHD] * (not Path(SSHD).is_file())
    if missing:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "ip",
            "link",
            "add",
            "name",
            "trial",
            "type",
            "bridge",
        ],
        capture_output=True,
        text=True,
    )
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def hosts(number: int, folder: Path, own_name: str = "") -> Iterator[Hosts]:
    """So many hosts, connected and with sshd; they are gone afterwards.

    Args:
        number: of hosts.
        folder: where their own files go; it must not exist, or be empty.
        own_name: address that each host's own name has in its own /etc/hosts; Debian's installer writes 127.0.1.1. Default: that of eth0.
    """
    if reason := why_not():
        if os.environ.get(NEEDED):
            pytest.fail(f"{NEEDED} is set, but hosts cannot be made here: {reason}")
        pytest.skip(f"hosts cannot be made here: {reason}")
    with ExitStack() as stack:
        switch = Holder("--net", ["ip link add name bridge type bridge", "ip link set bridge up"])
        stack.callback(switch.end)
        them = Hosts(Host(i + 1, folder, switch) for i in range(number))
        _write_keys(them)
        for host in them:
            own = {host.name: own_name} if own_name else {}
            names = {"localhost": "127.0.0.1"} | {other.name: other.address for other in them} | own
            (host.folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
            stack.callback(host.kill)
            host.start()
        yield them


def _write_keys(them: list[Host]) -> None:
    """One key that all accept; a host key for each, known to all."""
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "trial", "-f"]
    first = them[0].ssh
    subprocess.run([*make, first / "id"], check=True)
    known = ""
    for host in them:
        subprocess.run([*make, host.ssh / "host_key"], check=True)
        known += f"{host.name},{host.address} {(host.ssh / 'host_key.pub').read_text()}"
    for host in them:
        for name in ("id", "id.pub"):
            if host.ssh != first:
                shutil.copy(first / name, host.ssh / name)
        (host.ssh / "known_hosts").write_text(known)
        (host.ssh / "ssh_config").write_text(_SSH_CLIENT)
        host.authorise(True)
