"""200 requests of many kinds at once, over HTTP: images, clouds, vectors, OpenAI's form, three checkpoints. Answers as one at a time gets them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from rb.serving.adapters import Adapter
from tests.serving.conftest import boxes, picture, points
from tests.serving.served import Served, encoded, text

COUNT = 200
Asked = tuple[str, dict[str, Any]]


@pytest.fixture
def served(three: dict[str, Adapter]) -> Iterator[Served]:
    made = Served(three, waiting=COUNT)
    yield made
    made.stop()


def mixed(names: list[str], count: int = COUNT) -> list[Asked]:
    """(path, body) of each request; ``names``: three checkpoints, base, crops."""
    made: list[Asked] = []
    for i in range(count):
        image, model = text(encoded(picture(i % 40))), names[i % 3]
        of_boxes = {"image": image, "boxes": boxes(i, 1 + i % 3)}
        if i % 10 == 3:
            made.append(("/v1/clouds", {"points": points(i).tolist(), "model": model}))
        elif i % 10 == 5:
            made.append(("/v1/clouds", {"points": points(i).tolist(), "boxes": [[3, 3, 3, 6, 7, 7]], "model": model}))
        elif i % 10 == 7:
            made.append(("/v1/embeddings", of_boxes | {"model": model}))
        elif i % 10 == 8:
            made.append(("/v1/embeddings", {"texts": [f"a red cube {i}", "a ball"], "model": model}))
        elif i % 10 == 9:
            made.append(("/v1/regions", {"image": image, "model": model}))
        else:
            made.append(("/v1/regions", of_boxes | {"model": names[i % 5]}))
    return made


def said(answer: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """(captions, numbers) of an answer."""
    if "vectors" in answer:
        return [], np.asarray(answer["vectors"]).ravel()
    rows = answer["captions"]
    return [row["caption"] for row in rows], np.asarray([row["log_probability"] for row in rows])


def both_ways(served: Served, asked: list[Asked]) -> dict[str, float]:
    """The requests one at a time, then all at once with nothing kept; the answers must be equal. Returns seconds and batches of both."""

    def sent(request: Asked) -> dict[str, Any]:
        answer = served.post(*request)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def forget() -> int:
        served.engine._features.clear()
        served.engine._feature_bytes = 0
        return served.engine.counts["batches"]

    before = forget()
    start = time.monotonic()
    alone = [sent(one) for one in asked]
    middle = time.monotonic()
    between = forget()
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(sent, asked))
    end = time.monotonic()
    for request, one, other in zip(asked, alone, together, strict=True):
        assert said(one)[0] == said(other)[0], request
        np.testing.assert_allclose(said(one)[1], said(other)[1], atol=1e-3, err_msg=str(request))
    return {
        "alone_s": middle - start,
        "together_s": end - middle,
        "alone_batches": between - before,
        "together_batches": served.engine.counts["batches"] - between,
    }


@pytest.mark.slow
def test_200_at_once(served: Served, three: dict[str, Adapter]) -> None:
    asked = mixed(list(three))
    found = both_ways(served, asked)
    assert found["together_batches"] < found["alone_batches"] / 3, "requests share batches"
    one = served.post("/v1/regions", asked[0][1]).json()["captions"]
    others = [served.post("/v1/regions", asked[0][1] | {"model": name}).json()["captions"] for name in three]
    assert len({str([row["caption"] for row in rows]) for rows in [one, *others]}) > 3, "models differ"
