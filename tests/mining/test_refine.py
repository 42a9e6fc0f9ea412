"""Descriptions rewritten by a chat model on loopback: what is taken, what is refused, and that a lost endpoint costs nothing that was answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rb.core.chat_endpoint import EndpointError
from rb.mining.inputs import InputShard
from rb.mining.record import ImageRecord, Region, read_records
from rb.mining.refine import ANSWERS_FOLDER, REFINE, AddedWords, Refine
from rb.mining.settings import RefineConfig
from rb.mining.stage import Stage, made_of, run_stage, stage_file
from rb.mining.work import Made
from tests.support.chat_server import ChatServer, chat_server
from tests.support.mined import input_tars
from tests.support.remedies import Said, remedy

pytest.importorskip("spacy")
REWRITES = {
    "a dog that is laying on the floor": "A dog laying on the floor.",
    "the man is a man with a hat": "The man is a man wearing a horse.",
    "a car that stands in a street": "A red car in a street.",
    "two women who are sitting on a bench": "Two women sit on a bench.",
    "a cup": "",
}


class Descriptions(Stage):
    """Every image has the same regions, one with each text."""

    name = "describe"

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        records = []
        for image in shard.images():
            regions = [Region(f"{image.key}:{i}", [0, 0, 9, 9], "-", 9, text=text) for i, text in enumerate(REWRITES)]
            records.append(ImageRecord(image.key, 48, 48, regions=regions))
        return made_of(records)


def answer(request: dict[str, Any]) -> str:
    return REWRITES[re.search("Description: (.*)", request["messages"][-1]["content"])[1]]


@pytest.fixture
def shard(tmp_path: Path) -> InputShard:
    (shard,) = input_tars(tmp_path / "in", 1, 1)
    run_stage(Descriptions({}), shard, tmp_path / "out", None)
    return shard


def refine(server: ChatServer, out: Path, **changes: Any) -> Refine:
    stage = Refine(RefineConfig(server.url, "rewriter", parallel=1, **changes), out)
    stage.endpoint = type(stage.endpoint)(
        server.url, "rewriter", stage.endpoint.answers_dir, 2.0, tries=2, wait_s=0.001
    )
    return stage


def test_a_rewrite_with_a_new_noun_or_colour_is_refused(shard: InputShard, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with chat_server(answer) as server:
        run_stage(refine(server, out), shard, out, "describe")
    (record,) = read_records(stage_file(out, REFINE, 0))
    assert [region.refined for region in record.regions] == [
        "A dog laying on the floor.",
        None,
        None,
        "Two women sit on a bench.",
        None,
    ]
    assert [region.caption for region in record.regions][1:3] == list(REWRITES)[1:3]
    assert not any(region.dropped for region in record.regions)


def test_words_are_compared_by_their_base_form() -> None:
    words = AddedWords()
    assert words.added("three dogs run", "a dog runs") == set()
    assert words.added("a man on a board", "a man on a red surfboard") == {"red", "surfboard"}


def test_a_lost_endpoint_stops_the_job_and_what_was_answered_stays(shard: InputShard, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with chat_server(answer) as server:
        server.faults = ["", "", "503", "503"]
        with pytest.raises(EndpointError, match=r"no answer of rewriter in 2 tries \(HTTP 503"):
            run_stage(refine(server, out), shard, out, "describe")
        assert not stage_file(out, REFINE, 0).exists()
        asked, kept = len(server.requests), len(list((out / ANSWERS_FOLDER).glob("*/*.json")))
        assert kept >= 2
        for _ in range(2):
            run_stage(refine(server, out), shard, out, "describe")
            assert len(server.requests) - asked == len(REWRITES) - kept


def test_settings_that_cannot_work_are_refused() -> None:
    for changes, message in (({"prompt": "rewrite"}, "no place {}"), ({"parallel": 0}, "parallel 0")):
        with pytest.raises(ValueError, match=message):
            RefineConfig("http://host/v1", "m", **changes)


@remedy("leave the section out to keep descriptions as they are")
def test_url_and_model_must_be_set() -> tuple[Callable[[], object], Callable[[Said], object]]:
    section: list[Callable[[], object]] = [RefineConfig]
    return lambda: [make() for make in section], lambda _: section.clear()
