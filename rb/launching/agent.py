"""The agent of one node: `python -m rb.launching.agent --job FILE --node K`, started by a launcher, once on each node.

Connects to the controller, starts and watches this node's ranks as it is told, reports what it sees four times a second. When it loses the
controller, or the launcher that started it ends, its ranks are asked to save and leave; those that make no progress any more are ended. So nothing
stays on a node that was cut off.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rb.core.exit_codes import FINISHED, NODE_LOST, guarded, leave
from rb.core.files import write_json
from rb.core.output import note
from rb.core.ranks_here import VISIBLE, free_port
from rb.core.stopping import LAUNCHER_ENDED, Parents
from rb.launching.job_file import JobFile, read_job
from rb.launching.node import Assignment, Node
from rb.launching.patience import ALONE_S, Patience
from rb.launching.wire import RefusedError, Wire, greet

RESULT_VARIABLE = "RB_AGENT_RESULT"  # environment variable: a file for the exit code, where a launcher hides it
CONNECT_S = 60.0  # for reaching the controller
_REPORT_S = 0.25
_STALL_S = 2.0
_LOST = {"do": "lost"}
_OF_THE_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Agent:
    """One node's agent, connected to its controller.

    Args:
        node: its ranks.
        wire: the connection.
        silence_s: the controller counts as lost after so long.
    """

    def __init__(self, node: Node, wire: Wire, silence_s: float) -> None:
        self._node, self._wire, self._silence_s = node, wire, silence_s
        self._parents = Parents(launched=True)
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._heard = time.monotonic()
        self._starts = 0
        self._starting = threading.Lock()
        self._stacks_sent: dict[int, str] = {}
        self._result: dict[str, Any] = {}
        threading.Thread(target=self._read, daemon=True, name="controller").start()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._asked)

    def run(self) -> int:
        """Serve the controller until it lets this agent go, or is lost; returns the exit code."""
        reported = looked = time.monotonic()
        while not self._result:
            # This process stood still; what the controller sent meanwhile is not read yet.
            if time.monotonic() - looked > _STALL_S:
                self._heard = time.monotonic()
            looked = time.monotonic()
            with suppress(queue.Empty):
                self._do(self._requests.get(timeout=_REPORT_S))
                continue  # take all that wait
            if not self._node.asked and self._parents.gone():
                self._node.asked = LAUNCHER_ENDED
            if time.monotonic() - self._heard > self._silence_s:
                self._do(_LOST)
            elif time.monotonic() - reported > _REPORT_S:
                reported = time.monotonic()
                self._report()
        return int(self._result["code"])

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        self._node.asked = self._node.asked or signal.Signals(number).name

    def _read(self) -> None:
        with suppress(OSError, RefusedError):
            while True:
                message = self._wire.receive()
                self._heard = time.monotonic()
                if message.get("do") != "alive":
                    self._requests.put(message)
        self._requests.put(_LOST)

    def _do(self, request: dict[str, Any]) -> None:
        what = request.get("do")
        if what == "facts":
            # In a thread: the disk that it looks at may hang, and the controller must hear of this node all the same.
            threading.Thread(target=self._send_facts, args=(request["request"],), daemon=True).start()
        elif what == "start":
            # In a thread too: looking for GPUs imports torch, and a slow disk under it must not make this node seem lost.
            threading.Thread(target=self._start, args=(request,), daemon=True).start()
        elif what in ("stop", "stacks", "kill"):
            # In a thread too: it waits for a start that is under way, which may hang.
            threading.Thread(target=self._act, args=(what,), daemon=True).start()
        elif what == "leave":
            self._result = {"code": int(request["code"]), "again": bool(request["again"])}
        elif what == "lost":
            self._go_alone()

    def _act(self, what: str) -> None:
        with self._starting:  # no rank may start behind it
            if what == "stop":
                self._node.stop()
            elif what == "stacks":
                self._node.ask_stacks()
            else:
                self._node.kill()

    def _send_facts(self, request: dict[str, Any]) -> None:
        from rb.launching.facts import node_facts

        facts = node_facts(request | {"controller": [self._wire.peer_address, 0]})
        self._send({"facts": facts | {"free_port": free_port()}})

    def _start(self, request: dict[str, Any]) -> None:
        try:
            with self._starting:
                self._node.start(Assignment(**request["assignment"]))
                self._starts = int(request["number"])
        except (ValueError, OSError) as error:
            self._send({"error": str(error)})

    def _report(self) -> None:
        state = self._node.poll()
        message = {"number": self._starts, "ranks": [asdict(rank) for rank in state.ranks], "asked": state.asked}
        stacks = self._node.stacks()
        if stacks != self._stacks_sent:
            message["stacks"] = self._stacks_sent = stacks
        self._send(message)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._wire.send(message)
        except OSError:
            self._requests.put(_LOST)

    def _go_alone(self) -> None:
        """The controller is lost: the ranks save and leave, or are ended."""
        note(f"rb launch: {self._node.host}: the controller of this job is lost; its ranks are asked to save and leave")
        if self._starting.acquire(timeout=ALONE_S):
            self._node.stop()
        patience = Patience(ALONE_S)
        while running := [rank.beat for rank in self._node.poll().ranks if rank.code is None]:
            if patience.over(running):
                note(f"rb launch: {self._node.host}: ranks that make no progress are ended")
                self._node.kill()
            time.sleep(_REPORT_S)
        self._result = {"code": NODE_LOST, "again": False}

    def close(self) -> None:
        """End what is left, and leave the exit code where a launcher hides it."""
        self._node.close()
        self._wire.close()
        file = os.environ.get(RESULT_VARIABLE)
        if file and self._result:
            with suppress(OSError):
                write_json(Path(file), self._result)


def connect(job: JobFile, about: dict[str, Any]) -> Wire:
    """A connection to the controller, at the first of its addresses that is it.

    Raises:
        ValueError: none could be reached.
    """
    end, reasons = time.monotonic() + CONNECT_S, dict[str, str]()
    while time.monotonic() < end:
        for address in job.addresses:
            try:
                return greet(socket.create_connection((address, job.port), 5.0), job.token, about)
            except (OSError, RefusedError) as error:
                reasons[address] = str(error)
        time.sleep(0.5)
    tried = "; ".join(f"{address}: {reason}" for address, reason in reasons.items())
    raise ValueError(
        f"{about['host']}: the controller cannot be reached at port {job.port} ({tried}); open that port between the nodes, "
        "or name an open one with --control-port"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Read the job's file, connect, serve."""
    parser = argparse.ArgumentParser(prog="rb.launching.agent")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--node", type=int, help="number of this node; none: what the launcher's environment says")
    parser.add_argument("--all-devices", action="store_true", help="the launcher has hidden GPUs from this process")
    parser.add_argument(
        "--end-well", action="store_true", help="end with 0; the code is in the file that RB_AGENT_RESULT names"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher's
    args = parser.parse_args(argv)
    job, host = read_job(args.job), socket.gethostname()
    number = args.node if args.node is not None else node_number(os.environ)
    # The launcher's variables are of one process a node; the ranks get their own. Torchrun's would have them look for its store.
    for name in list(os.environ):
        if name in _OF_THE_LAUNCHER or name.startswith(("TORCHELASTIC_", "GROUP_", "ROLE_", "CROSS_")):
            del os.environ[name]
    if args.all_devices:
        os.environ.pop(VISIBLE, None)
    os.environ.update(job.environment)
    wire = connect(job, {"node": number, "host": host, "pid": os.getpid()})
    agent = Agent(Node(number, host, job.silence_s), wire, job.silence_s)
    try:
        code = agent.run()
        return FINISHED if args.end_well else code
    finally:
        agent.close()


def node_number(environ: dict[str, str] | os._Environ[str]) -> int:
    """This node's number among the job's nodes, from the variables of the launcher that started one process on each.

    Raises:
        ValueError: no launcher has said it.
    """
    for name in ("SLURM_NODEID", "GROUP_RANK", "RANK"):  # srun, torchrun, deepspeed
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    raise ValueError("the launcher has not said which node this is; start it with rb launch")


if __name__ == "__main__":
    leave(guarded("rb launch: agent", main))
