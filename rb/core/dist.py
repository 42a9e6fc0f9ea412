"""Ranks and collectives: the only file that touches ``torch.distributed``.

Every function works without a process group too (world size 1), so nothing else asks whether there is one. All ranks must call a
collective; never call one under a rank condition.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from rb.core import heartbeat
from rb.core.device import usable_device
from rb.core.environment import variables
from rb.core.strict_json import parse


@dataclass(frozen=True)
class Group:
    """Consecutive ranks that gather from each other: all ranks, or an equal part of them.

    Attributes:
        size: how many they are.
        rank: this process's place among them.
        number: of the group: 0 for ranks 0 to size - 1, and so on.
        handle: torch's; none for all ranks, and for a rank alone, which has nothing to gather.
    """

    size: int
    rank: int
    number: int
    handle: Any = None


_RECORDER = "TORCH_FR_BUFFER_SIZE"  # environment variable: how many collectives torch remembers, for reports of hangs
_groups: dict[int, Any] = {}  # size -> torch's group that this rank is in; made once, since each costs connections


def active() -> bool:
    """Whether a process group exists."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """This process's global rank."""
    return torch_dist.get_rank() if active() else 0


def world_size() -> int:
    """Number of ranks."""
    return torch_dist.get_world_size() if active() else 1


def local_rank() -> int:
    """This process's rank on its host (which device it uses)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is rank 0. For side effects (files, logs) only."""
    return rank() == 0


def device() -> torch.device:
    """The device of this rank: its own GPU, or the CPU. ``ValueError`` if ``LOCAL_RANK`` names a GPU that is not there."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        own = usable_device(f"cuda:{local_rank()}")
    except ValueError as error:
        raise ValueError(f"LOCAL_RANK={local_rank()}: {error}; start as many ranks on a host as it has GPUs") from None
    torch.cuda.set_device(own)
    return own


def init(timeout_s: float = 1800.0) -> None:
    """Join the process group that the launcher's environment describes (RANK, WORLD_SIZE, MASTER_*); nothing to do without one.

    Raises:
        ValueError: the environment describes only part of one, or one that cannot be.
    """
    if active() or "RANK" not in os.environ:
        return
    _check_environment()
    if heartbeat.watched():
        os.environ.setdefault(_RECORDER, "256")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with heartbeat.waiting("joining the process group"):
        torch_dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def init_alone() -> None:
    """A process group of this process only, for libraries that ask for one; nothing to do where there is one. Opens no port."""
    if not active():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch_dist.init_process_group(backend, store=torch_dist.HashStore(), rank=0, world_size=1)


@contextmanager
def played(ranks: int) -> Iterator[None]:
    """This process as rank 0 of so many that do not exist: collectives return at once, with what was in their results before.

    For counts of calls and sizes (``rb bench step``): the real code runs, and no number means anything.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with variables(own):  # DeepSpeed reads them
        torch_dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        try:
            yield
        finally:
            shutdown()


def group_size(handle: torch.ScriptObject) -> int:
    """Ranks of a process group as an operator of torch.distributed gets it."""
    return torch_dist.ProcessGroup.unbox(handle).size()


def _check_environment() -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    remedy = "unset RANK if it was left in the shell, or set all of " + ", ".join(names) + ", as a launcher does"
    for name in names:
        if name not in given:
            raise ValueError(f"RANK={os.environ['RANK']} is set, but {name} is not; {remedy}")
    rank, world = given["RANK"], given["WORLD_SIZE"]
    if not rank.isdecimal() or not world.isdecimal() or int(rank) >= int(world):
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world}: must be whole numbers, RANK below WORLD_SIZE; {remedy}")


def recent_collectives(most: int = 12) -> list[str]:
    """The newest collectives of this rank as torch's flight recorder has them, the newest last, one line each: DeepSpeed's are among them.

    Empty where the recorder is off (no supervisor), or this torch has none for its backend.
    """
    now = time.time_ns()
    return [
        f"{entry['profiling_name']} of group {' '.join(entry['process_group'])}, its number {entry['collective_seq_id']}, "
        f"{entry['input_dtypes']} {entry['input_sizes']}: {'done' if entry['retired'] else entry['state']}, "
        f"begun {(now - entry['time_created_ns']) / 1e9:.1f} s ago"
        for entry in _recorded()[-most:]
    ]


def collectives_begun() -> dict[str, int]:
    """How many collectives of each group this rank has begun, by the same record."""
    begun: dict[str, int] = {}
    for entry in _recorded():
        group_name = " ".join(entry["process_group"])
        begun[group_name] = max(begun.get(group_name, 0), int(entry["collective_seq_id"]))
    return begun


def _recorded() -> list[dict[str, Any]]:
    if not active() or not os.environ.get(_RECORDER):
        return []
    kind = "nccl" if torch_dist.get_backend() == "nccl" else "fr"
    dump = getattr(torch._C._distributed_c10d, f"_dump_{kind}_trace_json", None)  # noqa: SLF001 (torch has no public way)
    return list(parse(dump(), "torch's record of collectives").get("entries", [])) if dump else []


def set_timeout(timeout_s: float) -> None:
    """How long a collective of any existing group may wait. DeepSpeed makes its own groups with torch's default of 30 minutes."""
    if active():
        for group in list(torch_dist.distributed_c10d._world.pg_map):  # noqa: SLF001 (torch has no public list of groups)
            torch_dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)  # noqa: SLF001


def group(size: int) -> Group:
    """This rank's group where all ranks are divided into groups of ``size``, a divisor of their number. Collective at its first call."""
    assert world_size() % size == 0, (world_size(), size)
    number, place = divmod(rank(), size)
    if size in (1, world_size()):
        return Group(size, place, number)
    if size not in _groups:
        with heartbeat.waiting("making groups"):
            made = [torch_dist.new_group(list(range(first, first + size))) for first in range(0, world_size(), size)]
        _groups[size] = made[number]
    return Group(size, place, number, _groups[size])


def everyone() -> Group:
    """All ranks."""
    return group(world_size())


def shutdown() -> None:
    """Leave the process group."""
    if active():
        _groups.clear()
        with heartbeat.waiting("leaving the process group"):
            torch_dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        with heartbeat.waiting("barrier"):
            torch_dist.barrier()


def _waiting(name: str, ranks: Group) -> AbstractContextManager[None]:
    """A collective of a group, as this rank's supervisor sees it."""
    return heartbeat.waiting(name, counted=ranks.size == world_size())


class _AllGather(torch.autograd.Function):
    """Concatenate over a group; the gradient of this rank's slice is the sum of what every rank's loss sends to it."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: Group) -> Tensor:
        ctx.rows, ctx.ranks = local.shape[0], ranks
        return all_gather(local, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        own = torch.empty_like(grad[: ctx.rows])
        with _waiting("reduce_scatter", ctx.ranks):
            torch_dist.reduce_scatter(own, list(grad.chunk(ctx.ranks.size)), group=ctx.ranks.handle)
        return own, None


def all_gather(local: Tensor, ranks: Group | None = None) -> Tensor:
    """[B, ...] on each rank of a group (none: all ranks) to [W, ...] on all of them, in rank order, without gradient.

    Shapes must be equal on all of them.
    """
    ranks = ranks or everyone()
    if ranks.size == 1:
        return local.detach()
    local = local.detach().contiguous()
    pieces = [torch.empty_like(local) for _ in range(ranks.size)]
    with _waiting("all_gather", ranks):
        torch_dist.all_gather(pieces, local, group=ranks.handle)
    return torch.cat(pieces)


def all_gather_together(pieces: Sequence[Tensor], ranks: Group) -> list[Tensor]:
    """As ``all_gather`` of each of several tensors [B, ...] of any types, in one collective: the bytes of a row travel side by side."""
    if ranks.size == 1:
        return [piece.detach() for piece in pieces]
    sizes = [math.prod(piece.shape[1:]) * piece.element_size() for piece in pieces]  # bytes of a row
    flat = [piece.detach().contiguous().view(-1).view(torch.uint8) for piece in pieces]
    rows = [piece.view(len(pieces[0]), size) for piece, size in zip(flat, sizes, strict=True)]
    gathered = all_gather(torch.cat(rows, dim=1), ranks).split(sizes, dim=1)
    # A clone begins where its type may begin.
    copies = [part.clone(memory_format=torch.contiguous_format).view(-1) for part in gathered]
    wide = len(pieces[0]) * ranks.size
    return [copy.view(piece.dtype).view(wide, *piece.shape[1:]) for copy, piece in zip(copies, pieces, strict=True)]


class OnHost:
    """Numbers of a tensor for the host: the copy starts now, the wait for it is in ``get``."""

    def __init__(self, value: Tensor) -> None:
        self._copy = value.to("cpu", non_blocking=True)
        self._done = torch.cuda.Event() if value.is_cuda else None
        if self._done is not None:
            self._done.record()

    def get(self) -> Tensor:
        """The copy, on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy


def exchange_rows(rows: Tensor, wanted: Tensor, ranks: Group, places: Tensor | None = None) -> Tensor:
    """Rows of any rank of a group, only those that are wanted: [R, ...]. Without gradient; shapes of a row equal on all ranks.

    Args:
        rows: this rank's.
        wanted: on the CPU, [size, R] int64, the same on all ranks: what each rank wants; number r * R + b is row b of rank r.
        ranks: the group, of two or more.
        places: [R], where in ``rows`` row b is; none: at b.
    """
    count = wanted.shape[1]
    owner, row = wanted // count, wanted % count
    from_here = owner == ranks.rank  # [size, R]
    chosen = row[from_here].to(rows.device)  # for one rank after another, each as it wants them
    sent = rows.detach()[chosen if places is None else places[chosen]]
    own = owner[ranks.rank]
    received = rows.new_empty((count, *rows.shape[1:]))  # from one rank after another
    sizes = own.bincount(minlength=ranks.size).tolist(), from_here.sum(1).tolist()
    with _waiting("all_to_all", ranks):
        torch_dist.all_to_all_single(received, sent, *sizes, group=ranks.handle)
    return received[own.argsort(stable=True).argsort().to(rows.device)]


def gather(local: Tensor) -> Tensor | None:
    """[B, ...] on each rank to [W * B, ...] on rank 0, in rank order and as a new tensor; none elsewhere. Without gradient.

    Shapes must be equal on all ranks. Only rank 0 holds memory for the whole.
    """
    if world_size() == 1:
        return local.detach().clone()
    local = local.detach().contiguous()
    with heartbeat.waiting("gather"):
        if not is_main():
            torch_dist.gather(local)
            return None
        whole = local.new_empty((world_size() * local.shape[0], *local.shape[1:]))
        torch_dist.gather(local, list(whole.chunk(world_size())))
        return whole


def all_gather_with_grad(local: Tensor, ranks: Group | None = None) -> Tensor:
    """As ``all_gather``, with gradient to every rank's piece, so that one and two ranks compute the same gradient."""
    ranks = ranks or everyone()
    return local if ranks.size == 1 else _AllGather.apply(local, ranks)


def all_reduce_sum(value: Tensor, ranks: Group | None = None) -> Tensor:
    """The sum over a group (none: all ranks), as a new tensor without gradient."""
    ranks = ranks or everyone()
    value = value.detach().clone()
    if ranks.size > 1:
        with _waiting("all_reduce", ranks):
            torch_dist.all_reduce(value, group=ranks.handle)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """The maximum over ranks, as a new tensor on the CPU without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        with heartbeat.waiting("all_reduce"):
            torch_dist.all_reduce(value, op=torch_dist.ReduceOp.MAX)
            return value.cpu()  # on a GPU the wait is here
    return value.cpu()


def gather_objects(value: object) -> list[Any] | None:
    """Every rank's ``value`` on rank 0 in rank order, none elsewhere. Pickles: only between our own processes."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    with heartbeat.waiting("gather_object"):
        torch_dist.gather_object(value, gathered)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    with heartbeat.waiting("broadcast_object"):
        torch_dist.broadcast_object_list(box)
    return box[0]
