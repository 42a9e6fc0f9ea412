"""`rb serve` under load: thousands of requests, right and wrong, at once and one after another, and a stop in the middle of long work.

schemathesis makes requests of /openapi.json, right and wrong ones: no 5xx, every answer of the form that is declared, no answer with a line of
ours, nothing left in the engine. 200 mixed requests at once get the answers that they get one at a time, in at most a third of the time. Over
5,000 requests the process does not grow. Clients that wait as Retry-After says are all answered. Boxes that the page sends of 20 toy rooms are
within 1 % of the cloud's radius. SIGTERM ends a process whose work would take minutes: what cannot finish gets 503.
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import requests

from rb.serving.adapters import Adapter
from rb.serving.commands import STOP_S
from tests.serving.conftest import boxes, models, picture, three  # noqa: F401 (fixtures)
from tests.serving.fuzz import fuzz
from tests.serving.served import Process, Served, encoded, text
from tests.serving.test_examples import room
from tests.serving.test_mixed import COUNT, both_ways, mixed
from tests.serving.test_page_clouds import errors_of_boxes
from tests.support.browser import browser
from tests.support.trials import Figures

REQUESTS, WARM = 5000, 1500
GROWTH_MB = 16


def test_fuzz(models: dict[str, Adapter], figures: Figures) -> None:  # noqa: F811
    served = Served(models)
    try:
        statuses = fuzz(served, 150)
    finally:
        served.stop()
    figures["requests"] = sum(statuses.values())
    figures["answers of 5xx"] = sum(count for status, count in statuses.items() if status >= 500)
    assert figures["requests"] >= 1000
    assert figures["answers of 5xx"] == 0
    assert min(statuses[200], statuses[422]) > 50


def test_200_at_once(three: dict[str, Adapter], figures: Figures) -> None:  # noqa: F811
    served = Served(three, waiting=COUNT)
    try:
        both_ways(served, mixed(list(three), 20))  # once for what is slow the first time
        found = both_ways(served, mixed(list(three)))
    finally:
        served.stop()
    figures |= {"one at a time, s": round(found["alone_s"], 2), "all at once, s": round(found["together_s"], 2)}
    assert found["alone_s"] >= 3 * found["together_s"]


def test_clients_that_come_again_when_told(models: dict[str, Adapter], figures: Figures) -> None:  # noqa: F811
    """40 clients and places for 8: whoever is refused waits for the seconds of Retry-After. All are answered, and few ask often."""
    served = Served(models, waiting=8)
    try:
        served.engine.limits.rows = 16  # one request a batch

        def ask(number: int) -> int:
            body = {"image": text(encoded(picture(number))), "boxes": boxes(number, 16), "decoding": {"num_beams": 10}}
            for tries in range(1, 100):
                answer = served.post("/v1/regions", body)
                if answer.status_code == 200:
                    return tries
                assert answer.status_code == 429
                time.sleep(int(answer.headers["Retry-After"]))
            raise AssertionError("never answered")

        began = time.monotonic()
        with ThreadPoolExecutor(40) as pool:
            tries = list(pool.map(ask, range(40)))
        figures |= {"seconds of 40 requests": round(time.monotonic() - began, 1), "requests sent": sum(tries)}
        assert sum(tries) < 8 * len(tries)
    finally:
        served.stop()


def test_boxes_of_20_rooms(models: dict[str, Adapter], tmp_path: Path, figures: Figures) -> None:  # noqa: F811
    """As the page sends them: after a click on each object, and after its handles were dragged where a side is off by more than 1 %."""
    served = Served(models, points=5000)
    try:
        with browser() as driver:
            found = [errors_of_boxes(driver, served, tmp_path, room(index)) for index in range(20)]
    finally:
        served.stop()
    picked, shaped = (np.concatenate(errors) for errors in zip(*found, strict=True))
    figures |= {"boxes": len(picked), "within 1 % of the radius after the click": int((picked < 0.01).sum())}
    figures |= {"largest error after the click, %": round(100 * float(picked.max()), 2)}
    figures |= {"largest error after the handles, %": round(100 * float(shaped.max()), 2)}
    assert picked.max() < 0.01
    assert shaped.max() < 0.01


def test_memory_is_flat(finished: Path, tmp_path: Path, figures: Figures) -> None:
    process = Process(finished / "run", tmp_path)
    images = [text(encoded(picture(seed))) for seed in range(50)]
    about = psutil.Process(process.started.pid)
    held = 0

    def ask(session: requests.Session, number: int) -> int:
        body = {"image": images[number % 50], "boxes": boxes(number, 1 + number % 4)}
        if number % 10 == 7:
            return session.post(
                process.url + "/v1/embeddings", json={"texts": [f"a ball {number}"]}, timeout=60
            ).status_code
        if number % 10 == 8:
            body["boxes"] = [[5, 5, 1, 1]]
        return session.post(process.url + "/v1/regions", json=body, timeout=60).status_code

    try:
        with ThreadPoolExecutor(8) as pool:
            sessions = [requests.Session() for _ in range(8)]
            for start in range(0, REQUESTS, 500):
                if start == WARM:
                    held = about.memory_info().rss
                asked = [(sessions[number % 8], number) for number in range(start, start + 500)]
                statuses = list(pool.map(lambda one: ask(*one), asked))
                assert set(statuses) == {200, 422}, set(statuses)
        figures["growth from 1,500 to 5,000 requests, MB"] = round((about.memory_info().rss - held) / 2**20, 1)
        figures["open files and sockets"] = about.num_fds()
    finally:
        process.started.send(signal.SIGKILL)
    assert figures["growth from 1,500 to 5,000 requests, MB"] < GROWTH_MB


def test_sigterm_ends_what_would_take_minutes(finished: Path, tmp_path: Path, figures: Figures) -> None:
    process = Process(finished / "run", tmp_path)
    body = {"image": text(encoded(picture(1))), "boxes": boxes(1, 64)}
    body["decoding"] = {"num_beams": 10, "max_new_tokens": 40, "min_new_tokens": 40}

    def ask(number: int) -> requests.Response:
        return requests.post(process.url + "/v1/regions", json=body | {"prompt": f"it is {number}"}, timeout=100)

    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, number) for number in range(40)]
        while requests.get(process.url + "/healthz", timeout=60).json()["waiting"] < 30:
            assert not any(one.done() for one in asked), [one.result().text[:200] for one in asked if one.done()]
            time.sleep(0.05)
        began = time.monotonic()
        process.started.send(signal.SIGTERM)
        answers = [one.result() for one in asked]
        code = process.started.wait(60)
        figures["seconds to the end"] = round(time.monotonic() - began, 1)
    assert code == 0, process.started.output()
    assert {answer.status_code for answer in answers} <= {200, 503}
    late = [answer.json()["error"]["message"] for answer in answers if answer.status_code == 503]
    assert set(late) == {"the server stops"}
    assert figures["seconds to the end"] < STOP_S + 3
