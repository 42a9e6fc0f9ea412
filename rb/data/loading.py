"""Loader processes: batches of a data set in order, made ahead of time. An error of a process arrives as the error that it is; nobody waits for ever.

A batch comes from a loader process through shared memory (/dev/shm), which a container often has little of (Docker: 64 MB). torch sends batches from a
thread whose errors only get printed: the batch is lost, and the trainer waits for it. Here a process puts its batch into shared memory itself, so
that a full /dev/shm is an error with a remedy.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from rb.core.exit_codes import USER_ERRORS
from rb.core.ranks_here import ranks_of_this_host
from rb.data.packed import Packed
from rb.data.shared_memory import AHEAD, REMEDY, SHM, needed, size

T = TypeVar("T")
TIMEOUT_S = 300.0
_MB = 1e6

log = logging.getLogger(__name__)


class LoaderError(ValueError):
    """No batch came; the message says why and what to do."""


class Batches(Generic[T]):
    """The items of a data set, in order, read by ``num_workers`` processes (0: by this one). May be iterated again.

    Args:
        items: numbers of the items.
        pin_memory: the loader processes' batches come to where copies to a GPU need not wait.
        timeout_s: how long to wait for one batch.

    Raises:
        LoaderError, while iterating: no batch in this time, a process died, or no room in shared memory.
        Exception: ``ValueError`` and ``OSError`` of the data set itself, as it raised them.
    """

    def __init__(
        self, dataset: Dataset[T], items: range, num_workers: int, pin_memory: bool, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._num_workers, self._timeout_s, self._largest = num_workers, timeout_s, 0
        self._loader: DataLoader[Any] = DataLoader(
            _Items(dataset),
            batch_size=None,
            sampler=items,
            num_workers=num_workers,
            pin_memory=pin_memory and num_workers > 0,
            worker_init_fn=_start_worker,
            persistent_workers=num_workers > 0,
            prefetch_factor=AHEAD if num_workers else None,
            timeout=timeout_s if num_workers else 0,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[T]:
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                self._end_processes()
                raise self._explained(error) from error
            if isinstance(batch, _Failed):
                self._end_processes()
                raise batch.error
            if isinstance(batch, Packed):
                self._warn_of_little_room(batch.block.nbytes)
                batch = batch.unpacked()
            yield batch

    def _end_processes(self) -> None:
        """At once: left to the garbage collector, torch's queues may go before a process, which is then waited for."""
        iterator, self._loader._iterator = self._loader._iterator, None  # noqa: SLF001 (torch has no public way)
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined] # noqa: SLF001

    def _explained(self, error: RuntimeError) -> Exception:
        """Torch's errors about its processes in one line; others as they are."""
        text = str(error)
        if text.startswith("DataLoader timed out"):
            return LoaderError(
                f"no batch came from the {self._num_workers} loader processes in {self._timeout_s:.0f} s: reading is too slow, or a process is stuck; "
                f"{_room()}. Try data.num_workers=0 (--workers 0), which reads in this process, or raise train.timeout_s"
            )
        if text.startswith("DataLoader worker"):
            return LoaderError(
                f"a loader process ended ({' '.join(text.split())}): memory may have been short, or shared memory: {_room()}; {REMEDY}"
            )
        return error

    def _warn_of_little_room(self, batch_bytes: int) -> None:
        if batch_bytes <= self._largest:
            return
        self._largest = batch_bytes
        ranks = ranks_of_this_host()
        most, room = needed(batch_bytes, self._num_workers, ranks), size()
        if room is not None and room[1] < most:
            log.warning(
                "%s: batches ahead of time take up to %.0f MB (%d ranks x %d loader processes x %d batches of %.1f MB); %s",
                *(_room(), most / _MB, ranks, self._num_workers, AHEAD, batch_bytes / _MB, REMEDY),
            )


@dataclasses.dataclass(frozen=True)
class _Failed:
    """In a batch's place: torch would wrap the error into many lines."""

    error: Exception


class _Items(Dataset[Any]):
    """A data set whose items, and errors, come from a loader process whole."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, item: int) -> Any:
        if get_worker_info() is None:
            return self._dataset[item]
        try:
            found = Packed.of(self._dataset[item])
            _share(found.block)
        except USER_ERRORS as error:
            return _Failed(error)
        return found


def _share(block: Tensor) -> None:
    """Put a batch into shared memory."""
    try:
        block.share_memory_()
    except RuntimeError as error:
        if "shared memory" not in str(error) and "shm" not in str(error):
            raise
        why = " ".join(str(error).split())
        raise LoaderError(
            f"a batch of {block.nbytes / _MB:.1f} MB found no room in shared memory ({why}): {_room()}; {REMEDY}"
        ) from error


def _room() -> str:
    room = size()
    return f"{SHM} has {room[0] / _MB:.1f} of {room[1] / _MB:.1f} MB free" if room else f"{SHM} is not there"


def _start_worker(_worker: int) -> None:
    """Make a worker process ignore the signals that ask the trainer to stop: it still needs data to finish and save its step.

    Launchers send SIGINT and SIGTERM to the whole process group. Only the trainer's own SIGTERM, sent when it leaves, ends a worker; if the
    trainer dies, torch's watchdog in the worker notices.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_await_sigterm, args=(os.getppid(),), daemon=True).start()


def _await_sigterm(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo({signal.SIGTERM})
        if info.si_pid == parent:
            os._exit(0)
