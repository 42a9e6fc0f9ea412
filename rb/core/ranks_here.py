"""Ranks on this host: how many there are, and what they are given: the GPUs that CUDA_VISIBLE_DEVICES names for each, a free port to meet at."""

from __future__ import annotations

import os
import socket

from rb.core.output import note

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_DEVICE = "-1"  # in VISIBLE: a device that does not exist; CUDA sees neither it nor what follows


def ranks_of_this_host() -> int:
    """How many there are, by what launchers tell a rank; 1 outside a launch."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def devices_of_ranks(ranks: int | None) -> list[str]:
    """For each rank the device that CUDA_VISIBLE_DEVICES will name for it; `NO_DEVICE` for ranks on the CPU.

    Raises:
        ValueError: fewer devices than ranks.
    """
    devices = visible_devices()
    if not devices:
        return [NO_DEVICE] * (ranks or 1)
    if ranks is not None and ranks > len(devices):
        limit = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise ValueError(f"--ranks {ranks}: this host has {len(devices)} GPUs for it{limit}")
    return devices[:ranks]


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them (numbers, UUIDs, MIG names), else by number; empty on a CPU.

    CUDA ends the list at the first device that it does not find; where that leaves some out, one line says so. DS_ACCELERATOR=cpu asks for none.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if VISIBLE not in os.environ:
        return [str(number) for number in range(count)]
    listed = [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    wanted = listed[: listed.index(NO_DEVICE)] if NO_DEVICE in listed else listed
    if len(wanted) > count:
        place = f"only {', '.join(wanted[:count])}" if count else "none of them; this runs on the CPU"
        note(
            f"{VISIBLE}={os.environ[VISIBLE]}: CUDA can use {place} (an unknown device ends the list; one MIG device a process)"
        )
    return wanted[:count]


def free_port() -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
