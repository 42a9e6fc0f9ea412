"""Stores on loopback: an S3 server (moto's), HTTP servers with and without byte ranges, and a proxy that makes a store fail by a seeded draw."""

from __future__ import annotations

import http.client
import logging
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from rb.data import store
from rb.data.byte_cache import FOLDER, LIMIT

KEY, SECRET = "AKIATESTTESTTESTTEST", "very-secret-and-nowhere-else"
BUCKET = "shards"
FAULTS = ("500", "503", "reset", "short")
# moto looks who asks, and not whether they know the secret.
_SIGNED = {
    "Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
}


class S3:
    """moto's S3 server in a thread of this process; what it holds outlives ``stop`` and ``start``."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self._make = partial(ThreadedMotoServer, "127.0.0.1", verbose=False)
        self._server = self._make(port=0)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    @property
    def environment(self) -> dict[str, str]:
        return s3_environment(self.port)

    def upload(self, folder: Path, prefix: str) -> str:
        """The files of a folder as objects; their URL."""
        requests.put(self._bucket, headers=_SIGNED, timeout=30).raise_for_status()
        for file in sorted(folder.iterdir()):
            self.put(f"{prefix}/{file.name}", file.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, content: bytes) -> None:
        requests.put(f"{self._bucket}/{key}", content, headers=_SIGNED, timeout=30).raise_for_status()

    def delete(self, key: str) -> None:
        requests.delete(f"{self._bucket}/{key}", headers=_SIGNED, timeout=30).raise_for_status()

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = self._make(port=self.port)
        self._server.start()

    @property
    def _bucket(self) -> str:
        return f"http://127.0.0.1:{self.port}/{BUCKET}"


def s3_environment(port: int) -> dict[str, str]:
    """The variables with which any S3 client reads from a server on loopback."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass


class _Proxy(_Quiet):
    def do_GET(self) -> None:
        proxy: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        fault = proxy.draw()
        if fault == "short" and self.command == "HEAD":
            fault = "reset"
        if fault == "reset":
            # Linger of 0 s: the other side sees a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=30)
        try:
            upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
        except OSError:  # the server is away: so is this one
            self.close_connection = True
            return
        finally:
            upstream.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") or str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "short":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 (http.server's name)


class FaultyProxy:
    """In front of a server on loopback: of each request a draw decides whether it fails, and how.

    Args:
        upstream: port of the server.
        share: of requests that fail.
        seed: of the draw.

    Attributes:
        counted: requests, and faults by kind.
    """

    def __init__(self, upstream: int, share: float, seed: int) -> None:
        self.upstream, self.share = upstream, share
        self.counted: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def draw(self) -> str:
        with self._lock:
            fault = self._random.choice(FAULTS) if self._random.random() < self.share else "none"
            self.counted[fault] += 1
            return fault

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Ranged(SimpleHTTPRequestHandler):
    """Python's own handler with what it lacks: byte ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if found is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        start, end = int(found[1]), min(int(found[2]) + 1, len(content))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(content[start:end])


class _Plain(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


class _Leads(_Quiet):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.server.target + self.path)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (http.server's name)


@contextmanager
def http_server(folder: Path, ranges: bool = True) -> Iterator[str]:
    """URL of a server that serves a folder; Python's own has no byte ranges."""
    with served(partial(_Ranged if ranges else _Plain, directory=str(folder))) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def leading_server(target: str) -> Iterator[str]:
    """URL of a server that sends everybody to the same path below ``target``."""
    with served(_Leads) as server:
        server.target = target  # type: ignore[attr-defined]
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def served(handler: Any) -> Iterator[ThreadingHTTPServer]:
    """A server on loopback whose requests ``handler`` answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def reading_from(port: int, cache: Path, gigabytes: float = 1.0) -> Iterator[None]:
    """Inside, this process and those that it starts read ``s3://`` from a server on loopback, through a cache for this test alone."""
    variables = s3_environment(port) | {FOLDER: str(cache), LIMIT: str(gigabytes)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(store, "_systems", {})  # a client reads the environment when it is made
        yield
