"""Loader processes that stall, die or find no shared memory: one line with the remedy, never an endless wait. tests/data/test_data_pipeline.py has the batches."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rb.core.tensors import num_bytes
from rb.data import loading
from rb.data.loading import Batches, LoaderError
from tests.support.processes import start_function
from tests.support.remedies import Said, remedy

CANNOT_MOUNT = 77
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x00020000, 0x4000, 1 << 18


@dataclass
class Item:
    """A batch of one megabyte, with a tensor that lies deeper."""

    inputs: Tensor
    more: list[tuple[Tensor, str]]


class Items(Dataset[Item]):
    """Item 1 is made to fail in the way that is asked for."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def __getitem__(self, item: int) -> Item:
        if item == 1 and self.fault == "stall":
            time.sleep(3600)
        if item == 1 and self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 1 and self.fault == "ours":
            raise OSError(5, "Input/output error", "shard.tar")
        if item == 1 and self.fault == "bug":
            raise RuntimeError("a bug in a decoder")
        return Item(torch.full((900_000,), item, dtype=torch.uint8), [(torch.zeros(100_000, dtype=torch.uint8), "x")])


def with_small_shm(kilobytes: int, workers: int = 2) -> None:
    """In a process with a /dev/shm so small: read six batches with so many loader processes, then say how it went."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(CLONE_NEWNS) != 0
        or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={kilobytes}k".encode()) != 0
    ):
        os._exit(CANNOT_MOUNT)
    try:
        for batch in Batches(Items(), range(6), workers, False, 60):
            print("batch", int(batch.inputs[0]), flush=True)
    except LoaderError as error:
        print(f"error: {error}", flush=True)
    os._exit(0)


@pytest.mark.dist
@remedy("found no room in shared memory ({}): {}; {}")
def test_a_small_shared_memory_is_an_error_with_the_remedy():
    """Docker's default is 64 MB; here 64 kB, which no batch fits into. Before, the trainer waited for ever."""
    workers = [2]

    def read() -> str:
        started = start_function(with_small_shm, 64, workers[0])
        if started.wait() == CANNOT_MOUNT:
            pytest.skip("this user may not mount")
        return started.output()

    def follow(said: Said) -> None:
        assert "error: a batch of 1.0 MB found no room in shared memory" in said
        assert "of 0.1 MB free; give the container more" in said
        assert "docker run --shm-size=8g" in said
        assert "use fewer loader processes (data.num_workers, --workers)" in said
        assert "Traceback" not in said
        workers[0] = 0

    return read, follow


def test_a_process_that_stalls_or_dies_is_named_with_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "size", lambda: (1_000_000, 64_000_000))
    with pytest.raises(LoaderError) as raised:
        list(Batches(Items("stall"), range(4), 2, False, 1))
    assert "no batch came from the 2 loader processes in 1 s" in str(raised.value)
    assert "/dev/shm has 1.0 of 64.0 MB free. Try data.num_workers=0" in str(raised.value)
    with pytest.raises(
        LoaderError, match=r"a loader process ended \(.*/dev/shm has 1.0 of 64.0 MB free; give"
    ) as raised:
        list(Batches(Items("killed"), range(4), 2, False, 60))
    assert "\n" not in str(raised.value)
    # The data set's own errors stay what they are; a bug keeps its traceback.
    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error: 'shard.tar'$"):
        list(Batches(Items("ours"), range(4), 1, False, 60))
    with pytest.raises(RuntimeError, match="Original Traceback"):
        list(Batches(Items("bug"), range(4), 1, False, 60))


def test_too_little_room_for_the_batches_ahead_is_said_at_the_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOCAL_SIZE", "8")
    assert num_bytes(Items()[0]) == 1_000_000
    for size, warned in ((31_000_000, True), (33_000_000, False)):  # 8 ranks x 2 processes x 2 batches x 1 MB
        caplog.clear()
        monkeypatch.setattr(loading, "size", lambda size=size: (size, size))
        batches = Batches(Items(), range(4), 2, False)
        assert [int(batch.inputs[0]) for batch in batches] == [0, 1, 2, 3]
        assert [int(batch.inputs[0]) for batch in batches] == [0, 1, 2, 3]  # again, by the same processes
        assert len(caplog.messages) == warned
    monkeypatch.setattr(loading, "size", lambda: (0, 0))
    assert len(list(Batches(Items(), range(4), 0, False))) == 4  # this process alone needs none
    assert not caplog.messages
