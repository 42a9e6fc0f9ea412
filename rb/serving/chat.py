"""OpenAI's form of chat completions, for clients that speak nothing else: an image and the region that is asked about.

The region is ``<box>x1,y1,x2,y2</box>`` in the text, in pixels of the upright image (several are several captions, a line each), or the
alpha channel of the image, whose bounding box is used and said in the answer. Other text is not read: these models caption, they do not chat.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from pydantic import ConfigDict, Field

from rb.serving.engine import Answer
from rb.serving.forms import Decoding, Fields, Limits, Refused, Strict, image_bytes, masked_picture

BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)


class _Open(Fields):
    """Fields of OpenAI's form that mean nothing here are passed over."""

    model_config = ConfigDict(extra="ignore")


class ImageURL(_Open):
    """An image as a data: URL."""

    url: str


class Part(_Open):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str | None = Field(None, max_length=20_000)
    image_url: ImageURL | None = None


class Message(_Open):
    """One turn; only the last of the user is read."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None


class StreamOptions(Strict):
    """What a stream holds besides words."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Chat(_Open):
    """A request of OpenAI's form; fields that do not apply are passed over."""

    model: str | None = Field(None, max_length=200)
    messages: list[Message] = Field(min_length=1, max_length=100)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(1, ge=1, le=1)

    def decoding(self) -> Decoding:
        """The search as this form states it."""
        most = self.max_completion_tokens or self.max_tokens
        return Decoding.model_validate({} if most is None else {"max_new_tokens": min(most, 64), "min_new_tokens": 1})


def read(asked: Chat, limits: Limits) -> tuple[Image.Image, list[list[float]] | None, str]:
    """(the image, its boxes in pixels or none for the whole, what the answer must say of them). ``Refused``: 400 or 422 with the field."""
    turns = [(number, turn) for number, turn in enumerate(asked.messages) if turn.role == "user"]
    if not turns:
        raise Refused(422, "messages: none is of the role user", "messages")
    number, turn = turns[-1]
    where = f"messages.{number}.content"
    parts = turn.content if isinstance(turn.content, list) else []
    images = [part.image_url.url for part in parts if part.type == "image_url" and part.image_url is not None]
    if len(images) != 1:
        raise Refused(422, f"{where}: has {len(images)} images; send one, as image_url with a data: URL", where)
    if not images[0][:5].lower() == "data:":
        raise Refused(400, f"{where}: image_url must be a data: URL; this server fetches nothing", where)
    image, mask = masked_picture(image_bytes(images[0], where), limits, where)
    boxes = [_numbers(found, where) for part in parts for found in BOX.findall(part.text or "")]
    if boxes:
        return image, boxes, ""
    if mask is not None:
        return image, [list(map(float, mask))], f"[box of the mask: {', '.join(map(str, mask))}] "
    return image, None, ""


def _numbers(text: str, where: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != 4:
        raise Refused(422, f"{where}: <box>{text[:60]}</box> must hold four numbers: <box>x1,y1,x2,y2</box>", where)
    return found


def response(asked: Chat, model: str, answers: list[Answer], said: str) -> Response:
    """The answer, whole or as a stream of its words. The search ends before its first word is known, so a stream begins with it all made."""
    text = said + "\n".join(answer.caption for answer in answers)
    made = sum(answer.tokens for answer in answers)
    usage = {"prompt_tokens": 0, "completion_tokens": made, "total_tokens": made}
    head: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
    if not asked.stream:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": None,
        }
        return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
    wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
    events = _events(head | {"object": "chat.completion.chunk"}, text, usage if wants_usage else None)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _events(head: dict[str, Any], text: str, usage: dict[str, int] | None) -> Iterator[str]:
    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": ""})
    for word in re.findall(r"\s*\S+|\s+$", text):
        yield event({"content": word})
    yield event({}, "stop")
    if usage is not None:
        yield f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"
