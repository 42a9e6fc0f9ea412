"""The form of requests and errors for OpenAPI, of which clients are generated: bodies are read by ``body_of``, so FastAPI does not know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from rb.serving.forms import FORM, JSON, Fields

_REFERENCE = "#/components/schemas/{model}"  # where OpenAPI looks for a type
_WHEN = {
    400: "a body or URL that cannot be used",
    401: "no token, or a wrong one",
    404: "no such model",
    413: "too many bytes, pixels or points",
    415: "another content type",
    422: "a field, image, box or cloud that cannot be used; `field` names it",
    429: "too many requests wait",
    503: "the server stops",
    504: "no answer in time",
}


class ErrorDetail(BaseModel):
    """What is wrong, and with which field; ``param`` is OpenAI's word for it."""

    message: str
    field: str | None
    param: str | None
    type: str
    code: int


class Error(BaseModel):
    """The form of every error."""

    error: ErrorDetail


def error_body(status: int, message: str, field: str | None) -> dict[str, Any]:
    """An error as it is sent."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    detail = ErrorDetail(message=message, field=field, param=field, type=kind, code=status)
    return Error(error=detail).model_dump()


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": when} for status, when in _WHEN.items()
}


def schema(kind: type[Fields]) -> Mapping[str, Any]:
    """The ``requestBody`` of an endpoint."""
    made = kind.model_json_schema(ref_template=_REFERENCE)
    made.pop("$defs", None)
    content: dict[str, Any] = {JSON: {"schema": made}}
    if kind.upload is not None:
        field = kind.upload[0]
        as_form = dict(made["properties"]) | {field: {"type": "string", "format": "binary"}}
        content[FORM] = {
            "schema": {"type": "object", "properties": as_form, "required": [field], "additionalProperties": False}
        }
    return {"requestBody": {"required": True, "content": content}}


def definitions(*kinds: type[BaseModel]) -> dict[str, Any]:
    """What the schemas of bodies refer to, by name."""
    return {
        name: one
        for kind in kinds
        for name, one in kind.model_json_schema(ref_template=_REFERENCE).get("$defs", {}).items()
    }
