"""The one client for OpenAI-compatible chat endpoints (``POST URL/chat/completions``): a judge of captions, a rewriter of captions.

A question waits for a limited time and is asked again, after growing pauses, where nothing or nonsense came back. Every answer is kept in a folder
under the sha256 of what was asked (model, messages, settings; not the address), so that a job that was killed asks only what it lacks, and a score
is computed again without the endpoint. A token comes from the environment alone (``RB_CHAT_TOKEN``) and stands in no file, log or error.
"""

from __future__ import annotations

import base64
import http.client
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rb.core.files import sha256, write_json
from rb.core.strict_json import FormatError, checked, dumps, or_none, parse_foreign, read, text
from rb.core.urls import Url

TOKEN = "RB_CHAT_TOKEN"  # the environment variable
MAX_ANSWER_BYTES = 8 << 20
LONGEST_WAIT_S = 60.0  # between two tries, also where the server asks for more
_CACHED = {"model": text, "answer": text, "finish_reason": or_none(text)}
_AGAIN = (408, 425, 429)  # and every 5xx: the same request may be answered later
_SHOWN = 200  # letters of what a server said

Message = Mapping[str, Any]  # {"role": "user", "content": a text, or a list of parts}

log = logging.getLogger(__name__)


class EndpointError(OSError):
    """No answer to a question; ``refused``: the server refuses this very request, so that others may still be answered."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True)
class Answer:
    """What the model wrote; empty where it wrote nothing.

    Attributes:
        finish_reason: as the server says it: ``stop``, ``length`` where the text was cut.
        kept: it was in the folder of answers, and nobody was asked.
    """

    text: str
    finish_reason: str | None
    kept: bool


@dataclass(frozen=True)
class ChatEndpoint:
    """One model behind one address. Its methods may be called from many threads and processes at once.

    Attributes:
        url: up to and with ``/v1``, as the public clients take it.
        model: its name there.
        answers_dir: where answers are kept; none keeps nothing.
        limit_s: seconds until the head of an answer, and again until its end.
        tries: how often a question is asked at most.
        wait_s: seconds before the second try; twice as long before each further one, at most ``LONGEST_WAIT_S``.
    """

    url: str
    model: str
    answers_dir: Path | None = None
    limit_s: float = 120.0
    tries: int = 6
    wait_s: float = 1.0

    def __post_init__(self) -> None:
        """``ValueError``: not a plain http(s) URL, or a limit or a number of tries that cannot work."""
        if Url(self.url).scheme not in ("http", "https"):
            raise ValueError(f"{self.url}: not the address of an endpoint; give one such as http://HOST:8000/v1")
        if self.tries < 1 or self.limit_s <= 0 or self.wait_s < 0:
            raise ValueError(f"endpoint {self.url}: tries and limit_s must be positive, wait_s 0 or more")

    def ask(self, messages: Sequence[Message], **settings: object) -> Answer:
        """The answer to one question, kept or new.

        Args:
            messages: as in the protocol; ``user`` and ``image_part`` build them.
            settings: other fields of the request: ``temperature``, ``max_tokens``, ``seed``.

        Raises:
            EndpointError: no answer after all tries, or the request is refused.
            CannotWriteError: the answer cannot be kept.
        """
        return self._ask(messages, settings, threading.Event())

    def ask_all(
        self, questions: Iterable[Sequence[Message]], parallel: int = 8, **settings: object
    ) -> Iterator[Answer]:
        """``ask`` of each question, in their order, ``parallel`` at a time; the first error ends it, what was answered is kept."""
        stop = threading.Event()
        waiting: deque[Future[Answer]] = deque()
        with ThreadPoolExecutor(parallel) as pool:
            try:
                for messages in questions:
                    waiting.append(pool.submit(self._ask, messages, settings, stop))
                    if len(waiting) >= 2 * parallel:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                stop.set()  # nobody waits for what is still under way
                for future in waiting:
                    future.cancel()

    def _ask(self, messages: Sequence[Message], settings: Mapping[str, object], stop: threading.Event) -> Answer:
        request = {"model": self.model, "messages": list(messages), **settings}
        body = dumps(request)
        digest = sha256(body)
        path = self.answers_dir / digest[:2] / f"{digest}.json" if self.answers_dir else None
        kept = self._kept(path)
        if kept is not None:
            return kept
        answer = self._tried(body, digest, stop)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"model": self.model, "answer": answer.text, "finish_reason": answer.finish_reason})
        return answer

    def _kept(self, path: Path | None) -> Answer | None:
        """The answer in a file; none where there is no file, or a damaged one, which the new answer replaces."""
        with suppress(FileNotFoundError, FormatError):
            if path is not None:
                row = checked(read(path), str(path), _CACHED)
                return Answer(row["answer"], row["finish_reason"], kept=True)
        return None

    def _tried(self, body: str, digest: str, stop: threading.Event) -> Answer:
        problem = ""
        for attempt in range(self.tries):
            try:
                return self._post(body)
            except _TryAgainError as error:
                problem = str(error)
                pause = min(max(self.wait_s * 2**attempt, error.after_s), LONGEST_WAIT_S)
                pause *= (
                    1 - int(digest[:2], 16) / 1024
                )  # up to a quarter less: many that failed together do not return together
            if attempt + 1 < self.tries:
                log.info("%s: %s; asked again in %.1f s", self.url, problem, pause)
                if stop.wait(pause):
                    break
        kept = f"; what was answered is kept in {self.answers_dir}" if self.answers_dir else ""
        raise EndpointError(
            f"{self.url}: no answer of {self.model} in {attempt + 1} tries ({problem}){kept}; "
            "see that the endpoint runs, then start the same command again"
        )

    def _post(self, body: str) -> Answer:
        """One try. ``_TryAgainError`` where another one may help."""
        import requests  # here: most commands need no endpoint
        import urllib3

        token = os.environ.get(TOKEN, "")
        end = time.monotonic() + self.limit_s
        try:
            with requests.post(
                f"{Url(self.url)}/chat/completions",
                data=body.encode(),
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                auth=_Bearer(token),
                timeout=self.limit_s,
                allow_redirects=False,  # a token goes to the address that was given, and to no other
                stream=True,
            ) as answer:
                end = max(end, time.monotonic() + self.limit_s)
                content = self._content(answer.raw.read1, end)
                status, after = answer.status_code, answer.headers.get("Retry-After", "")
        except (requests.RequestException, OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            raise _TryAgainError(_reason(error, self.limit_s)) from None  # its text may hold what was sent
        said = _hidden(content.decode("utf-8", "replace"), token)
        if status >= 500 or status in _AGAIN:
            raise _TryAgainError(f"HTTP {status}: {said:.{_SHOWN}}", float(after) if after.isdigit() else 0.0)
        if status != 200:
            self._refused(status, said, token)
        return _answer(said)

    def _content(self, read1: Callable[[int], bytes], end: float) -> bytes:
        """The body; ``read1`` gives what has come, so that a body of single bytes cannot outlast the limit."""
        content = b""
        while piece := read1(1 << 16):
            content += piece
            if len(content) > MAX_ANSWER_BYTES:
                raise _TryAgainError(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
            if time.monotonic() > end:
                raise _TryAgainError(f"the answer did not end within {self.limit_s:g} s")
        return content

    def _refused(self, status: int, said: str, token: str) -> NoReturn:
        remedy = "look at model and settings"
        if status in (401, 403):
            remedy = f"set {TOKEN} to " + ("a token that it accepts" if token else "the endpoint's token")
        elif status in (404, 405) or 300 <= status < 400:
            remedy = f"give the address up to and with /v1, and a model that GET {self.url}/models lists"
        line = " ".join(said.split())
        raise EndpointError(
            f"{self.url}: refuses the request (HTTP {status}: {line:.{_SHOWN}}); {remedy}", refused=True
        )


def user(content: str, images: Sequence[bytes] = (), kind: str = "image/jpeg") -> dict[str, Any]:
    """A message of the user: a text, behind encoded images of one kind."""
    if not images:
        return {"role": "user", "content": content}
    return {"role": "user", "content": [*(image_part(i, kind) for i in images), {"type": "text", "text": content}]}


def image_part(content: bytes, kind: str = "image/jpeg") -> dict[str, Any]:
    """An encoded image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(content).decode()}"}}


class _TryAgainError(Exception):
    """Why a try failed; ``after_s``: how long the server wants to be left alone."""

    def __init__(self, problem: str, after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.after_s = after_s


@dataclass(frozen=True)
class _Bearer:
    """Sets the token. As an ``auth`` of requests, so that a login in a ``.netrc`` is not sent in its place."""

    token: str = field(repr=False)

    def __call__(self, request: Any) -> Any:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _answer(said: str) -> Answer:
    """The model's text in the body of an answer; ``_TryAgainError`` for another body, as a proxy sends it."""
    try:
        choice = parse_foreign(said, "answer")["choices"][0]
        content, reason = choice["message"].get("content"), choice.get("finish_reason")
        if isinstance(content, list):  # parts
            content = "".join(part.get("text") or "" for part in content)
        if not isinstance(content, str | None):
            raise TypeError
    except (FormatError, LookupError, TypeError, AttributeError):
        raise _TryAgainError(f"not a chat completion: {' '.join(said.split())[:_SHOWN]!r}") from None
    whole = (content or "").encode("utf-8", "replace").decode()  # without halves of characters
    return Answer(whole, reason if isinstance(reason, str) else None, kept=False)


def _hidden(said: str, token: str) -> str:
    """What a server said, without the token, which some repeat in their errors."""
    return said.replace(token, "***") if token else said


def _reason(error: Exception, limit_s: float) -> str:
    """Why there was no answer, in a few words."""
    name = type(error).__name__
    if "Timeout" in name or "timed out" in str(error):
        return f"no answer within {limit_s:g} s"
    found = re.search(r"\[Errno \d+\] ([\w ]+)", str(error))
    return found[1] if found else name
