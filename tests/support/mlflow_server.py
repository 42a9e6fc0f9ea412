"""The real ``mlflow server`` for tests, and a door in front of it that can refuse, fail, hang or talk nonsense.

A server that is stopped, killed and started again keeps its port, so that its clients find it again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.support.processes import free_port

_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONUNBUFFERED": "1",
}


class MlflowServer:
    """``mlflow server`` on ``store``, in its own session."""

    def __init__(self, store: Path, *options: str, **environment: str) -> None:
        self.store, self.port = store, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._options, self._environment = options, environment
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the server)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        folder = self.store.parent
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.store}"]
        command += ["--artifacts-destination", str(folder / "mlartifacts"), "--workers", "1", "--port", str(self.port)]
        environment = os.environ | _ENVIRONMENT | self._environment
        environment.pop("MLFLOW_TRACKING_URI", None)
        self._process = subprocess.Popen(
            [*command, *self._options],
            env=environment,
            cwd=folder,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )
        end = time.monotonic() + 200
        while not self._answers():
            assert self._process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.1)

    def send(self, number: signal.Signals) -> None:
        """A signal to all its processes; SIGKILL is waited for."""
        os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()

    def output(self) -> str:
        """What it has said."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextmanager
def mlflow_server(store: Path, *options: str, **environment: str) -> Iterator[MlflowServer]:
    """A running server, ended at the end."""
    server = MlflowServer(store, *options, **environment)
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            server.send(signal.SIGKILL)


def answer(status: int, body: str, kind: str = "text/html") -> bytes:
    """A whole HTTP answer."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return f"{head}{body}".encode()


HTML = "<html><body>Please log in</body></html>"
NONSENSE = {  # what may stand in the place of a server, and what it answers
    "401": answer(401, "You are not authenticated."),
    "403": answer(403, "Permission denied"),
    "500": answer(500, HTML),
    "502": answer(502, HTML),
    "507": answer(507, "Insufficient Storage"),
    "html": answer(200, HTML),
    "empty": answer(200, ""),
    "a list": answer(200, "[]", "application/json"),
    "wrong types": answer(200, '{"experiments": 7, "run": "x", "metrics": {"a": []}}', "application/json"),
    "cut": answer(200, "{}", "application/json")[:-1].replace(b": 2", b": 9"),
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "closes": b"",
}


class Door:
    """A port in front of a server.

    ``mode`` is "open", "hang" (accepts and never answers), "guarded" (answers 401 to whoever gives no name) or a key of NONSENSE.
    """

    def __init__(self, port: int) -> None:
        self.mode = "open"
        self._port, self._kept = port, []  # type: ignore[var-annotated]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Nobody listens any more."""
        self._listener.close()
        for client in self._kept:
            client.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection, one request: the door says ``Connection: close`` by closing."""
        with suppress(OSError):
            if self.mode == "hang":
                self._kept.append(client)
                return
            with closing(client):
                request = _request(client)
                named = b"\r\nauthorization:" in request.lower()
                if self.mode != "open" and not (self.mode == "guarded" and named):
                    client.sendall(NONSENSE[self.mode.replace("guarded", "401")])
                    return
                with socket.create_connection(("127.0.0.1", self._port)) as server:
                    server.sendall(request)
                    while piece := server.recv(1 << 16):
                        client.sendall(piece)


def _request(client: socket.socket) -> bytes:
    """A whole request, changed so that the server closes the connection after its answer."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = client.recv(1 << 16)
        if not piece:
            return got
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += client.recv(1 << 16)
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body
