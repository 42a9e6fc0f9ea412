"""The page of ``rb demo``: static files of this package, under a policy that lets it load from its own server only; and how it reads clouds.

``examples/`` holds scenes of the toy world (``tests/serving/test_examples.py`` makes them again).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from fastapi import FastAPI, Request, Response

from rb.serving.forms import Points, body_of, cloud

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "png": "image/png",
    "npy": "application/octet-stream",
}
SCRIPTS = ("page.js", "photo.js", "cloud.js", "objects.js")
EXAMPLES = ("scene_1.png", "scene_2.png", "room.npy", "objects.npy")
FILES = {"": "index.html"} | {f"page/{name}": name for name in ("page.css", *SCRIPTS)}
FILES |= {f"page/examples/{name}": f"examples/{name}" for name in EXAMPLES}


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/``, and the points of a cloud's file to it."""
    for path, name in FILES.items():
        data = resources.files("rb.serving").joinpath("page", *name.split("/")).read_bytes()
        answer = _answering(data, KINDS[name.rsplit(".", 1)[1]])
        app.add_api_route(f"/{path}", answer, methods=["GET"], include_in_schema=False)
    service, limits = app.state.service, app.state.service.limits

    @app.post("/v1/points", include_in_schema=False)
    async def points(request: Request) -> Response:
        """The points of a file as little-endian float32; ``X-Columns`` numbers each."""
        asked, upload = await body_of(request, Points, limits)
        found = await service.read(lambda: cloud(asked.points, upload, limits))
        headers = {"X-Columns": str(found.shape[1])}
        return Response(found.astype("<f4").tobytes(), media_type="application/octet-stream", headers=headers)


def _answering(data: bytes, kind: str) -> Callable[[], Response]:
    def answer() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return Response(data, media_type=kind, headers=headers)

    return answer
