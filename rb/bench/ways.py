"""Ways to make a training step of one model, each timed by part: ours, the baseline's, ours from stored features, without ITM, compiled."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rb.core.batch import Batch, LossTerms
from rb.costs.executed import Counter, Counts, by_parts
from rb.costs.memory import Saved
from rb.costs.needed import needed
from rb.costs.real_step import peak_bytes
from rb.model.region_blip import RegionBLIP

OURS, BASELINE, FEATURES, NO_ITM, COMPILED = "ours", "baseline", "features", "no_itm", "compiled"
ALSO = (FEATURES, NO_ITM, COMPILED)  # that are measured where they are asked for
BACKWARD, OPTIMIZER = "backward", "optimizer"


class Clock:
    """Seconds by part: of the processor, or between events of the GPU. Time inside an inner part is the inner one's alone."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._open: list[str] = ["rest"]

    def _mark(self) -> None:
        now: Any = time.process_time()
        if self._cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((self._open[-1], now))

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """As ``Counter.part``."""
        self._mark()
        self._open.append(name)
        try:
            yield
        finally:
            self._mark()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """By part, from the first mark to the last."""
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            found[part] += before.elapsed_time(after) / 1e3 if self._cuda else after - before
        return dict(found)


class Way:
    """A way to make a step of a model, and what was measured of it.

    Args:
        forward: ``batch -> losses``, by this model.
        from_features: read what the frozen encoder made of the sources before, as a set of ``rb cache-features`` brings it.
        without: loss terms that get a weight of 0, so that nothing of them is computed.
        graphs: of a compiled model whether its graphs run, or its parts as they are; none: of a model that is not compiled.
    """

    def __init__(
        self,
        model: RegionBLIP,
        forward: Callable[[Batch], LossTerms],
        from_features: bool = False,
        without: Sequence[str] = (),
        graphs: bool | None = None,
    ) -> None:
        self.model, self._forward, self._from_features, self.graphs = model, forward, from_features, graphs
        weights = model.config.loss_weights | dict.fromkeys(without, 0.0)
        self._config = replace(model.config, loss_weights=weights)
        self._optimizer = torch.optim.AdamW(
            model.trainable_parameters().values(), lr=0.0, weight_decay=0.0, fused=model.device.type == "cuda"
        )
        self.rounds: list[dict[str, float]] = []  # seconds by part

    def batch_of(self, batch: Batch) -> Batch:
        """What this way reads of a micro-batch with sources."""
        if not self._from_features:
            return batch
        return replace(batch, inputs=self.model.frozen_features(batch.modality, batch.inputs), are_features=True)

    @contextlib.contextmanager
    def _configured(self) -> Iterator[None]:
        whole, self.model.config = self.model.config, self._config
        try:
            yield
        finally:
            self.model.config = whole

    def _stance(self, graphs: bool) -> contextlib.AbstractContextManager[object]:
        if self.graphs is None:  # the compiler takes seconds to import
            return contextlib.nullcontext()
        return torch.compiler.set_stance("default" if graphs else "force_eager")

    def _total(self, batch: Batch) -> Tensor:
        with self._configured(), self._stance(bool(self.graphs)):
            return self._forward(batch).total

    def needed(self, batch: Batch) -> dict[str, float]:
        """FLOPs of a micro-batch, by part."""
        with self._configured():
            return needed(self.model, batch, len(batch))

    def gradients(self, batch: Batch) -> None:
        """Forward and backward."""
        self._total(batch).backward()

    def clear(self) -> None:
        """Without gradients, as a step begins."""
        self.model.zero_grad(set_to_none=True)

    def count(self, batch: Batch) -> dict[str, Counts]:
        """What a forward and backward pass executes, by part. Kernels of a graph cannot be seen: its parts are counted as they are."""
        counter = Counter()
        with self._configured(), self._stance(graphs=False), by_parts(counter), counter:
            self._forward(batch).total.backward()
        self.clear()
        return counter.found.parts

    def saved(self, batch: Batch) -> float:
        """Bytes that autograd keeps between forward and backward."""
        held: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        saved = Saved([*held, *(v for v in vars(batch).values() if isinstance(v, Tensor))])
        with saved:
            total = self._total(batch)
        saved.close()
        del total
        return float(saved.bytes)

    def peak(self, batch: Batch) -> float:
        """Bytes above the weights at the worst moment of forward and backward."""
        self.clear()
        found = peak_bytes(lambda: self.gradients(batch), self.model.device)
        self.clear()
        return found

    def take_turn(self, batch: Batch) -> None:
        """One step, timed."""
        clock = Clock(self.model.device)
        with by_parts(clock), clock.part("rest"):
            total = self._total(batch)
            with clock.part(BACKWARD):
                total.backward()
            with clock.part(OPTIMIZER):
                self._optimizer.step()
        self.clear()
        self.rounds.append(clock.seconds())

    @property
    def seconds(self) -> list[float]:
        """Of each round."""
        return [sum(parts.values()) for parts in self.rounds]


def ways_of(model: RegionBLIP, also: Sequence[str], compiled: bool = False) -> dict[str, Way]:
    """Ours, and those of ``ALSO`` that are asked for.

    Args:
        compiled: all of them are to be compiled.
    """
    graphs = compiled if compiled or COMPILED in also else None
    found = {
        OURS: Way(model, model, graphs=graphs),
        FEATURES: Way(model, model, from_features=True, graphs=graphs),
        NO_ITM: Way(model, model, without=("itm",), graphs=graphs),
        COMPILED: Way(model, model, graphs=True),
    }
    return {name: way for name, way in found.items() if name == OURS or name in also}
