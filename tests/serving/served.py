"""A real uvicorn on a thread of the test, `rb serve` as a process of its own, and what their requests are made of."""

from __future__ import annotations

import base64
import io
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import uvicorn
from PIL import Image

from rb.serving.adapters import Adapter
from rb.serving.app import make_app
from rb.serving.engine import Engine, EngineLimits
from rb.serving.forms import Limits
from rb.serving.page_files import add_page
from tests.support import processes
from tests.support.processes import Started


class Served:
    """A server on a thread."""

    def __init__(
        self, models: dict[str, Adapter], token: str | None = None, waiting: int = 64, points: int = 1000
    ) -> None:
        self.engine = Engine(models, EngineLimits(waiting=waiting))
        limits = Limits(body_bytes=4 << 20, pixels=400_000, points=points)
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


class Process:
    """A server whose temporary folder and home are folders of the test."""

    def __init__(self, run: Path, folder: Path, *options: str) -> None:
        self.folders = [folder / name for name in ("tmp", "home")]
        for made in self.folders:
            made.mkdir()
        words = ("serve", "--checkpoint", run, "--port", "0", *options)
        self.started: Started = processes.start(
            "rb.cli", *words, TMPDIR=str(self.folders[0]), HOME=str(self.folders[1])
        )
        until = time.monotonic() + 120
        while not (found := re.search(r"(http://[\d.:]+): ", self.started.output())):
            assert self.started.poll() is None, self.started.output()
            assert time.monotonic() < until, self.started.output()
            time.sleep(0.05)
        self.url = found[1]


def serving(run: Path, folder: Path) -> Iterator[Process]:
    """A server that ends with the fixture, if the test has not ended it."""
    made = Process(run, folder)
    yield made
    if made.started.poll() is None:
        made.started.send(signal.SIGKILL)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()
