"""The page of ``rb demo``: three static files of this package, under a policy that lets it load from its own server only."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from fastapi import FastAPI, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {"": "index.html", "page/page.js": "page.js", "page/page.css": "page.css"}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/``."""
    for path, name in FILES.items():
        data = resources.files("rb.serving").joinpath("page", name).read_bytes()
        app.add_api_route(
            f"/{path}", _answering(data, KINDS[name.rsplit(".", 1)[1]]), methods=["GET"], include_in_schema=False
        )


def _answering(data: bytes, kind: str) -> Callable[[], Response]:
    def answer() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return Response(data, media_type=f"{kind}; charset=utf-8", headers=headers)

    return answer
