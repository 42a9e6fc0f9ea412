"""Messages between the controller and the agents of nodes: JSON lines over TCP, after both sides have proved that they know the job's token.

The token is in a file that only the user can read (`job_file.py`); it is never sent. Who does not know it is heard for one short line and a few
seconds. What follows is not encrypted: nothing secret is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

from rb.core.strict_json import parse

LONGEST = 16 << 20  # bytes of one message: stacks of all ranks of a node
_LONGEST_HELLO = 512
HELLO_S = 10.0  # a stranger may hold a thread for so long
_SEND_S = 5  # a message that a peer does not take for so long: it is gone


class RefusedError(Exception):
    """The other side does not know the token, or does not speak this protocol."""


class Wire:
    """One connection. ``receive`` is called by one thread, ``send`` by any."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()

    @property
    def local_address(self) -> str:
        """This side's address."""
        return str(self._socket.getsockname()[0])

    @property
    def peer_address(self) -> str:
        """The other side's address."""
        return str(self._socket.getpeername()[0])

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; ``OSError`` where the connection is lost."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)

    def receive(self, longest: int = LONGEST) -> dict[str, Any]:
        """The next message; ``OSError`` where the connection is lost, `RefusedError` where it is none of ours."""
        line = self._file.readline(longest + 1)
        if not line:
            raise ConnectionResetError("the connection was closed")
        if not line.endswith(b"\n"):
            raise RefusedError(f"a line of more than {longest} bytes, or a cut one")
        try:
            message = parse(line, "message")
        except ValueError as error:
            raise RefusedError(str(error)) from error
        if not isinstance(message, dict):
            raise RefusedError("a message that is not an object")
        return message

    def close(self) -> None:
        """Close the connection; a thread in ``receive`` gets an ``OSError``."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def welcome(connection: socket.socket, token: str) -> tuple[Wire, dict[str, Any]]:
    """The controller's side of the greeting: the connection, and what the agent says of itself. `RefusedError`, ``OSError``."""
    connection.settimeout(HELLO_S)
    wire, challenge = Wire(connection), secrets.token_hex(16)
    wire.send({"challenge": challenge})
    hello = wire.receive(_LONGEST_HELLO)
    if not hmac.compare_digest(
        str(hello.get("proof", "")), _proof(token, "agent", challenge, str(hello.get("challenge", "")))
    ):
        wire.close()
        raise RefusedError("the token is wrong")
    wire.send({"proof": _proof(token, "controller", str(hello["challenge"]), challenge)})
    connection.settimeout(None)
    return wire, hello


def greet(connection: socket.socket, token: str, about: dict[str, Any]) -> Wire:
    """The agent's side of the greeting; ``about`` is what it says of itself. `RefusedError`, ``OSError``."""
    connection.settimeout(HELLO_S)
    wire, challenge = Wire(connection), secrets.token_hex(16)
    theirs = str(wire.receive(_LONGEST_HELLO).get("challenge", ""))
    wire.send(about | {"challenge": challenge, "proof": _proof(token, "agent", theirs, challenge)})
    if not hmac.compare_digest(
        str(wire.receive(_LONGEST_HELLO).get("proof", "")), _proof(token, "controller", challenge, theirs)
    ):
        wire.close()
        raise RefusedError("the controller does not know the token")
    connection.settimeout(None)
    return wire


def _proof(token: str, role: str, challenge: str, own: str) -> str:
    return hmac.new(token.encode(), f"{role} {challenge} {own}".encode(), hashlib.sha256).hexdigest()
