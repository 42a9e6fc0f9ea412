"""Whether a launcher will get to every node by ssh, and find there what an agent needs. All nodes at once, each within a time limit.

A launcher that meets a host without an answer waits for minutes, and says little of why; ssh itself says it: by its exit code 255 and a line.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rb.core.files import file_sha256
from rb.core.install import PACKAGE, import_path
from rb.core.text import one_line
from rb.launching.findings import FAILED, OK, Finding
from rb.launching.machine import python_version

CONNECT_S = 10  # ssh's own limit for a connection
LOGIN_S = 60.0  # for all of a login: keys, a shell, an import of the package from a disk that may be slow
SHARED_S = 10  # a file that was just written may come late to other nodes of a network file system
MOST_AT_ONCE = 64
APPEND = "PDSH_SSH_ARGS_APPEND"  # environment variable: options that pdsh gives ssh
_SSH_FAILED = 255
_MARK = "rb-reach:"
# What runs on the node; each line that begins with the mark is an answer.
_SHELL = """cd {checkout} 2>/dev/null || {{ echo {mark} no folder; exit 0; }}
[ -x {python} ] || {{ echo {mark} no python; exit 0; }}
PYTHONPATH={path} exec {python} -c {code} {file} {digest} {seconds} {package}"""
_CODE = f"""
import hashlib, os, sys, time
print("{_MARK} python", ".".join(map(str, sys.version_info[:3])))
try:
    import rb.launching.facts
    if not os.path.samefile(sys.argv[4], rb.__file__):
        raise ImportError("another one is imported: " + rb.__file__)
except Exception as error:
    print("{_MARK} no package", type(error).__name__, " ".join(str(error).split()))
    sys.exit()
name, digest, end = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
while True:
    try:
        with open(name, "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
        why = "" if found == digest else "another file has this name there"
    except OSError as error:
        why = error.strerror or str(error)
    if not why or time.monotonic() > end:
        print("{_MARK} no file " + why if why else "{_MARK} ready")
        break
    time.sleep(0.5)
"""
# What ssh says of a failure -> (in our words, what to do; %s: the host). The first one that fits counts.
_FAULTS = (
    (
        ("could not resolve hostname",),
        "unknown host",
        "correct its name in the hostfile, or add it to DNS or /etc/hosts of this host",
    ),
    (
        ("remote host identification has changed",),
        "its host key has changed: it was installed again, or another machine answers",
        "look which it is; if it is right, remove the old key with `ssh-keygen -R %s` and log in once by hand",
    ),
    (
        ("host key verification failed", "host key is known"),
        "its host key is not known here",
        "log in once by hand (`ssh %s`) and accept its key, or add it to ~/.ssh/known_hosts",
    ),
    (
        ("connection refused",),
        "nothing listens on its port for ssh",
        "start sshd there, or name the right port in ~/.ssh/config",
    ),
    (
        ("permission denied", "too many authentication failures", "no supported authentication"),
        "it refuses the key",
        "add this user's public key to ~/.ssh/authorized_keys there (`ssh-copy-id %s`)",
    ),
    (
        ("timed out", "no route to host", "network is unreachable", "host is down"),
        "unreachable: no answer",
        "look whether it runs and whether a firewall lies between; otherwise take it out of the hostfile",
    ),
)


def probe_hosts(hosts: Sequence[str], checkout: Path, python: str, shared_file: Path) -> list[Finding]:
    """A finding for every host, in their order.

    Args:
        hosts: names as the hostfile has them.
        checkout: the working directory that agents start in.
        python: path of the interpreter that they run with.
        shared_file: a file of the run folder: it must be there with the same content.
    """
    command = remote_command(checkout, python, shared_file)
    with ThreadPoolExecutor(max(1, min(len(hosts), MOST_AT_ONCE))) as pool:
        return list(pool.map(lambda host: _probe(host, command, checkout, python, shared_file), hosts))


def remote_command(checkout: Path, python: str, shared_file: Path) -> str:
    """The line for the shell of a node, whatever shell its user has."""
    words = {"checkout": str(checkout), "python": python, "path": import_path()["PYTHONPATH"], "code": _CODE}
    words |= {"file": str(shared_file), "digest": file_sha256(shared_file), "seconds": str(SHARED_S)}
    words["package"] = str(PACKAGE / "__init__.py")
    script = _SHELL.format(mark=_MARK, **{name: shlex.quote(word) for name, word in words.items()})
    return f"exec sh -c {shlex.quote(script)}"


def ssh_command(host: str, command: str) -> list[str]:
    """An ssh that asks nothing, with the options that pdsh would give it."""
    own = shlex.split(os.environ.get(APPEND, ""))
    calm = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "ConnectionAttempts=1", "-T"]
    return ["ssh", *own, *calm, "--", host, command]


def _probe(host: str, command: str, checkout: Path, python: str, shared_file: Path) -> Finding:
    def failed(value: str, remedy: str) -> Finding:
        return Finding(host, "reach", FAILED, value, remedy)

    try:
        done = subprocess.run(
            ssh_command(host, command), stdin=subprocess.DEVNULL, capture_output=True, timeout=LOGIN_S, check=False
        )
    except FileNotFoundError:
        return failed("there is no ssh on this host", "install an ssh client here (openssh-client)")
    except subprocess.TimeoutExpired:
        return failed(
            f"ssh had no end after {LOGIN_S:.0f} s",
            "look whether its disks answer (a login by hand hangs too), or take it out of the hostfile",
        )
    said, error = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    answers = [line[len(_MARK) :].strip() for line in said.splitlines() if line.startswith(_MARK)]
    if not answers:
        return failed(*_ssh_fault(host, done.returncode, error))
    versions = [answer.removeprefix("python ") for answer in answers if answer.startswith("python ")]
    last = answers[-1]
    if last == "no folder":
        return failed(f"{checkout} is not there", "copy or mount the checkout there under the same path")
    if last == "no python":
        return failed(f"{python} is not there", "install the same environment there under the same path, or mount it")
    if versions and versions[0] != python_version():
        return failed(
            f"{python} is Python {versions[0]} there, {python_version()} here",
            "install the same Python there, or use one environment for all",
        )
    if last.startswith("no package "):
        return failed(
            f"the package cannot be imported there ({last.removeprefix('no package ')})",
            f"install it there as here, for {python}",
        )
    if last.startswith("no file "):
        return failed(
            f"{shared_file.parent.parent}: the run folder is not shared ({last.removeprefix('no file ')})",
            "put output_dir on a disk that all nodes mount under the same path",
        )
    if last != "ready":
        return failed(*_ssh_fault(host, done.returncode, error))
    return Finding(host, "reach", OK, f"Python {versions[0]}, the package and the shared folder are there")


def _ssh_fault(host: str, code: int, error: str) -> tuple[str, str]:
    """(what, remedy) by what ssh, or the shell that it started, said."""
    lines = [line for line in map(one_line, error.splitlines()) if line.strip("@ ")]
    if code == _SSH_FAILED:
        for signs, what, remedy in _FAULTS:
            if any(sign in error.lower() for sign in signs):
                said = next((line for line in lines if any(sign in line.lower() for sign in signs)), "")
                return f"{what} ({said})", remedy.replace("%s", host)
    said = lines[-1] if lines else "no word of why"
    return (
        f"ssh ended with code {code} ({said})",
        f"run `ssh -v {host} true` and see what it says",
    )
