"""What ssh and a node's shell say becomes a finding with a remedy. A program named ssh says what the real one says; the drill has real hosts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rb.launching import reach
from rb.launching.findings import Finding
from rb.launching.reach import probe_hosts
from tests.support.remedies import Said, covers, helps

ROOT = Path(__file__).resolve().parents[2]
GOOD = 'eval "$last"'  # runs the command here, as a host that is this one
# Words of the remedy -> (what OpenSSH 9 wrote, what the finding says)
SAID = {
    "correct its name in the hostfile, or add it to DNS or": (
        "ssh: Could not resolve hostname n7: Name or service not known",
        "unknown host",
    ),
    "look which it is; if it is right, remove the old key with": (
        "@@@@@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@@@@@\nHost key verification failed.",
        "its host key has changed",
    ),
    "log in once by hand (`ssh {}`) and accept its key, or": (
        "No ED25519 host key is known for n7 and you have requested strict checking.\r\nHost key verification failed.",
        "its host key is not known here",
    ),
    "start sshd there, or name the right port in ~/.ssh/config": (
        "ssh: connect to host n7 port 22: Connection refused",
        "nothing listens on its port for ssh",
    ),
    "add this user's public key to ~/.ssh/authorized_keys there": (
        "root@n7: Permission denied (publickey).",
        "it refuses the key",
    ),
    "look whether it runs and whether a firewall lies between": (
        "ssh: connect to host n7 port 22: No route to host",
        "unreachable: no answer",
    ),
    "run `ssh -v {} true` and see what it says": (
        "kex_exchange_identification: banner line contains invalid characters",
        "ssh ended",
    ),
}


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a program named ssh that does what a shell script says; ``$last`` is the command for the host."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(reach, "SHARED_S", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "shared").write_text("token")

    def write(script: str) -> None:
        path = tmp_path / "bin" / "ssh"
        path.write_text(f'#!/bin/sh\necho "$@" | head -n 1 >> {tmp_path}/words\nfor last; do :; done\n{script}\n')
        path.chmod(0o755)

    return write


def look(folder: Path, **changes: object) -> Finding:
    given = {"checkout": folder, "python": sys.executable, "shared_file": folder / "shared"} | changes
    (found,) = probe_hosts(["n7"], **given)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("piece", covers(SAID))
def test_what_ssh_says(piece: str, ssh: Callable[[str], None], tmp_path: Path) -> None:
    words, what = SAID[piece]
    ssh(f"printf '%s\\n' \"{words}\" >&2; exit 255")

    def follow(said: Said) -> None:
        assert said.startswith(f"n7: reach: {what}")
        assert "\n" not in said
        ssh(GOOD)

    helps(piece, lambda: look(tmp_path).line(), follow)


def test_options_of_pdsh_reach_ssh_and_nothing_is_asked(
    ssh: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(reach.APPEND, "-p 2222 -i '/a b'")
    ssh("exit 255")
    assert look(tmp_path).value == "ssh ended with code 255 (no word of why)"
    words = (tmp_path / "words").read_text()
    assert words.startswith("-p 2222 -i /a b -o BatchMode=yes -o ConnectTimeout=")
    assert " -- n7 exec sh -c " in words


# Words of the remedy -> (arguments that are wrong, what the finding says)
THERE = {
    "copy or mount the checkout there under the same path": ({"checkout": Path("/no/such")}, "/no/such is not there"),
    "install the same environment there under the same path, or": ({"python": "/no/python"}, "/no/python is not there"),
}


@pytest.mark.parametrize("piece", covers(THERE))
def test_what_is_not_there(piece: str, ssh: Callable[[str], None], tmp_path: Path) -> None:
    wrong, what = THERE[piece]
    ssh(GOOD)
    now = dict(wrong)

    def follow(said: Said) -> None:
        assert said.startswith(f"n7: reach: {what}")
        now.clear()

    helps(piece, lambda: look(tmp_path, **now).line(), follow)


# Words of the remedy -> (what a wrong Python there does, what the finding says)
PYTHONS = {
    "install it there as here, for {}": (
        "-S",
        "the package cannot be imported there (ModuleNotFoundError No module named",
    ),
    "install the same Python there, or use one": (None, "is Python 2.7.18 there, "),
}


@pytest.mark.parametrize("piece", covers(PYTHONS))
def test_another_python(piece: str, ssh: Callable[[str], None], tmp_path: Path) -> None:
    option, what = PYTHONS[piece]
    ssh(GOOD)
    python = tmp_path / "python"
    does = f'exec {sys.executable} {option} "$@"' if option else "echo rb-reach: python 2.7.18; echo rb-reach: ready"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)

    def follow(said: Said) -> None:
        assert what in said
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    helps(piece, lambda: look(tmp_path, python=str(python)).line(), follow)


@pytest.mark.parametrize("content", [None, "another token"])
@pytest.mark.parametrize("piece", covers(["put output_dir on a disk that all nodes mount under the same path"]))
def test_a_run_folder_that_is_not_shared(
    content: str | None, piece: str, ssh: Callable[[str], None], tmp_path: Path
) -> None:
    shared, kept = tmp_path / "shared", tmp_path / "kept"
    there = "rm" if content is None else f"echo {content} >"
    ssh(f'cp {shared} {kept}; {there} {shared}; sh -c "$last"; cp {kept} {shared}')

    def follow(said: Said) -> None:
        assert f"{tmp_path.parent}: the run folder is not shared" in said
        ssh(GOOD)

    helps(piece, lambda: look(tmp_path).line(), follow)


@pytest.mark.parametrize("piece", covers(["look whether its disks answer (a login by hand hangs too), or"]))
def test_a_login_without_an_end(
    piece: str, ssh: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "LOGIN_S", 0.2)
    ssh("exec sleep 60")

    def follow(said: Said) -> None:
        monkeypatch.setattr(reach, "LOGIN_S", 60)
        ssh(GOOD)

    helps(piece, lambda: look(tmp_path).line(), follow)


@pytest.mark.parametrize("piece", covers(["install an ssh client here (openssh-client)"]))
def test_no_ssh_here(piece: str, ssh: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def follow(said: Said) -> None:
        monkeypatch.setenv("PATH", before)
        ssh(GOOD)

    helps(piece, lambda: look(tmp_path).line(), follow)


def test_hosts_in_order_and_at_once(ssh: Callable[[str], None], tmp_path: Path) -> None:
    ssh('case "$*" in *n2*) echo "Connection refused" >&2; exit 255;; esac\n' + GOOD)
    found = probe_hosts(["n3", "n2", "n1"], tmp_path, sys.executable, tmp_path / "shared")
    assert [(f.node, f.state) for f in found] == [("n3", "ok"), ("n2", "failed"), ("n1", "ok")]
