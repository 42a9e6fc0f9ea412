"""The engine: one encoder call for an image however many boxes, answers equal to the Python API's, a queue that ends, dropped work."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch

from rb.api import RegionBLIP
from rb.serving.adapters import Adapter
from rb.serving.engine import EMBED, Answer, BusyError, Engine, EngineLimits, Job, LateError
from tests.serving.conftest import boxes, picture, points


def image_job(engine: Engine, name: str, seed: int, count: int | None, **more: object) -> Job:
    adapter = engine.adapters[name]
    asked = adapter.ask_image(picture(seed), None if count is None else boxes(seed, count), "pixels")
    return Job(adapter, asked, adapter.captioner.decode, **more)  # type: ignore[arg-type]


def cloud_job(engine: Engine, seed: int) -> Job:
    adapter = engine.adapters["tiny"]
    return Job(adapter, adapter.ask_cloud(points(seed), None, "metres"), adapter.captioner.decode)


def answers(engine: Engine, job: Job) -> list[Answer]:
    return engine.submit(job).done.result(60)


def test_sixteen_boxes_are_one_encoder_call(engine: Engine, plain: RegionBLIP) -> None:
    found = answers(engine, image_job(engine, "tiny", 3, 16))
    assert engine.counts["encoder_calls"] == engine.counts["encoded"] == 1
    assert [row.caption for row in found] == plain.caption(picture(3), boxes(3, 16), box_format="pixels")
    assert len({row.caption for row in found}) > 1, "random parameters say different things of different boxes"
    answers(engine, image_job(engine, "again", 3, 2))
    assert engine.counts["encoder_calls"] == 1, "features of a recent image serve every checkpoint"


def test_whole_images_clouds_and_vectors_are_those_of_the_api(engine: Engine, plain: RegionBLIP) -> None:
    assert answers(engine, image_job(engine, "tiny", 1, None))[0].caption == plain.caption(picture(1))
    assert answers(engine, cloud_job(engine, 2))[0].caption == plain.caption_points(points(2))
    vectors = [row.vectors for row in answers(engine, image_job(engine, "tiny", 1, 3, what=EMBED))]
    torch.testing.assert_close(torch.stack(vectors), plain.embed(picture(1), boxes(1, 3), box_format="pixels"))


def test_base_says_one_thing_and_crops_are_images(engine: Engine, plain: RegionBLIP) -> None:
    whole = answers(engine, image_job(engine, "base", 4, 3))
    assert [row.caption for row in whole] == [plain.caption(picture(4))] * 3
    cut = answers(engine, image_job(engine, "crops", 4, 3))
    assert engine.counts["encoded"] == 4
    parts = [picture(4).crop((int(a), int(b), -int(-c // 1), -int(-d // 1))) for a, b, c, d in boxes(4, 3)]
    assert [row.caption for row in cut] == [plain.caption(part) for part in parts]


def test_adapters_hold_the_foundation_once(models: dict[str, Adapter]) -> None:
    first, again, base = (models[name].captioner.model for name in ("tiny", "again", "base"))
    places = [{p.data_ptr() for p in model.blip2.parameters() if not p.requires_grad} for model in (first, again, base)]
    assert places[0] == places[1] == places[2]


def test_log_probability_is_that_of_the_caption(engine: Engine, models: dict[str, Adapter]) -> None:
    found = answers(engine, image_job(engine, "tiny", 5, 4))
    assert all(row.log_probability < 0 and 0 < row.tokens <= 6 for row in found)
    greedy = image_job(engine, "tiny", 5, 4)
    greedy.decode = replace(models["tiny"].captioner.decode, num_beams=1, length_penalty=0.0)
    wide = replace(models["tiny"].captioner.decode, num_beams=8, length_penalty=0.0)
    beams = image_job(engine, "tiny", 5, 4)
    beams.decode = wide
    low, high = answers(engine, greedy), answers(engine, beams)
    assert sum(row.log_probability for row in high) >= sum(row.log_probability for row in low) - 1e-3


def held_engine(models: dict[str, Adapter], limits: EngineLimits) -> tuple[Engine, threading.Event]:
    """An engine whose thread waits inside its first batch until the event is set."""
    engine, go = Engine(models, limits), threading.Event()
    inner = engine._answer

    def slow(jobs: list[Job]) -> None:
        go.wait(30)
        inner(jobs)

    engine._answer = slow  # type: ignore[method-assign, assignment]
    return engine, go


def test_a_full_queue_refuses_and_a_dropped_job_frees_its_place(models: dict[str, Adapter]) -> None:
    engine, go = held_engine(models, EngineLimits(waiting=2))
    try:
        running = engine.submit(image_job(engine, "tiny", 1, 1))
        while running.began is None:
            time.sleep(0.005)
        waiting = engine.submit(image_job(engine, "again", 1, 1))
        with pytest.raises(BusyError):
            engine.submit(image_job(engine, "tiny", 2, 1))
        engine.drop(waiting)
        late = engine.submit(image_job(engine, "again", 2, 1, deadline=time.monotonic() + 0.05))
        time.sleep(0.1)
        go.set()
        with pytest.raises(LateError):
            late.done.result(30)
        assert len(running.done.result(30)) == 1
        assert not waiting.done.done(), "nobody computed it"
    finally:
        go.set()
        engine.close()
    assert engine.counts["rows"] == 1


def test_features_are_bounded(models: dict[str, Adapter]) -> None:
    one = Engine(models, EngineLimits(feature_bytes=1))
    try:
        for _ in range(2):
            answers(one, image_job(one, "tiny", 1, 1))
        assert one.counts["encoder_calls"] == 2
        assert one._feature_bytes == 0
    finally:
        one.close()
