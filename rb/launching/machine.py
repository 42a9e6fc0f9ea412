"""What a node is: GPUs, memory, disks, limits, clock, network, and variables of the shell that break a process group. Without torch."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from rb.core.files import check_writable
from rb.core.ranks_here import NO_DEVICE, VISIBLE
from rb.launching.addresses import route_to

SMI_TIMEOUT_S = 20.0
PROC_GPUS = Path("/proc/driver/nvidia/gpus")
# A launcher sets these for each rank. Left in a shell they make a single process wait for others that never come.
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def gpus(environ: Mapping[str, str]) -> dict[str, Any]:
    """{"from", "devices": [{"name", "memory_mb"}], "visible": those that ranks may use}.

    By ``nvidia-smi``: it comes with the driver, knows the memory, takes a tenth of a second, and needs no torch, whose import and CUDA context take
    seconds and hundreds of MB on every node. Where it is missing (some containers), the driver's files in ``/proc`` give number and names.
    What torch itself can use is found by the all-reduce that follows.
    """
    devices, source = _smi()
    if devices is None:
        devices, source = _proc(), str(PROC_GPUS)
    usable = len(devices)
    if environ.get("DS_ACCELERATOR") == "cpu":
        usable = 0
    elif VISIBLE in environ:
        listed = [name.strip() for name in environ[VISIBLE].split(",") if name.strip()]
        usable = min(usable, listed.index(NO_DEVICE) if NO_DEVICE in listed else len(listed))
    return {"from": source, "devices": devices, "usable": usable, "visible": environ.get(VISIBLE)}


def _smi() -> tuple[list[dict[str, Any]] | None, str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None, ""
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None, ""
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if line.strip()]
    return [{"name": n.strip(), "memory_mb": int(m) if m.strip().isdecimal() else 0} for n, _, m in rows], "nvidia-smi"


def _proc() -> list[dict[str, Any]]:
    devices = []
    for folder in sorted(PROC_GPUS.glob("*")):
        with suppress(OSError):
            lines = (folder / "information").read_text(errors="replace").splitlines()
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
            devices.append({"name": names[0] if names else "GPU", "memory_mb": 0})
    return devices


def memory() -> dict[str, int]:
    """Bytes of main memory that processes may still take, by this machine and its cgroup."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # not this kind of cgroup, or "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return {"free": max(0, free)}


def disk(run_dir: Path) -> dict[str, Any]:
    """Room where the run folder is or will be, and whether it can be written; nothing stays there."""
    place = next(parent for parent in (run_dir, *run_dir.absolute().parents) if parent.is_dir())
    found = os.statvfs(place)
    problem = ""
    try:
        check_writable(place / "probe")
    except OSError as error:
        problem = str(error).replace(f"{place / 'probe'}", str(place))
    return {
        "place": str(place),
        "free": found.f_bavail * found.f_frsize if found.f_blocks else None,
        "inodes": found.f_favail if found.f_files else None,
        "unwritable": problem,
    }


def open_files() -> dict[str, int]:
    """How many files a process may have open: now, and as far as it may raise that itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = 1 << 31
    return {"soft": unlimited if soft < 0 else soft, "hard": unlimited if hard < 0 else hard}


def interface(controller: Sequence[Any]) -> dict[str, str]:
    """Name and address of the interface that leads to the controller; a text "problem" where none does."""
    try:
        own = route_to(controller[0], int(controller[1]) or 9)
    except OSError as error:
        return {"problem": f"no route to the controller {controller[0]} ({error.strerror or error})"}
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own.partition("%")[0] for entry in addresses):
            return {"name": name, "address": own}
    return {"problem": f"no interface has the address {own}, from which the controller {controller[0]} is reached"}


def ports(wanted: Sequence[int]) -> dict[str, str]:
    """Port -> why it cannot be listened on; empty where it can."""
    found = {}
    for port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # one that only waits for late packets counts as free
            try:
                probe.bind(("", port))
                found[str(port)] = ""
            except (OSError, OverflowError) as error:
                found[str(port)] = getattr(error, "strerror", None) or str(error)
    return found


def hurting_variables(environ: Mapping[str, str], alone: bool) -> list[tuple[str, str]]:
    """(what, remedy) for variables that break a process group.

    Args:
        alone: on one host without a launcher of others (``rb doctor``): variables of ranks were left in the shell.
    """
    found = []
    left = [name for name in OF_RANKS if environ.get(name)]
    if alone and left:
        found.append((f"{', '.join(left)} left in the shell", f"unset them: `unset {' '.join(left)}`"))
    names = set(psutil.net_if_addrs())
    for variable in INTERFACE_VARIABLES:
        value = environ.get(variable, "")
        if value and not _matches(value, names):
            found.append(
                (
                    f"{variable}={value} names no interface of this host ({', '.join(sorted(names))})",
                    f"unset {variable}, since `rb launch` finds the interface, or name one of these",
                )
            )
    if not alone and environ.get(VISIBLE) is not None:
        found.append(
            (
                f"{VISIBLE}={environ[VISIBLE]} is set on this node, and ranks use only these GPUs",
                f"unset {VISIBLE}, and limit the ranks by the slots of the hostfile, if you did not mean that",
            )
        )
    return found


def _matches(value: str, names: set[str]) -> bool:
    """Whether a value such as NCCL reads names an interface: ``eth``, ``=eth0``, ``^docker,lo``, several with commas."""
    if value.startswith("^"):
        excluded = value[1:].removeprefix("=").split(",")
        return any(not name.startswith(tuple(filter(None, excluded)) or ("\0",)) for name in names)
    exact = value.startswith("=")
    return any(
        name == word if exact else name.startswith(word)
        for word in value.removeprefix("=").split(",")
        if word
        for name in names
    )


def python_version() -> str:
    """Three numbers."""
    return ".".join(map(str, sys.version_info[:3]))
