"""The controller's side of the connections: listens, greets agents, keeps the newest state of every node, carries requests to it.

One thread reads each connection; a last one tells every agent twice a second that the controller is alive. `RemoteNode` has the methods of
`Node`, so that `job.py` does the same with nodes here and elsewhere.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from rb.launching.node import Assignment
from rb.launching.states import NodeState, rank_from_tree
from rb.launching.wire import RefusedError, Wire, welcome

ALIVE_S = 0.5  # between two signs of life of the controller

log = logging.getLogger(__name__)


class RemoteNode:
    """A node whose agent is connected; as `Node`, but requests are sent and states are those last received."""

    def __init__(self, number: int, host: str, wire: Wire) -> None:
        self.number, self.host = number, host
        self.address = wire.peer_address
        self.facts: dict[str, Any] | None = None
        """What the agent found on its node, once it was asked."""
        self.error = ""
        """Why the agent could not do what it was asked."""
        self._wire, self._lock = wire, threading.Lock()
        self._state = NodeState(number, host)
        self._stacks: dict[int, str] = {}
        self._heard = time.monotonic()
        self._gone = ""
        self._starts = 0
        self._asked_at = 0.0  # when ranks were to be started that it does not report yet

    def start(self, assignment: Assignment) -> None:
        """Ask the agent to start its ranks; states of an earlier start do not count any more."""
        self._starts += 1
        with self._lock:
            self._state, self._asked_at = replace(self._state, ranks=()), time.monotonic()
        self.request("start", number=self._starts, assignment=asdict(assignment))

    def poll(self) -> NodeState:
        """The newest state."""
        with self._lock:
            now = time.monotonic()
            unstarted_s = now - self._asked_at if self._asked_at else 0.0
            return replace(self._state, silent_s=now - self._heard, unstarted_s=unstarted_s, gone=self._gone)

    def stop(self) -> None:
        """Ask every rank to save and leave."""
        self.request("stop")

    def ask_stacks(self) -> None:
        """Have the ranks write their stacks."""
        self.request("stacks")

    def stacks(self) -> dict[int, str]:
        """Python stacks by rank, of those that have answered."""
        with self._lock:
            return dict(self._stacks)

    def kill(self) -> None:
        """End the ranks at once."""
        self.request("kill")

    def ask_facts(self, request: Mapping[str, Any]) -> None:
        """Have the agent look at its node; ``facts`` has them later."""
        self.request("facts", request=dict(request))

    def leave(self, code: int, again: bool = False) -> None:
        """Let the agent end with an exit code; ``again``: the job will be started once more."""
        self.request("leave", code=code, again=again)

    def request(self, what: str, **fields: Any) -> None:
        """Send a request; a lost connection is noted."""
        if not self._gone:
            try:
                self._wire.send({"do": what} | fields)
            except OSError as error:
                self._lost(f"the connection to its agent is lost ({error.strerror or error})")

    def read(self) -> None:
        """Take what the agent sends, until the connection ends. In a thread of its own."""
        try:
            while True:
                self._take(self._wire.receive())
        except (OSError, RefusedError, AttributeError, TypeError, KeyError, ValueError) as error:
            self._lost(f"its agent ended or cannot be understood ({error})")

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()

    def _take(self, message: dict[str, Any]) -> None:
        ranks, number = message.get("ranks"), message.get("number")
        with self._lock:
            self._heard = time.monotonic()
            if isinstance(ranks, list) and number == self._starts:
                states = tuple(rank_from_tree(rank) for rank in ranks)
                self._asked_at = 0.0
                self._state = NodeState(self.number, self.host, states, asked=str(message.get("asked", "")))
            elif message.get("asked"):
                self._state = replace(self._state, asked=str(message["asked"]))
            if "stacks" in message:
                self._stacks = {int(rank): str(text) for rank, text in message["stacks"].items()}
            if "facts" in message:
                self.facts = dict(message["facts"]) | {"received": time.time()}
            if "error" in message:
                self.error = str(message["error"])

    def _lost(self, why: str) -> None:
        with self._lock:
            self._gone = self._gone or why


class Hub:
    """Where agents connect.

    Args:
        token: of the job.
        addresses: of this host, to listen at.
        port: to listen at; 0 takes a free one.

    Raises:
        ValueError: the port is taken, or an address is not this host's.
    """

    def __init__(self, token: str, addresses: tuple[str, ...], port: int = 0) -> None:
        self.nodes: dict[int, RemoteNode] = {}
        self.port = port
        self._token, self._closed = token, threading.Event()
        self._listeners: list[socket.socket] = []
        for address in addresses:
            try:
                listener = socket.create_server((address, self.port), backlog=128)
            except OSError as error:
                self.close()
                raise ValueError(
                    f"port {self.port} of {address}: the controller cannot listen there ({error.strerror}); "
                    "give another one with --control-port, or leave it out for a free one"
                ) from error
            self.port = listener.getsockname()[1]
            self._listeners.append(listener)
            self._start(self._accept, listener)
        self._start(self._tell_alive)

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for node in self.nodes.values():
            node.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True, name=work.__name__).start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._start(self._greet, connection)

    def _greet(self, connection: socket.socket) -> None:
        try:
            wire, hello = welcome(connection, self._token)
            number, host = int(hello["node"]), str(hello["host"])
            node = RemoteNode(number, host, wire)
        except (OSError, RefusedError, KeyError, TypeError, ValueError) as error:
            log.warning("a connection from elsewhere is refused: %s", error)
            connection.close()
            return
        if number in self.nodes:
            log.warning("a second agent of node %d (%s) is refused", number, host)
            wire.close()
            return
        self.nodes[number] = node
        node.read()

    def _tell_alive(self) -> None:
        while not self._closed.wait(ALIVE_S):
            for node in list(self.nodes.values()):
                node.request("alive")
