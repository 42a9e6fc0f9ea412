"""Hostfiles as DeepSpeed's launcher has them: a line ``host slots=8`` for every node, comments behind ``#``, blank lines.

Read strictly: DeepSpeed's own reader takes ``slots=4x`` for 4 and any bytes for a name, and the launcher trains on this host alone where the
file is missing. A name goes to ssh and pdsh, which read ``-x``, ``^file``, ``a,b``, ``n[1-3]`` and ``ssh:a`` as more than a name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from rb.core.strict_json import FormatError, read_bytes
from rb.core.text import shown

MAX_BYTES = 1 << 20
MAX_SLOTS = 1024
_LINE = re.compile(r"(\S+)\s+slots=(\S+)")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")


class Host(NamedTuple):
    """A node: its name or IPv4 address, as ssh finds it, and how many ranks run there."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """The nodes of a hostfile, in its order.

    Raises:
        ValueError: names file and line, and says what would be right.
    """
    if not path.is_file():
        raise FormatError(
            f"hostfile {path}: no such file; write one with a line such as `node1 slots=8` for every host"
        )
    try:
        text = read_bytes(path, MAX_BYTES).decode("ascii")
    except UnicodeDecodeError as error:
        before = error.object.count(b"\n", 0, error.start)
        raise FormatError(
            f"hostfile {path}, line {before + 1}: byte 0x{error.object[error.start]:02x} is not ASCII; save it as plain text without special characters"
        ) from None
    hosts: dict[str, Host] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        where = f"hostfile {path}, line {number}"
        host = _parse(words, where)
        key = host.name.lower()
        if key in hosts:
            raise FormatError(
                f"{where}: {host.name} stands already on line {lines[key]}; leave one line for every host, with all its slots"
            )
        hosts[key], lines[key] = host, number
    if not hosts:
        raise FormatError(f"hostfile {path}: names no host; write a line such as `node1 slots=8` for every host")
    return list(hosts.values())


def _parse(words: str, where: str) -> Host:
    """The host of one line."""
    if not words.replace("\t", " ").isprintable():
        raise FormatError(f"{where}: {shown(words, 80)!r} holds control characters; write it as `node1 slots=8`")
    match = _LINE.fullmatch(words)
    if match is None:
        raise FormatError(f"{where}: {words[:80]!r} is not a host and its slots; write it as `node1 slots=8`")
    name, slots = match.groups()
    if not _NAME.fullmatch(name):
        raise FormatError(
            f"{where}: {name[:80]!r} is no plain host name or IPv4 address; put user, port and other options into ~/.ssh/config under a plain name"
        )
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", slots) or int(slots) > MAX_SLOTS:
        raise FormatError(
            f"{where}: slots={slots[:80]}: must be a whole number from 1 to {MAX_SLOTS}, the ranks of that host; remove the line if it runs none"
        )
    return Host(name, int(slots))
