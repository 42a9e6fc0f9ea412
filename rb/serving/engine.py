"""The engine: requests of many users in common batches, one encoder pass for each image, features of recent images kept.

One thread works. It takes the oldest job, waits at most 10 ms for others that may share its batch, and leaves out jobs that nobody waits
for. Thread-safe; knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rb.api.model import Ready
from rb.core.config import DecodeConfig
from rb.core.modality import modality_spec
from rb.serving.adapters import Adapter, Asked

CAPTION, EMBED, TEXTS = "caption", "embed", "texts"
SPEEDS = 32  # batches of which the rate is taken


class BusyError(Exception):
    """The queue is full."""


class LateError(Exception):
    """A job's deadline passed before its answer."""


@dataclass(frozen=True)
class Answer:
    """What the model says of one box, or of a whole source.

    Attributes:
        log_probability: of the caption, its end token included, in nats.
        tokens: how many it has.
        vectors: [Q, E] of length 1, for ``embed``; [E] for ``texts``.
    """

    caption: str = ""
    log_probability: float = 0.0
    tokens: int = 0
    vectors: Tensor | None = None


@dataclass(eq=False)
class Job:
    """One request to the engine.

    Attributes:
        what: ``caption``, ``embed``, or ``texts``: vectors of ``texts`` in the space of the modality.
        deadline: of ``time.monotonic``.
        done: gets a list of ``Answer``, one for each row of the sources, or each text, in order.
        began: when its batch began, of ``time.monotonic``; none while it waits.
    """

    adapter: Adapter
    asked: Asked
    decode: DecodeConfig
    prompt: str | None = None
    what: str = CAPTION
    texts: tuple[str, ...] = ()
    deadline: float = float("inf")
    done: Future[list[Answer]] = field(default_factory=Future)
    came: float = field(default_factory=time.monotonic)
    began: float | None = None
    ended: float | None = None
    dropped: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Jobs of one key go through the model together."""
        shape = self.asked.sources[0].tensor.shape if self.asked.sources else None
        return id(self.adapter.captioner), self.what, self.asked.modality, self.decode, self.prompt, shape

    @property
    def rows(self) -> int:
        """Answers that the model makes for it."""
        return len(self.texts) + sum(source.rows for source in self.asked.sources)


@dataclass
class EngineLimits:
    """How much the engine takes on.

    Attributes:
        waiting: most jobs that wait or run.
        rows: most captions generated at once, and most images in one encoder pass.
        wait_s: longest wait for other jobs of a batch, in seconds.
        feature_bytes: of kept features.
    """

    waiting: int = 64
    rows: int = 32
    wait_s: float = 0.010
    feature_bytes: int = 256 << 20


class Engine:
    """Holds the models and answers jobs. ``close`` it.

    Attributes:
        counts: ``encoder_calls``, ``encoded`` (sources), ``feature_hits``, ``batches``, ``rows``, ``dropped``, ``late``.
    """

    def __init__(self, adapters: Mapping[str, Adapter], limits: EngineLimits | None = None) -> None:
        assert adapters, "an engine has at least one model"
        self.adapters = dict(adapters)
        self.limits = limits or EngineLimits()
        self.counts: Counter[str] = Counter()
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._feature_bytes = 0
        self._jobs: deque[Job] = deque()
        self._running: list[Job] = []
        self._speeds: deque[tuple[int, float]] = deque(maxlen=SPEEDS)  # jobs of a batch, its seconds
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="rb-engine", daemon=True)
        self._thread.start()

    # -- for callers --------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Jobs that wait or run and that somebody waits for. One that has its answer has left, though its batch may not have ended yet."""
        return len(self._jobs) + sum(not (job.dropped or job.done.done()) for job in self._running)

    @property
    def full(self) -> bool:
        """Whether a job would be refused now."""
        return self.waiting >= self.limits.waiting

    @property
    def seconds_left(self) -> float:
        """Seconds until what waits now is answered, at the rate of the last batches; 0 before the first has ended."""
        speeds = list(self._speeds)
        return self.waiting * sum(seconds for _, seconds in speeds) / max(1, sum(jobs for jobs, _ in speeds))

    def submit(self, job: Job) -> Job:
        """Queue a job; ``job.done`` gets its answers, or ``LateError``. ``BusyError``: the queue is full."""
        with self._changed:
            if self._closed or self.full:
                raise BusyError(f"{self.limits.waiting} requests wait already")
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def drop(self, job: Job) -> None:
        """Nobody waits for a job any more: it leaves the queue, or its batch after the captions that are being made."""
        with self._changed:
            job.dropped = True
            with suppress(ValueError):
                self._jobs.remove(job)
            self.counts["dropped"] += not job.done.done()

    def close(self, timeout_s: float = 10.0) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while jobs := self._next_batch():
            began = time.monotonic()
            try:
                with torch.no_grad():
                    self._texts(jobs) if jobs[0].what == TEXTS else self._answer(jobs)
            except Exception as error:  # noqa: BLE001 (whatever it is, its callers get it and the thread goes on)
                for job in jobs:
                    _fail(job, error)
            with self._changed:
                self._speeds.append((len(jobs), time.monotonic() - began))
                self._running = []

    def _next_batch(self) -> list[Job]:
        """The oldest job and those that share its batch; empty once the engine is closed and has finished."""
        with self._changed:
            while True:
                self._refuse_late()
                if self._jobs:
                    first = self._jobs[0]
                    batch = self._with(first)
                    rest = first.came + self.limits.wait_s - time.monotonic()
                    if rest <= 0 or self._closed or sum(job.rows for job in batch) >= self.limits.rows:
                        for job in batch:
                            self._jobs.remove(job)
                            job.began = time.monotonic()
                        self._running = batch
                        return batch
                    self._changed.wait(rest)
                elif self._closed:
                    return []
                else:
                    self._changed.wait()

    def _with(self, first: Job) -> list[Job]:
        batch, rows = [first], first.rows
        for job in list(self._jobs)[1:]:
            if rows >= self.limits.rows:
                break
            if job.key == first.key and rows + job.rows <= self.limits.rows:
                batch.append(job)
                rows += job.rows
        return batch

    def _refuse_late(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs if job.deadline <= now]:
            self._jobs.remove(job)
            self.counts["late"] += 1
            _fail(job, LateError())

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Features of all sources, then captions in parts of at most ``limits.rows`` rows; jobs that nobody waits for leave between parts."""
        first = jobs[0]
        features, places = self._features_of(first, [source for job in jobs for source in job.asked.sources])
        boxes: list[Tensor] = []
        source_rows: list[int] = []
        owners: list[Job] = []
        sources = [(job, source) for job in jobs for source in job.asked.sources]
        for (job, source), place in zip(sources, places, strict=True):
            source_rows += [place] * source.rows
            owners += [job] * source.rows
            if source.boxes is not None:
                boxes.append(source.boxes)
        device = first.adapter.captioner.model.device
        all_boxes = torch.cat(boxes).to(device) if boxes else None
        assert (all_boxes is not None) == modality_spec(first.asked.modality).regional
        found: dict[Job, list[Answer]] = {job: [] for job in jobs}
        read = self._reader(first)
        live = list(range(len(owners)))
        while live:
            now = time.monotonic()
            live = [row for row in live if not owners[row].dropped and owners[row].deadline > now]
            part, live = live[: self.limits.rows], live[self.limits.rows :]
            if not part:
                break
            rows = torch.tensor([source_rows[row] for row in part], device=device)
            answers = read(features, None if all_boxes is None else all_boxes[part], rows)
            self.counts["batches"] += 1
            self.counts["rows"] += len(part)
            for row, answer in zip(part, answers, strict=True):
                found[owners[row]].append(answer)
        for job, answers in found.items():
            if len(answers) == job.rows:
                _finish(job, [answer for answer in answers for _ in range(job.asked.repeats)])
            else:
                self.counts["late"] += not job.dropped
                _fail(job, LateError())

    def _texts(self, jobs: Sequence[Job]) -> None:
        """Vectors of the texts of all jobs, in one pass."""
        vectors = iter(
            jobs[0].adapter.captioner.embed_texts([text for job in jobs for text in job.texts], jobs[0].asked.modality)
        )
        self.counts["batches"] += 1
        for job in jobs:
            _finish(job, [Answer(vectors=next(vectors)) for _ in job.texts])

    def _reader(self, job: Job) -> Callable[[Tensor, Tensor | None, Tensor], list[Answer]]:
        """What makes answers of frozen features [S, ...], boxes [B, n] and the row of the features that each box is of [B]."""
        captioner, modality = job.adapter.captioner, job.asked.modality
        if job.what == EMBED:

            def embed(features: Tensor, boxes: Tensor | None, rows: Tensor) -> list[Answer]:
                return [Answer(vectors=row) for row in captioner.vectors(modality, features, boxes, rows).cpu()]

            return embed
        how = captioner.search(modality, job.decode, job.prompt)

        def caption(features: Tensor, boxes: Tensor | None, rows: Tensor) -> list[Answer]:
            ids, scores = captioner.model.generate_scored(modality, features, boxes, how, rows)
            ids = ids.cpu()
            special = (ids != how.pad_token_id) & (ids != how.end_token_id)
            rows_of = zip(captioner.text.decode_llm(ids), scores.tolist(), special.sum(dim=1).tolist(), strict=True)
            return [Answer(words, score, tokens) for words, score, tokens in rows_of]

        return caption

    # -- features -----------------------------------------------------------------------------------------------------

    def _features_of(self, job: Job, sources: Sequence[Ready]) -> tuple[Tensor, list[int]]:
        """(frozen features of the distinct sources [S, ...], the row of each source in them), each read by its encoder at most once."""
        modality, model = job.asked.modality, job.adapter.captioner.model
        kind = modality_spec(modality).source
        digests = [_digest(kind, source.tensor) for source in sources]
        distinct = {digest: source.tensor for digest, source in zip(digests, sources, strict=True)}
        held = {digest: self._features[digest] for digest in distinct if digest in self._features}
        self.counts["feature_hits"] += len(held)
        missing = [digest for digest in distinct if digest not in held]
        for start in range(0, len(missing), self.limits.rows):
            part = missing[start : start + self.limits.rows]
            stacked = torch.stack([distinct[digest] for digest in part]).to(model.device)
            self.counts["encoder_calls"] += 1
            self.counts["encoded"] += len(part)
            for digest, row in zip(part, model.encode(modality, stacked), strict=True):
                held[digest] = row.clone()  # not a view, which would keep the whole batch
        for digest, tensor in held.items():
            self._keep(digest, tensor)
        place = {digest: row for row, digest in enumerate(distinct)}
        return torch.stack([held[digest] for digest in distinct]), [place[digest] for digest in digests]

    def _keep(self, digest: bytes, features: Tensor) -> None:
        if digest not in self._features:
            self._features[digest] = features
            self._feature_bytes += features.nbytes
        self._features.move_to_end(digest)
        while self._feature_bytes > self.limits.feature_bytes:
            _, oldest = self._features.popitem(last=False)
            self._feature_bytes -= oldest.nbytes


def _finish(job: Job, answers: list[Answer]) -> None:
    job.ended = time.monotonic()
    with suppress(InvalidStateError):  # cancelled by who does not wait any more
        job.done.set_result(answers)


def _fail(job: Job, error: Exception) -> None:
    """Give an error to whoever waits for a job, if it has no answer yet."""
    with suppress(InvalidStateError):
        job.done.set_exception(error)


def _digest(kind: str, tensor: Tensor) -> bytes:
    """Tells what an encoder reads from everything else that it might."""
    head = f"{kind} {tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(head + tensor.contiguous().numpy().tobytes()).digest()
