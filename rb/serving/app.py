"""The endpoints of ``rb serve`` as a FastAPI application around an engine. Nothing here fetches a URL or writes a file.

Errors are JSON, ``{"error": {"message", "field", "type"}}``: 4xx for what a caller can mend, 429 where the queue is full, 504 past the
deadline. A caller that hangs up frees its place.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import rb
from rb.core.config import DecodeConfig
from rb.serving import chat
from rb.serving.adapters import BASE, TRAINED, Adapter, Asked
from rb.serving.engine import CAPTION, EMBED, TEXTS, Answer, BusyError, Engine, Job, LateError
from rb.serving.forms import (
    Clouds,
    Decoding,
    Embeddings,
    Limits,
    Refused,
    Regions,
    body_of,
    check_boxes,
    cloud,
    picture,
)
from rb.serving.openapi import ERRORS, definitions, error_body, schema

Read = TypeVar("Read")
READ_AT_ONCE = 4  # bodies turned into images and clouds; one may take hundreds of megabytes
LOOK_S = 0.05  # how often a waiting request looks whether its caller is still there, in seconds
ENGINE_STOP_S = 1.0  # nobody waits for the engine once the server has stopped; what runs past this is left
BUSY = "too many requests wait; try again later"
OPEN = ("/healthz", "/", "/page/")  # paths without a token


class Service:
    """An engine behind HTTP: chooses models, waits for answers, counts."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rb_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram("rb_request_seconds", "Seconds of a request", ["path"], registry=self.registry)
        Gauge("rb_waiting", "Requests now in the engine", registry=self.registry).set_function(lambda: engine.waiting)
        for name in ("encoder_calls", "encoded", "feature_hits", "batches", "rows", "dropped", "late"):
            gauge = Gauge(f"rb_engine_{name}", f"Count of the engine: {name}", registry=self.registry)
            gauge.set_function(lambda name=name: engine.counts[name])  # type: ignore[misc]

    @property
    def retry_after(self) -> int:
        """Whole seconds until what waits now is answered or past its deadline; at least 1."""
        return math.ceil(min(max(self.engine.seconds_left, 1.0), self.limits.deadline_s))

    def adapter(self, name: str | None) -> Adapter:
        """The model that a request names; the first by default."""
        known = self.engine.adapters
        if name is not None and name not in known:
            raise Refused(404, f"model: no {name[:80]!r} here; there are {', '.join(known)}", "model")
        return known[name] if name is not None else next(iter(known.values()))

    async def read(self, prepare: Callable[[], Read]) -> Read:
        """What a function makes of a body, on a thread, few at once."""
        async with self._reading:
            return await run_in_threadpool(prepare)

    async def ask(
        self,
        request: Request,
        adapter: Adapter,
        prepare: Callable[[], Asked],
        decoding: Decoding | None = None,
        prompt: str | None = None,
        deadline_s: float | None = None,
        what: str = CAPTION,
        texts: Sequence[str] = (),
    ) -> tuple[list[Answer], dict[str, float]]:
        """(answers in the order of the boxes, timing in milliseconds). ``Refused``: a bad input, 429, 504, 499 for a caller that left."""
        came = time.monotonic()
        if self.engine.full:
            raise Refused(429, BUSY)
        deadline = came + min(deadline_s or self.limits.deadline_s, self.limits.deadline_s)
        try:
            decode = _decode(adapter.captioner.decode, decoding)
            asked = await self.read(prepare)
            if what == CAPTION:
                _check_length(adapter, asked, decode, prompt)
            job = self.engine.submit(Job(adapter, asked, decode, prompt, what, tuple(texts), deadline))
        except BusyError:
            raise Refused(429, BUSY) from None
        except ValueError as error:
            raise Refused(422, str(error), _field(str(error))) from None
        try:
            answers = await self._wait(request, job)
        except LateError:
            raise Refused(504, f"no answer within {deadline - came:.3g} s") from None
        except ValueError as error:  # a prompt that the tokenizer or the model cannot take
            raise Refused(422, str(error)) from None
        end = time.monotonic()
        began = job.began or end
        timing = {
            "prepare": job.came - came,
            "queue": began - job.came,
            "model": (job.ended or end) - began,
            "total": end - came,
        }
        return answers, {name: round(1000 * value, 2) for name, value in timing.items()}

    async def _wait(self, request: Request, job: Job) -> list[Answer]:
        answer = asyncio.wrap_future(job.done)
        try:
            while True:
                rest = job.deadline - time.monotonic()
                if rest <= 0:
                    raise LateError
                done, _ = await asyncio.wait({answer}, timeout=min(LOOK_S, rest))
                if done:
                    return answer.result()
                if await request.is_disconnected():
                    raise Refused(499, "the caller left")
        except asyncio.CancelledError:  # by uvicorn, of what still runs when its time to stop is over
            raise Refused(503, "the server stops") from None
        finally:
            if not answer.done():
                self.engine.drop(job)
                answer.cancel()


def _decode(run: DecodeConfig, asked: Decoding | None) -> DecodeConfig:
    changes = {} if asked is None else asked.model_dump(exclude_none=True)
    try:
        return dataclasses.replace(run, **changes)
    except ValueError as error:
        raise Refused(422, str(error).replace("decode.", "decoding."), "decoding") from None


def _check_length(adapter: Adapter, asked: Asked, decode: DecodeConfig, prompt: str | None) -> None:
    """``Refused`` where the LLM has fewer positions than soft prompt, prompt and caption take."""
    captioner = adapter.captioner
    places = getattr(captioner.model.blip2.language_model.config, "max_position_embeddings", None)
    text = captioner.text if prompt is None else dataclasses.replace(captioner.text, prompt=prompt)
    taken = captioner.model.blip2.query_tokens.shape[1] + text.encode_prompt(asked.modality).shape[1]
    if places is not None and taken + decode.max_new_tokens > places:
        field = "decoding" if prompt is None else "prompt"
        raise Refused(
            422,
            f"{field}: {taken} tokens before the caption and {decode.max_new_tokens} of it are more than the LLM's {places}",
            field,
        )


def _field(message: str) -> str | None:
    """The field that a message of the API begins with: ``boxes[0][3]: ...`` is the box 3 of the one source."""
    head = message.split(":")[0].strip()
    return head if head.replace("[", "").replace("]", "").replace("_", "").isalnum() else None


def answered(
    adapter: Adapter, boxes: list[list[float]] | None, answers: list[Answer], timing: dict[str, float]
) -> dict[str, Any]:
    """Captions as the endpoints send them."""
    asked: list[list[float] | None] = [None] if boxes is None else list(boxes)
    rows = [
        {"box": box, "caption": row.caption, "log_probability": row.log_probability, "tokens": row.tokens}
        for box, row in zip(asked, answers, strict=True)
    ]
    reads = {TRAINED: "boxes" if boxes else "the whole", BASE: "the whole image, whatever the box"}
    return {
        "model": adapter.name,
        "reads": reads.get(adapter.kind, "the image cut at each box"),
        "captions": rows,
        "timing_ms": timing,
    }


def make_app(engine: Engine, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The application; it closes the engine at its end.

    Args:
        token: what ``Authorization: Bearer`` must hold; none leaves all paths open.
    """
    limits = limits or Limits()
    service = Service(engine, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        await run_in_threadpool(engine.close, ENGINE_STOP_S)

    # Its own pages of documentation load scripts from a CDN; /openapi.json says the same.
    app = FastAPI(title="rb serve", version=rb.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service

    made_by_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        made = made_by_fastapi()
        made.setdefault("components", {}).setdefault("schemas", {}).update(
            definitions(Regions, Clouds, Embeddings, chat.Chat)
        )
        return made

    app.openapi = openapi  # type: ignore[method-assign]
    _answer_errors(app, service)
    app.add_middleware(_Guard, service=service, token=token)
    _add_state(app, service)
    _add_captions(app, service)
    return app


def _answer_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        del request
        headers = {"Retry-After": str(service.retry_after)} if error.status == 429 else {}
        return JSONResponse(error_body(error.status, error.message, error.field), error.status, headers)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return JSONResponse(
            error_body(error.status_code, f"{request.method}: {error.detail}", None), error.status_code, error.headers
        )


class _Guard:
    """Around every request: the token before it, the counters behind it.

    Plain ASGI: behind Starlette's own class for middleware an endpoint does not learn that its caller has left.
    """

    def __init__(self, app: ASGIApp, service: Service, token: str | None) -> None:
        self.app, self.service, self.token = app, service, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, path = time.monotonic(), scope["path"]
        known = path if any(getattr(route, "path", None) == path for route in scope["app"].routes) else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.service.requests.labels(known, message["status"]).inc()
                self.service.seconds.labels(known).observe(time.monotonic() - start)
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        sent = dict(scope["headers"]).get(b"authorization", b"")
        needs = self.token is not None and path not in OPEN and not path.startswith("/page/")
        if needs and not secrets.compare_digest(sent, f"Bearer {self.token}".encode()):
            message = "authorization: send the header Authorization: Bearer TOKEN"
            refusal = JSONResponse(error_body(401, message, "authorization"), 401, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, counted)
        else:
            await self.app(scope, receive, counted)


def _add_state(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the server takes requests."""
        return {"ok": True, "waiting": engine.waiting}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(service.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that requests may name, the default first."""
        rows = [
            {
                "id": name,
                "object": "model",
                "owned_by": "rb",
                "created": 0,
                "kind": one.kind,
                "modalities": list(one.captioner.modalities),
            }
            for name, one in engine.adapters.items()
        ]
        return {"object": "list", "data": rows}


def _add_captions(app: FastAPI, service: Service) -> None:
    limits = service.limits

    async def captions(request: Request, asked: Regions | Clouds, ready: Callable[[Adapter], Asked]) -> dict[str, Any]:
        check_boxes(asked.boxes, limits)
        adapter = service.adapter(asked.model)
        answers, timing = await service.ask(
            request, adapter, partial(ready, adapter), asked.decoding, asked.prompt, asked.deadline_s
        )
        return answered(adapter, asked.boxes, answers, timing)

    @app.post("/v1/regions", responses=ERRORS, openapi_extra=dict(schema(Regions)))
    async def regions(request: Request) -> dict[str, Any]:
        """Captions of an image or of boxes in it."""
        asked, upload = await body_of(request, Regions, limits)

        def ready(adapter: Adapter) -> Asked:
            return adapter.ask_image(picture(asked.image, upload, limits), asked.boxes, asked.box_format)

        return await captions(request, asked, ready)

    @app.post("/v1/clouds", responses=ERRORS, openapi_extra=dict(schema(Clouds)))
    async def clouds(request: Request) -> dict[str, Any]:
        """Captions of a point cloud or of boxes in it."""
        asked, upload = await body_of(request, Clouds, limits)

        def ready(adapter: Adapter) -> Asked:
            return adapter.ask_cloud(cloud(asked.points, upload, limits), asked.boxes, asked.box_format)

        return await captions(request, asked, ready)

    @app.post("/v1/embeddings", responses=ERRORS, openapi_extra=dict(schema(Embeddings)))
    async def embeddings(request: Request) -> dict[str, Any]:
        """Vectors of the ITC space, of length 1: of boxes of an image, one for each query token, or of texts, one each.

        How well a text fits a box is the largest product of its vector with one of the box's.
        """
        asked, upload = await body_of(request, Embeddings, limits)
        check_boxes(asked.boxes, limits)
        adapter = service.adapter(asked.model)
        if adapter.kind != TRAINED:
            raise Refused(422, f"model: {adapter.name} has no ITC space; name a checkpoint", "model")
        image, boxes, texts = asked.image, asked.boxes, asked.texts
        if texts is not None and (image, boxes) == (None, None):
            answers, timing = await service.ask(
                request,
                adapter,
                lambda: adapter.ask_texts(asked.modality),
                deadline_s=asked.deadline_s,
                what=TEXTS,
                texts=texts,
            )
        elif image is not None and boxes is not None and texts is None:
            answers, timing = await service.ask(
                request,
                adapter,
                lambda: adapter.ask_image(picture(image, upload, limits), boxes, asked.box_format),
                deadline_s=asked.deadline_s,
                what=EMBED,
            )
        else:
            raise Refused(422, "boxes: send an image and boxes, or texts alone", "boxes")
        vectors = [row.vectors.tolist() for row in answers if row.vectors is not None]
        return {"model": adapter.name, "vectors": vectors, "timing_ms": timing}

    @app.post("/v1/chat/completions", responses=ERRORS, openapi_extra=dict(schema(chat.Chat)))
    async def completions(request: Request) -> Response:
        """Captions in the form of OpenAI's chat completions."""
        asked, _ = await body_of(request, chat.Chat, limits)
        adapter = service.adapter(asked.model)
        image, boxes, said = await service.read(partial(chat.read, asked, limits))
        check_boxes(boxes, limits)
        answers, _ = await service.ask(
            request, adapter, lambda: adapter.ask_image(image, boxes, "pixels"), asked.decoding(), None, None
        )
        return chat.response(asked, adapter.name, answers, said)
