"""Hostfiles: what is taken, and that everything else is refused with its line and a remedy that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from rb.launching.hostfile import read_hostfile
from tests.support.remedies import Said, covers, helps

MISSING = "no such file; write one with a line such as"


def read(folder: Path, content: bytes | None) -> list[tuple[str, int]]:
    path = folder / "hostfile"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    return [tuple(host) for host in read_hostfile(path)]


def test_hosts_comments_and_blank_lines(tmp_path: Path) -> None:
    content = b"# two nodes\n\nnode-1.rack_2 slots=8\r\n  10.0.0.2\tslots=04   # the spare one\n\n#node3 slots=1"
    assert read(tmp_path, content) == [("node-1.rack_2", 8), ("10.0.0.2", 4)]


# Remedy -> (wrong files, the line that the message names; a file that follows the remedy).
WRONG = {
    MISSING: ([(None, 0)], b"node1 slots=8"),
    "names no host; write a line such as": ([(b"", 0), (b"# nothing\n\n", 0)], b"node1 slots=8"),
    "is not a host and its slots; write it as": (
        [(b"node1\n", 1), (b"a slots=1\nslots=8\n", 2), (b"a slots = 8", 1), (b"a slots=8 b", 1), (b"a, b slots=8", 1)],
        b"node1 slots=8",
    ),
    "holds control characters; write it as": (
        [(b"node1\x00 slots=8", 1), (b"a slots=1\nb\x1b[2J slots=8", 2)],
        b"node1 slots=8",
    ),
    "is not ASCII; save it as plain text": (
        [(b"\xef\xbb\xbfnode1 slots=8", 1), (b"a slots=1\nn\xc3\xb6de slots=8", 2), (b"\xff\xfea\x00", 1)],
        b"node1 slots=8",
    ),
    "is no plain host name or IPv4 address; put user, port": (
        [
            (name + b" slots=8", 1)
            for name in (b"-oProxyCommand=x", b"user@node", b"ssh:node", b"^file", b"a,b", b"n[1-3]", b"$(x)", b"a;b")
        ],
        b"node1 slots=8",
    ),
    "the ranks of that host; remove the line if it runs none": (
        [(b"a slots=" + slots, 1) for slots in (b"0", b"-1", b"4x", b"1.5", b"2000", b"9" * 5000, b"00")],
        b"# a slots=0\nnode1 slots=8",
    ),
    "leave one line for every host, with all its slots": (
        [(b"a slots=1\nb slots=1\nA slots=2\n", 3)],
        b"a slots=3\nb slots=1\n",
    ),
}


@pytest.mark.parametrize("piece", covers(WRONG))
def test_what_is_refused_and_that_the_remedy_helps(piece: str, tmp_path: Path) -> None:
    cases, right = WRONG[piece]
    for content, line in cases:
        now = [content]

        def fault(now: list[bytes | None] = now) -> None:
            read(tmp_path, now[0])

        def follow(said: Said, now: list[bytes | None] = now, line: int = line) -> None:
            assert f"hostfile {tmp_path}/hostfile" in said
            assert (f", line {line}: " in said) == bool(line), said
            assert "\n" not in said
            assert len(said) < 500
            now[0] = right

        helps(piece, fault, follow)
