"""The endpoints over a real uvicorn: answers equal to the Python API's, OpenAI's own client, every bad input a 4xx with the field's name."""

from __future__ import annotations

import functools
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import requests
from PIL import Image

from rb.api import RegionBLIP
from rb.serving.adapters import Adapter
from tests.serving.conftest import boxes, picture, points
from tests.serving.served import Served, encoded, text
from tests.support import markdown

TOKEN = "a token"


@pytest.fixture(scope="module")
def served(models: dict[str, Adapter]) -> Iterator[Served]:
    made = Served(models)
    yield made
    made.stop()


def test_regions_by_json_and_by_upload(served: Served, plain: RegionBLIP) -> None:
    asked, data = boxes(1, 3), encoded(picture(1))
    expected = plain.caption(picture(1), asked, box_format="pixels")
    by_json = served.post("/v1/regions", {"image": text(data), "boxes": asked}).json()
    assert [row["caption"] for row in by_json["captions"]] == expected
    assert [row["box"] for row in by_json["captions"]] == asked
    assert all(row["log_probability"] < 0 for row in by_json["captions"])
    assert {"queue", "model", "total"} <= by_json["timing_ms"].keys()
    form = {"boxes": json.dumps(asked), "model": "again"}
    by_form = requests.post(served.url + "/v1/regions", data=form, files={"image": ("../../x", data)}, timeout=60)
    assert [row["caption"] for row in by_form.json()["captions"]] == expected
    greedy = {"image": text(data), "boxes": asked, "decoding": {"num_beams": 1, "max_new_tokens": 2}}
    assert all(row["tokens"] <= 2 for row in served.post("/v1/regions", greedy).json()["captions"])


def test_clouds_embeddings_models_metrics(served: Served, plain: RegionBLIP) -> None:
    answer = served.post("/v1/clouds", {"points": points(3).tolist()}).json()
    assert answer["captions"][0]["caption"] == plain.caption_points(points(3))
    given = {"image": text(encoded(picture(1))), "boxes": boxes(1, 2)}
    vectors = np.asarray(served.post("/v1/embeddings", given).json()["vectors"])
    np.testing.assert_allclose(vectors, plain.embed(picture(1), boxes(1, 2), box_format="pixels"), atol=1e-4)
    listed = requests.get(served.url + "/v1/models", timeout=60).json()["data"]
    assert [row["id"] for row in listed] == ["tiny", "again", "base", "crops"]
    assert "rb_engine_encoder_calls" in requests.get(served.url + "/metrics", timeout=60).text
    assert requests.get(served.url + "/healthz", timeout=60).json()["ok"]
    paths = requests.get(served.url + "/openapi.json", timeout=60).json()["paths"]
    assert "image" in json.dumps(paths["/v1/regions"]["post"]["requestBody"])


def test_openai_client(served: Served, plain: RegionBLIP) -> None:
    import openai

    client = openai.OpenAI(base_url=served.url + "/v1", api_key="none")
    asked = boxes(2, 2)
    expected = plain.caption(picture(2), asked, box_format="pixels")
    words = "What is here? " + " ".join(f"<box>{','.join(map(str, box))}</box>" for box in asked)

    def messages(data: bytes, said: str) -> list[Any]:
        url = {"url": "data:image/png;base64," + text(data)}
        return [{"role": "user", "content": [{"type": "text", "text": said}, {"type": "image_url", "image_url": url}]}]

    given = messages(encoded(picture(2)), words)
    whole = client.chat.completions.create(model="tiny", messages=given)
    assert whole.choices[0].message.content == "\n".join(expected)
    with client.chat.completions.create(model="tiny", messages=given, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == "\n".join(expected)
    assert len(pieces) > 3
    masked = picture(2).convert("RGBA")
    masked.putalpha(Image.new("L", masked.size))
    masked.paste(picture(2).crop((5, 6, 30, 20)).convert("RGBA"), (5, 6))
    by_mask = client.chat.completions.create(model="tiny", messages=messages(encoded(masked), "This?"))
    colours = Image.fromarray(np.asarray(masked)[..., :3].copy())
    caption = plain.caption(colours, [5, 6, 30, 20], box_format="pixels")
    assert by_mask.choices[0].message.content == f"[box of the mask: 5, 6, 30, 20] {caption}"
    with pytest.raises(openai.BadRequestError, match="data: URL"):
        given[0]["content"][1]["image_url"]["url"] = "http://127.0.0.1/x.png"
        client.chat.completions.create(model="tiny", messages=given)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=given)


@functools.cache  # its largest image takes a third of a second
def bad_inputs() -> dict[str, tuple[dict[str, Any], int, str]]:
    """Name -> (change of a good request, status, field)."""
    good = encoded(picture(0))
    frames = [picture(seed) for seed in range(3)]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    return {
        "empty box": ({"boxes": [[5, 5, 5, 9]]}, 422, "boxes"),
        "inverted": ({"boxes": [[9, 5, 5, 9]]}, 422, "boxes"),
        "outside": ({"boxes": [[5, 5, 500, 900]]}, 422, "boxes"),
        "three numbers": ({"boxes": [[5, 5, 9]]}, 422, "boxes"),
        "words": ({"boxes": [["a", 5, 9, 9]]}, 422, "boxes"),
        "no boxes": ({"boxes": []}, 422, "boxes"),
        "65 boxes": ({"boxes": [[1, 1, 9, 9]] * 65}, 422, "boxes"),
        "format": ({"box_format": "metres"}, 422, "box_format"),
        "large": ({"image": text(encoded(Image.new("RGB", (900, 900))))}, 413, "image"),
        "90 megapixels": ({"image": text(encoded(Image.new("1", (9500, 9500))))}, 422, "image"),
        "truncated": ({"image": text(good[:-200])}, 422, "image"),
        "SVG": ({"image": text(svg)}, 422, "image"),
        "animated": (
            {"image": text(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))},
            422,
            "image",
        ),
        "URL": ({"image": "https://example.org/cat.jpg"}, 400, "image"),
        "file URL": ({"image": "file:///etc/passwd"}, 400, "image"),
        "not base64": ({"image": "!!!"}, 422, "image"),
        "nothing": ({"image": ""}, 422, "image"),
        "unknown field": ({"imege": "x"}, 422, "imege"),
        "model": ({"model": "../../other"}, 404, "model"),
        "beams": ({"decoding": {"num_beams": 99}}, 422, "decoding"),
        "lengths": ({"decoding": {"min_new_tokens": 60}}, 422, "decoding"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input(served: Served, case: str) -> None:
    change, status, field = bad_inputs()[case]
    answer = served.post("/v1/regions", {"image": text(encoded(picture(0))), "boxes": [[1, 1, 9, 9]]} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"].split(".")[0].split("[")[0]) == (status, field), error
    assert field in error["message"]


def test_bad_bodies(served: Served) -> None:
    def sent(data: bytes, kind: str) -> tuple[int, dict[str, Any]]:
        answer = requests.post(served.url + "/v1/regions", data=data, headers={"Content-Type": kind}, timeout=60)
        return answer.status_code, answer.json()["error"]

    for data, kind, status, field in (
        (b"image", "text/plain", 415, "content-type"),
        (b"{" + b" " * (20 << 20), "application/json", 413, "body"),
    ):
        found, error = sent(data, kind)
        assert (found, error["field"]) == (status, field)
    assert sent(b'{"image": "aa", "boxes": [[NaN, 1, 2, 3]]}', "application/json")[1]["field"].startswith("boxes")
    assert sent(b"{", "application/json")[0] == 422
    assert sent(b"[" * 1_000_000, "application/json")[0] == 422
    assert sent(b"--x", "multipart/form-data")[0] == 400
    assert sent(b"--x", "multipart/form-data; boundary=y")[0] in (400, 422)
    assert requests.get(served.url + "/v1/regions", timeout=60).status_code == 405
    assert requests.get(served.url + "/../../etc/passwd", timeout=60).status_code == 404
    host, port = "127.0.0.1", served.socket.getsockname()[1]
    with socket.create_connection((host, port)) as half:
        half.sendall(
            b"POST /v1/regions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        half.shutdown(socket.SHUT_WR)
        half.settimeout(20)
        assert b" 500 " not in half.recv(100)
    assert requests.get(served.url + "/healthz", timeout=60).status_code == 200


def test_load(models: dict[str, Adapter]) -> None:
    """Queue full 429 with Retry-After, past the deadline 504, a caller that hangs up frees its place."""
    served, go = Served(models, waiting=2), threading.Event()
    inner = served.engine._answer
    served.engine._answer = lambda jobs: (go.wait(30), inner(jobs))[1]  # type: ignore[method-assign, func-returns-value]
    given = {"image": text(encoded(picture(1))), "boxes": boxes(1, 1)}
    try:
        late = served.post("/v1/regions", given | {"deadline_s": 0.3})
        assert late.status_code == 504
        for _ in range(2):  # callers that leave
            with pytest.raises(requests.ReadTimeout):
                requests.post(served.url + "/v1/regions", json=given, timeout=0.3)
        until = time.monotonic() + 10
        while served.engine.waiting and time.monotonic() < until:
            time.sleep(0.02)
        assert served.engine.waiting == 0
        threads = [threading.Thread(target=served.post, args=("/v1/regions", given)) for _ in range(2)]
        for thread in threads:
            thread.start()
        while not served.engine.full and time.monotonic() < until:
            time.sleep(0.02)
        busy = served.post("/v1/regions", given)
        assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
        go.set()
        for thread in threads:
            thread.join()
        assert served.post("/v1/regions", given).status_code == 200
    finally:
        go.set()
        served.stop()


def test_retry_after_is_the_time_of_what_waits(models: dict[str, Adapter]) -> None:
    """Each batch takes 0.6 s or more and two requests wait: come again after 2 s."""
    served = Served(models, waiting=2)
    inner = served.engine._answer
    served.engine._answer = lambda jobs: (time.sleep(0.6), inner(jobs))[1]  # type: ignore[method-assign, func-returns-value]
    given = {"image": text(encoded(picture(1))), "boxes": boxes(1, 1)}
    try:
        assert served.post("/v1/regions", given).status_code == 200
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(served.post, "/v1/regions", given | {"model": name}) for name in ("tiny", "again")]
            while not served.engine.full:
                assert not any(one.done() for one in waiting)
                time.sleep(0.01)
            busy = served.post("/v1/regions", given)
            assert busy.status_code == 429
            assert 2 <= int(busy.headers["Retry-After"]) <= served.engine.seconds_left + 5
            assert [one.result().status_code for one in waiting] == [200, 200]
    finally:
        served.stop()


def test_token(models: dict[str, Adapter]) -> None:
    served = Served(models, TOKEN)
    try:
        assert requests.get(served.url + "/healthz", timeout=60).status_code == 200
        answer = requests.get(served.url + "/v1/models", timeout=60)
        assert (answer.status_code, answer.json()["error"]["field"]) == (401, "authorization")
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert requests.get(served.url + "/v1/models", headers=right, timeout=60).status_code == 200
    finally:
        served.stop()


def test_python_examples_of_the_docs(
    served: Served,
    plain: RegionBLIP,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """OpenAI's client as it is written there; of Gradio, which is not installed here, the function that asks the server."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = [body for _, language, body in markdown.FENCE.findall(page) if language == "python"]
    by_openai, by_gradio = [
        one.replace("http://127.0.0.1:8000", served.url).replace("my_run", "tiny") for one in blocks
    ]
    picture(1, (320, 240)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    expected = plain.caption(tmp_path / "photo.jpg", [40, 50, 200, 220], box_format="pixels")
    exec(by_openai, {})
    assert capsys.readouterr().out.split() == expected.split()
    gradio, given = MagicMock(), {}
    gradio.Interface.side_effect = lambda ask, *_, **__: given.update(ask=ask) or MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    exec(by_gradio, {})
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert given["ask"](photo, "40,50,200,220", "tiny").split() == expected.split()
    assert gradio.Dropdown.call_args.args[0] == ["tiny", "again", "base", "crops"]
    assert len(by_gradio.splitlines()) <= 40
