"""Mining on a Ray cluster: Ray places and watches the processes (actors) of each stage, on one machine or many; the files are ours.

A unit (stage, shard) is committed by ``run_stage`` in the actor, as on one machine without Ray, so where and in which order units run changes no byte.
Ray's memory holds names and counts only. Shards of a later stage go first, and a stage waits while enough of its shards wait before the next
one. An actor that dies is replaced, and its unit runs again. Inputs and output folder must be on a file system that all nodes see.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rb.core.locks import FileLock
from rb.core.output import note
from rb.mining.config import missing_package
from rb.mining.inputs import InputShard
from rb.mining.settings import StageSize
from rb.mining.stage import Stage, run_stage
from rb.mining.watch import Watch
from rb.mining.work import LOCK_FILE, Done

TRIES = 3  # of a unit whose actors die
_OBJECT_STORE_BYTES = 100_000_000  # of a cluster that is started here; nothing large goes through it
_LOOK_S = 1.0


@dataclass(frozen=True)
class _Answer:
    """What an actor hands back: the record and whether it was made, or what a user has to know."""

    done: Done | None
    made: bool
    problem: Exception | None


class _Worker:
    """A process of one stage."""

    def __init__(self, stage: Stage, out: Path, before: str | None, max_rejected: float, driver: str) -> None:
        self._stage, self._out, self._before = stage, out, before
        self._max_rejected, self._driver = max_rejected, driver

    def run(self, shard: InputShard) -> _Answer:
        """One unit."""
        try:
            return _Answer(
                *run_stage(self._stage, shard, self._out, self._before, self._max_rejected, self._check), None
            )
        except (ValueError, OSError) as error:
            return _Answer(None, False, error)

    def _check(self) -> None:
        """An actor that outlives its driver for a moment writes nothing: the next driver may have other settings."""
        now = FileLock(self._out / LOCK_FILE).owner()
        if now != self._driver:
            raise ValueError(f"{self._out}: now belongs to {now or 'nobody'}; this actor is of {self._driver}")


@dataclass
class _Pool:
    """The actors of a stage, and the shards (by place in the list of inputs) that wait for it."""

    stage: Stage
    size: StageSize
    idle: list[Any] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    at_work: int = 0

    @property
    def enough(self) -> bool:
        """Whether the stage before should wait."""
        return len(self.waiting) >= 2 * self.size.actors


def run_on_ray(
    stages: Sequence[Stage],
    shards: Sequence[InputShard],
    out: Path,
    sizes: Mapping[str, StageSize],
    max_rejected: float = 1.0,
    address: str | None = None,
) -> None:
    """Run all stages over all shards. The caller holds ``alone_in(out)``.

    Args:
        sizes: by stage; one actor with one CPU where a stage has none.
        max_rejected: as of ``run_unit``.
        address: of a running cluster (``auto``: the one of this machine, as ``ray start`` started it); none starts one here that ends with the job.

    Raises:
        ValueError: Ray is missing or cannot be reached, the cluster is too small; or as of ``run_stage``.
        CannotWriteError: as of ``run_unit``.
    """
    if importlib.util.find_spec("ray") is None:
        raise missing_package("ray")
    hook, on_sigterm = sys.excepthook, signal.getsignal(signal.SIGTERM)
    import ray

    out, shards = out.absolute(), [replace(shard, path=shard.path.absolute()) for shard in shards]
    pools = [_Pool(stage, sizes.get(stage.name, StageSize())) for stage in stages]
    try:
        _connect(ray, pools, address)
        _Job(ray, pools, shards, out, max_rejected).run()
    finally:
        ray.shutdown()  # ends the actors too
        sys.excepthook = hook  # Ray leaves its own behind
        signal.signal(signal.SIGTERM, on_sigterm)


def _connect(ray: Any, pools: Sequence[_Pool], address: str | None) -> None:
    """Join or start a cluster. ``ValueError``: none there, or it has too little for all actors, which would wait for ever."""
    need = {
        "CPU": sum(pool.size.actors * pool.size.cpus for pool in pools),
        "GPU": sum(pool.size.actors * pool.size.gpus for pool in pools),
    }
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # builtins.print stays Python's own
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        cpus = max(os.cpu_count() or 1, int(need["CPU"] + 1))
        own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        for tries_left in (1, 0):
            try:
                ray.init(address="local", **own, **quiet)
                break
            except Exception as error:  # noqa: BLE001 (Ray gives its processes 30 s to come up, and then raises this class)
                ray.shutdown()
                if not tries_left:
                    raise ValueError(
                        f"Ray does not start here ({str(error).splitlines()[0]}); use --local for one process without Ray"
                    ) from None
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"ray.address {address}: no cluster there ({str(error).splitlines()[0]}); start one with `ray start`, or leave it out"
            ) from None
    there = ray.cluster_resources()
    for what, wanted in need.items():
        if wanted > there.get(what, 0):
            ray.shutdown()
            raise ValueError(
                f"the stages ask for {wanted:g} {what}s, the cluster has {there.get(what, 0):g}; lower ray.STAGE.actors, or add nodes"
            )


class _Job:
    """One call of ``run_on_ray``: which actor has which unit."""

    def __init__(
        self, ray: Any, pools: Sequence[_Pool], shards: Sequence[InputShard], out: Path, max_rejected: float
    ) -> None:
        self._ray, self._pools, self._shards, self._out = ray, pools, shards, out
        self._max_rejected = max_rejected
        self._driver = FileLock(out / LOCK_FILE).owner()
        self._at_work: dict[
            Any, tuple[int, int, Any]
        ] = {}  # answer to come -> (number of the stage, place of the shard, actor)
        self._deaths: dict[tuple[int, int], int] = {}
        self._watch = Watch(
            [pool.stage.name for pool in pools],
            [shard.path.stat().st_size for shard in shards],
            {pool.stage.name: pool.size.actors for pool in pools},
        )

    def run(self) -> None:
        """Until every shard is through the last stage."""
        self._pools[0].waiting.extend(range(len(self._shards)))
        for number, pool in enumerate(self._pools):
            pool.idle = [self._new_actor(number) for _ in range(pool.size.actors)]
        while True:
            self._hand_out()
            if not self._at_work:
                break
            answered, _ = self._ray.wait(list(self._at_work), num_returns=1, timeout=_LOOK_S)
            for answer in answered:
                self._take(answer)
        self._watch.say()

    def _hand_out(self) -> None:
        """Give waiting units to idle actors, later stages first."""
        for number in reversed(range(len(self._pools))):
            pool = self._pools[number]
            after = self._pools[number + 1] if number + 1 < len(self._pools) else None
            while pool.waiting and pool.idle and not (after and after.enough):
                place, actor = pool.waiting.popleft(), pool.idle.pop()
                self._at_work[actor.run.remote(self._shards[place])] = number, place, actor

    def _take(self, ref: Any) -> None:
        """An answer, or the death of an actor."""
        number, place, actor = self._at_work.pop(ref)
        pool, shard = self._pools[number], self._shards[place]
        try:
            answer: _Answer = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            deaths = self._deaths[number, place] = self._deaths.get((number, place), 0) + 1
            why = str(error).strip().splitlines()[-1]
            if deaths == TRIES:
                raise ValueError(
                    f"{shard.path}: the process of stage {pool.stage.name} died {deaths} times at it ({why}); give the stage more memory, "
                    "or leave the shard out"
                ) from None
            note(f"{shard.path}: the process of stage {pool.stage.name} died; a new one goes on ({why})")
            pool.idle.append(self._new_actor(number))
            pool.waiting.appendleft(place)
            return
        pool.idle.append(actor)
        if answer.problem is not None:
            raise answer.problem
        assert answer.done is not None
        self._watch.unit(pool.stage.name, place, answer.done, answer.made)
        if number + 1 < len(self._pools):
            self._pools[number + 1].waiting.append(place)

    def _new_actor(self, number: int) -> Any:
        pool = self._pools[number]
        before = self._pools[number - 1].stage.name if number else None
        made = self._ray.remote(_Worker).options(num_cpus=pool.size.cpus, num_gpus=pool.size.gpus, max_restarts=0)
        return made.remote(pool.stage, self._out, before, self._max_rejected, self._driver)
