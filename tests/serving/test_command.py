"""``rb serve`` as a process of its own: the curl lines of docs/serving.md, nothing written to disk by any request, SIGTERM."""

from __future__ import annotations

import http.client
import json
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from rb.serving.commands import STOP_S
from tests.serving.conftest import picture, points
from tests.serving.served import Process, encoded, serving, text
from tests.support import markdown

ROOT = Path(__file__).parents[2]
LONG = {"num_beams": 10, "max_new_tokens": 40, "min_new_tokens": 40}


@pytest.fixture(scope="module")
def process(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    yield from serving(finished / "run", tmp_path_factory.mktemp("serve"))


@pytest.fixture
def process_to_end(finished: Path, tmp_path: Path) -> Iterator[Process]:
    yield from serving(finished / "run", tmp_path)


def test_curl_lines_of_the_docs(process: Process, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    lines = [
        line for line in markdown.block_lines((ROOT / "docs" / "serving.md").read_text()) if line.startswith("curl")
    ]
    assert len(lines) >= 5
    folder = tmp_path / "user"
    folder.mkdir()
    picture(1, (320, 240)).save(folder / "photo.jpg")
    np.save(folder / "room.npy", points(1))
    for line in lines:
        command = line.replace("http://127.0.0.1:8000", process.url)
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
        assert "error" not in answer, (line, answer)
        assert {"captions", "vectors", "choices", "data"} & answer.keys(), line


def test_a_connection_may_be_idle_between_two_requests(process: Process) -> None:
    connection = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=60)
    for wait in (6, 0):  # uvicorn alone ends a connection after 5 s
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        time.sleep(wait)
    connection.close()


def test_no_request_writes_to_disk(process: Process) -> None:
    """The kernel refuses the process every byte in a file, and its folders do not change, whatever is sent."""
    resource.prlimit(process.started.pid, resource.RLIMIT_FSIZE, (0, 0))
    before = [place.stat().st_mtime_ns for place in process.folders]
    large = encoded(picture(1, (1200, 900)))
    assert len(large) > 3 << 20, "more than what Starlette keeps in memory by itself"
    cloud = np.random.default_rng(1).normal(size=(40_000, 3))
    url = process.url + "/v1"
    sent = [
        requests.post(f"{url}/regions", data={"boxes": "[[1, 1, 90, 90]]"}, files={"image": ("../../../x.png", large)}),
        requests.post(f"{url}/regions", json={"image": text(large)}),
        requests.post(f"{url}/clouds", json={"points": cloud.tolist()}),
        requests.post(
            f"{url}/clouds", files={"points": ("../x.xyz", "\n".join(" ".join(map(str, row)) for row in cloud))}
        ),
        requests.post(f"{url}/embeddings", json={"texts": ["a"]}),
    ]
    assert [answer.status_code for answer in sent] == [200] * len(sent), [answer.text[:300] for answer in sent]
    wrong = [
        requests.post(f"{url}/regions", files={"image": ("..", large[: 3 << 20])}),
        requests.post(f"{url}/regions", files={"other/../name": ("x", large)}),
        requests.post(f"{url}/regions", data=b"{" * (17 << 20), headers={"Content-Type": "application/json"}),
        requests.post(f"{url}/clouds", files={"points": ("../../x.py", large)}),
    ]
    assert [answer.status_code for answer in wrong] == [422, 422, 413, 422], [answer.text[:300] for answer in wrong]
    assert [place.stat().st_mtime_ns for place in process.folders] == before


def test_sigterm_finishes_what_runs(process_to_end: Process) -> None:
    process = process_to_end
    image = text(encoded(Image.new("RGB", (64, 48))))
    body = {"image": image, "boxes": [[1, 1, 20 + i, 30] for i in range(4)], "decoding": LONG}

    def ask(number: int) -> requests.Response:
        return requests.post(process.url + "/v1/regions", json=body | {"prompt": f"it is {number}"}, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        until = time.monotonic() + 60
        while requests.get(process.url + "/healthz", timeout=60).json()["waiting"] < 2:
            assert time.monotonic() < until
        waiting = sum(not one.done() for one in asked)
        began = time.monotonic()
        process.started.send(signal.SIGTERM)
        answers = [one.result() for one in asked]
        assert process.started.wait(30) == 0, process.started.output()
        took = time.monotonic() - began
    assert waiting >= 2
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text[:200] for answer in answers]
    assert took < STOP_S + 1
    with pytest.raises(requests.ConnectionError):
        requests.get(process.url + "/healthz", timeout=5)
