"""A chat endpoint on loopback, which answers by a function and fails in the ways of `FAULTS`, one a request, in the order given."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_S = 2.0  # longer than any test's time limit
# name -> (HTTP status, body); the others are below
BODIES = {
    "500": (500, b"broken"),
    "503": (503, b'{"error": "loading"}'),
    "429": (429, b"too many"),
    "400": (400, b'{"error": {"message": "context too long"}}'),
    "401": (401, b'{"error": {"message": "Incorrect API key provided: TOKEN"}}'),
    "404": (404, b'{"detail": "Not Found"}'),
    "redirect": (302, b""),
    "html": (200, b"<html>A proxy greets you</html>"),
    "empty": (200, b""),
    "cut": (200, b'{"choices": [{"message": {"content": "ha'),
    "no_choices": (200, b'{"choices": []}'),
    "number": (200, b'{"choices": [{"message": {"content": 7}}]}'),
    "deep": (200, b"[" * 9000),
}
FAULTS = (*BODIES, "reset", "slow", "drip")


class ChatServer:
    """``answer(request)`` gives the text; ``requests`` holds every request that came, ``tokens`` its Authorization header."""

    def __init__(self, answer: Callable[[dict[str, Any]], str | None], faults: Sequence[str] = ()) -> None:
        self.requests: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.faults = list(faults)
        self.answer = answer
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                token = self.headers["Authorization"]
                with outer._lock:
                    outer.requests.append(request)
                    outer.tokens.append(token)
                    fault = outer.faults.pop(0) if outer.faults else ""
                if fault:
                    self._fail(fault, token or "")
                elif self.path != "/v1/chat/completions":
                    self._send(*BODIES["404"])
                else:
                    choice = {"index": 0, "message": {"role": "assistant", "content": outer.answer(request)}}
                    self._send(200, json.dumps({"choices": [{**choice, "finish_reason": "stop"}]}).encode())

            def _fail(self, fault: str, token: str) -> None:
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                elif fault == "slow":
                    time.sleep(SLOW_S)
                elif fault == "drip":
                    self.send_response(200)
                    self.end_headers()
                    end = time.monotonic() + SLOW_S
                    while time.monotonic() < end:
                        self.wfile.write(b" ")
                        time.sleep(0.05)
                else:
                    status, body = BODIES[fault]
                    self._send(status, body.replace(b"TOKEN", token.removeprefix("Bearer ").encode()))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/v1/chat/completions")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...  # a client that left

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def chat_server(answer: Callable[[dict[str, Any]], str | None], faults: Sequence[str] = ()) -> Iterator[ChatServer]:
    server = ChatServer(answer, faults)
    try:
        yield server
    finally:
        server.stop()
