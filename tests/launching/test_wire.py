"""Who may speak to a controller, and what a stranger can do to it: nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rb.launching.environment import launcher_environment, node_variables, shared_variables
from rb.launching.hub import Hub
from rb.launching.job_file import JobFile, job_path, read_job, write_job
from rb.launching.wire import RefusedError, greet

ABOUT = {"node": 0, "host": "one", "clock": 0.0}


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub("the token", ("127.0.0.1",))
    yield made
    made.close()


def connection(hub: Hub) -> socket.socket:
    return socket.create_connection(("127.0.0.1", hub.port), 10)


def test_only_who_knows_the_token_is_a_node(hub: Hub) -> None:
    with pytest.raises((RefusedError, OSError)):
        greet(connection(hub), "another token", ABOUT)
    assert hub.nodes == {}
    wire = greet(connection(hub), "the token", ABOUT)
    while 0 not in hub.nodes:
        time.sleep(0.01)
    with pytest.raises((RefusedError, OSError)):  # a second node 0: it is let in by its token, and shown out
        greet(connection(hub), "the token", ABOUT).receive()
    hub.nodes[0].stop()
    while wire.receive() != {"do": "stop"}:
        pass
    wire.close()
    while not hub.nodes[0].poll().gone:
        time.sleep(0.01)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        b'{"node": 0}\n',
        b"[" * 10000 + b"\n",
        b'{"proof": NaN}\n',
        b'"a"\n',
    ],
)
def test_a_stranger_is_no_node_and_stops_nothing(hub: Hub, said: bytes) -> None:
    stranger = connection(hub)
    stranger.sendall(said)
    wire = greet(connection(hub), "the token", ABOUT)  # while the stranger is heard
    while 0 not in hub.nodes:
        time.sleep(0.01)
    assert len(hub.nodes) == 1
    wire.close()
    stranger.close()


def test_an_agent_does_not_obey_who_only_claims_to_be_its_controller() -> None:
    false = socket.create_server(("127.0.0.1", 0))

    def claim() -> None:
        there, _ = false.accept()
        there.sendall(b'{"challenge": "00"}\n')
        there.recv(4096)
        there.sendall(json.dumps({"proof": "0" * 64}).encode() + b"\n")

    threading.Thread(target=claim, daemon=True).start()
    with pytest.raises(RefusedError, match="does not know the token"):
        greet(socket.create_connection(false.getsockname(), 10), "the token", ABOUT)
    false.close()


def test_what_a_node_says_wrong_loses_the_node_and_not_the_controller(hub: Hub) -> None:
    for number, message in enumerate(({"ranks": [{"rank": 0}], "number": 0}, {"stacks": 3}, {"facts": 1})):
        wire = greet(connection(hub), "the token", ABOUT | {"node": number})
        wire.send(message)
        while number not in hub.nodes or not hub.nodes[number].poll().gone:
            time.sleep(0.01)


def test_secrets_are_in_a_file_for_one_user_and_in_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\n")
    environ = {
        "MLFLOW_TRACKING_PASSWORD": "pw",
        "HF_TOKEN": "t",
        "OMP_NUM_THREADS": "2",
        "RB_ATTEMPT": "old",
        "EDITOR": "vi",
    }
    shared = shared_variables(environ)
    assert shared == {"MLFLOW_TRACKING_PASSWORD": "pw", "HF_TOKEN": "t", "OMP_NUM_THREADS": "2", "NCCL_DEBUG": "INFO"}
    assert launcher_environment(environ) == {"OMP_NUM_THREADS": "2", "EDITOR": "vi"}

    path = job_path(tmp_path / "run", "job")
    job = JobFile("a", "token", 4000, ("10.0.0.1",), 20.0, shared)
    write_job(path, job)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_job(path) == job
    path.write_text('{"format": 1, "attempt": "a"}')
    with pytest.raises(ValueError, match="install the same one on every node"):
        read_job(path)
    path.unlink()
    with pytest.raises(ValueError, match="must lie on a disk that all nodes share"):
        read_job(path)


def test_ranks_are_given_the_interface_between_the_nodes() -> None:
    facts = {"interface": {"name": "ib0", "address": "10.0.0.2"}}
    assert node_variables(facts, 2, {}) == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=ib0"}
    assert node_variables(facts, 2, {"NCCL_SOCKET_IFNAME": "mlx"}) == {
        "GLOO_SOCKET_IFNAME": "ib0"
    }  # the user knows better
    assert node_variables(facts, 1, {}) == {}
