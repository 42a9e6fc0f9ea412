"""The unit of work of mining: what is skipped, what is made again, and what a bad shard or a kill leaves behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rb.core.files import file_sha256
from rb.mining.work import Made, TooManyRejectedError, alone_in, finished, run_unit, sweep


def upper(source: Path) -> Made:
    """A stage: its lines in capitals; lines that begin with "bad" are rejected."""
    lines = source.read_text(encoding="utf-8").splitlines()
    good = [line.upper() for line in lines if not line.startswith("bad")]
    bad = tuple((line, "not an image") for line in lines if line.startswith("bad"))
    return Made("\n".join(good).encode(), len(lines), bad)


def lengths(source: Path) -> Made:
    lines = source.read_text(encoding="utf-8").splitlines()
    return Made(str([len(line) for line in lines]).encode(), len(lines))


def mine(folder: Path, config: int = 1, model: str = "none", max_rejected: float = 0.5) -> list[bool]:
    """Two stages over one shard; for each, whether it was made."""
    made = []
    for name, source, stage, settings, its_model in (
        ("1-upper", "shard", upper, {"a": config}, model),
        ("2-lengths", "1-upper", lengths, {}, "none"),
    ):
        read = folder / source
        _, new = run_unit(
            folder / name, file_sha256(read), settings, its_model, max_rejected, lambda s=stage, r=read: s(r)
        )
        made.append(new)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shard").write_text("one\ntwo\nbad 1\nthree", encoding="utf-8")
    return tmp_path


def test_a_unit_is_made_once_and_counts_its_rejections(folder: Path) -> None:
    assert mine(folder) == [True, True]
    assert mine(folder) == [False, False]
    done = finished(folder / "1-upper")
    assert done is not None
    assert (done.taken, done.rejected) == (4, {"not an image": 1})


def test_only_what_depends_on_a_change_is_made_again(folder: Path) -> None:
    mine(folder)
    assert mine(folder, config=2) == [True, False], "the first stage wrote the same bytes, so the second keeps its own"
    assert mine(folder, config=2, model="other") == [True, False]
    (folder / "shard").write_text("one\ntwo\nfour", encoding="utf-8")
    assert mine(folder, config=2, model="other") == [True, True]


@pytest.mark.parametrize("damage", ["1-upper", "1-upper.done"])
def test_a_damaged_output_or_record_is_made_again(folder: Path, damage: str) -> None:
    mine(folder)
    right = (folder / "1-upper").read_bytes()
    (folder / damage).write_bytes(b"{")
    assert mine(folder) == [True, False]
    assert (folder / "1-upper").read_bytes() == right


def test_too_many_rejections_name_the_images_and_write_nothing(folder: Path) -> None:
    with pytest.raises(
        TooManyRejectedError,
        match=r"1 of 4 images were rejected, more than max_rejected = 0.1 .*bad 1 \(not an image\)",
    ):
        mine(folder, max_rejected=0.1)
    assert sorted(path.name for path in folder.iterdir()) == ["shard"]


def test_a_finished_unit_is_held_to_a_stricter_share_too(folder: Path) -> None:
    mine(folder)
    with pytest.raises(TooManyRejectedError):
        mine(folder, max_rejected=0.1)


def test_the_second_driver_leaves(folder: Path) -> None:
    with (
        alone_in(folder),
        pytest.raises(ValueError, match=f"another mining job .*process {os.getpid()}"),
        alone_in(folder),
    ):
        pass
    with alone_in(folder):
        pass


def _die_at(rename: int, moment: str) -> None:
    """From now on the process kills itself ``before`` or ``after`` its rename number ``rename``."""
    real, done = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if len(done) == rename and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        renamed = real(self, target)
        if len(done) == rename:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        return renamed

    Path.replace = replace  # type: ignore[method-assign]


# The renames: output and record of the first stage, then of the second.
@pytest.mark.parametrize("rename", range(4))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_moment_changes_no_byte(folder: Path, rename: int, moment: str) -> None:
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir()
    (undisturbed / "shard").write_bytes((folder / "shard").read_bytes())
    mine(undisturbed)
    child = os.fork()
    if not child:
        _die_at(rename, moment)
        mine(folder)
        os._exit(0)  # it should be dead by now, which the parent checks
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert sweep(folder) == (moment == "before"), "the kill left one unfinished file, or none"
    renames = rename + (moment == "after")
    assert mine(folder) == [renames < 2, renames < 4], "what was recorded is not made again"
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in undisturbed.iterdir())
    assert {path.name for path in folder.iterdir()} == {path.name for path in undisturbed.iterdir()} | {"undisturbed"}
