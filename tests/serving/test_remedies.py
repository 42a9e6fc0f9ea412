"""What the server and its commands advise helps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from rb.serving import commands
from rb.serving.adapters import Adapter, load_adapters
from rb.serving.forms import Limits, Upload, cloud, picture
from tests.serving.conftest import picture as a_picture
from tests.serving.served import Served, encoded, text
from tests.support.remedies import remedy


@pytest.fixture(scope="module")
def narrow(models: dict[str, Adapter]) -> Iterator[Served]:
    """A server that takes one request at a time."""
    made = Served(models, waiting=1)
    yield made
    made.stop()


def sent(served: Served, path: str, body: dict[str, Any]) -> str:
    answer = served.post(path, body)
    if answer.status_code != 200:
        raise ValueError(answer.text)
    return answer.text


@remedy("the name {} is taken; give another, as NAME={}")
def test_a_name_twice(finished: Path):
    named: list[tuple[str | None, Path]] = [(None, finished / "run"), (None, finished / "run")]
    return lambda: load_adapters(named, with_base=False), lambda _: named.append(("other", named.pop()[1]))


@remedy("this environment variable is not set; put the token in it")
def test_no_token(monkeypatch):
    return lambda: commands._token("A_TOKEN"), lambda _: monkeypatch.setenv("A_TOKEN", "secret")


@remedy("pixels are more than {}; shrink the image")
def test_a_large_image():
    side = [60]
    given = lambda: encoded(Image.new("RGB", (side[0], side[0])))  # noqa: E731
    return lambda: picture("", Upload(given(), ".png"), Limits(pixels=1000)).load() and None, lambda _: side.insert(
        0, 20
    )


@remedy("in a cloud of at most {}; thin the cloud")
def test_a_large_cloud():
    rows = np.zeros((30, 3)).tolist()
    return lambda: cloud(rows, None, Limits(points=20)).size and None, lambda _: rows.__delitem__(slice(None, None, 2))


@remedy("has no ITC space; name a checkpoint")
def test_vectors_of_the_base(narrow: Served):
    body = {"image": text(encoded(a_picture())), "boxes": [[1, 1, 9, 9]], "model": "base"}
    return lambda: sent(narrow, "/v1/embeddings", body), lambda _: body.update(model="tiny")


@remedy("write it as JSON")
def test_boxes_of_a_form(narrow: Served):
    form = {"boxes": "1, 1, 9, 9"}

    def fault() -> None:
        files = {"image": encoded(a_picture())}
        answer = requests.post(narrow.url + "/v1/regions", data=form, files=files, timeout=60)
        if answer.status_code != 200:
            raise ValueError(answer.text)

    return fault, lambda _: form.update(boxes="[[1, 1, 9, 9]]")


@remedy("too many requests wait; try again later")
def test_a_busy_server(narrow: Served):
    go, inner = threading.Event(), narrow.engine._answer
    narrow.engine._answer = lambda jobs: (go.wait(60), inner(jobs))[1]  # type: ignore[method-assign, func-returns-value]
    body = {"image": text(encoded(a_picture()))}
    first = threading.Thread(target=sent, args=(narrow, "/v1/regions", body))
    first.start()
    while not narrow.engine.full:
        first.join(0.01)
    return lambda: sent(narrow, "/v1/regions", body), lambda _: (go.set(), first.join())
