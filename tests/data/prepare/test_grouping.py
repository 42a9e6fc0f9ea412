"""Rows grouped by source: every row once, in order of first appearance; nothing is left on the disk; a disk that is full is named."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rb.data.prepare import grouping
from rb.data.prepare.grouping import Spool
from tests.support.remedies import remedy

NAMES = st.sampled_from(["", "a", "aa", "b\0", "\ud800", "日本/1.jpg"])


def test_every_row_comes_back_once_in_order_of_first_appearance(tmp_path: Path) -> None:
    @given(st.lists(st.tuples(NAMES, st.binary(max_size=4)), max_size=12))
    def same(rows: list[tuple[str, bytes]]) -> None:
        spool, expected = Spool(tmp_path), dict[str, list[bytes]]()
        for name, row in rows:
            spool.add(name, row)
            expected.setdefault(name, []).append(row)
        groups = spool.grouped()
        assert list(tmp_path.iterdir()) == []
        assert len(groups) == len(expected)
        assert [(g.source, g.count, g.rows) for g in groups] == [(n, len(r), r) for n, r in expected.items()]
        assert [g.source for g in groups[1:3]] == list(expected)[1:3]

    same()


def test_a_group_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MAX_GROUP_BYTES", 100)
    spool = Spool(tmp_path)
    for name, row in (("a", b"x" * 60), ("b", b"y"), ("a", b"x" * 60), ("c", b"z" * 60), ("c", b"z" * 60), ("b", b"y")):
        spool.add(name, row)
    assert [(g.source, g.count, g.rows and len(g.rows)) for g in spool.grouped()] == [
        ("a", 2, None),
        ("b", 2, 2),
        ("c", 2, None),
    ]


@remedy("two sources have the same 64-bit hash")
def test_sources_of_equal_hash_are_never_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grouping, "hash", lambda _: 7, raising=False)

    def sources() -> list[str]:
        spool = Spool(tmp_path)
        spool.add("a", b"")
        spool.add("b", b"")
        return [group.source for group in spool.grouped()]

    return sources, lambda _: monkeypatch.undo()  # another process, another hash


def test_a_folder_that_takes_no_more_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere: cannot be written \(No such file"):
        Spool(tmp_path / "nowhere")
    child = os.fork()
    if child == 0:  # the limit holds for a whole process
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, 1 << 21))
        spool = Spool(tmp_path)
        try:
            for _ in range(8):
                spool.add("a", bytes(1 << 20))
        except OSError as error:
            os._exit(int(not str(error).startswith(f"{tmp_path}: cannot be written (File too large")))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
