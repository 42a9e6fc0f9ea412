"""A real uvicorn on a thread of the test, and what its requests are made of."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

import requests
import uvicorn
from PIL import Image

from rb.serving.adapters import Adapter
from rb.serving.app import make_app
from rb.serving.engine import Engine, EngineLimits
from rb.serving.forms import Limits
from rb.serving.page_files import add_page


class Served:
    """A server on a thread."""

    def __init__(self, models: dict[str, Adapter], token: str | None = None, waiting: int = 64) -> None:
        self.engine = Engine(models, EngineLimits(waiting=waiting))
        limits = Limits(body_bytes=4 << 20, pixels=400_000, points=1000)
        app = make_app(self.engine, limits, token)
        add_page(app)
        config = uvicorn.Config(app, port=0, log_level="warning", lifespan="on")
        self.socket = config.bind_socket()
        self.socket.listen()  # requests may come before the thread serves them
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def post(self, path: str, body: Any, **more: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60, **more)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()
