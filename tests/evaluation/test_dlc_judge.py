"""``rb judge``: the published prompts and readings, and a judge on loopback that goes away, is slow and answers with nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rb.data.predictions import Prediction, write_predictions
from rb.evaluation.dlc_judge import class_question, pick, prompt, read_captions
from tests.evaluation.test_tasks import published
from tests.support.chat_server import ChatServer, chat_server
from tests.support.raw_data import cli_run
from tests.support.remedies import remedy

PUBLISHED = ("dam_3b_v1_eval", "gar_1b_eval")
CAPTIONS = {"1": "a red bus", "2": "two sneakers", "3": "a dog"}
NAMES = {"1": "bus", "2": "sneakers", "3": "cat"}


def class_of(question: str) -> str:
    """The name in a published question about the class."""
    name = question.split(" in the description ")[1].split(" or ", 1)[0]
    return name.split(" ", 1)[1] if "objects" in question else name.split(" ", 2)[2]


def test_prompts_and_readings_are_the_published_ones() -> None:
    questions, asked, read = published("qa"), 0, 0
    for file in PUBLISHED:
        judged = published(file)
        for name, rows in questions.items():
            entry = judged[name]
            own = class_question(class_of(entry["details_recognition"][0]["question"]))
            asked += 1 + len(rows)
            assert [prompt(entry["pred"], row) for row in (own, *rows)] == entry["prompt"]
            for kind in ("positives", "negatives", "recognition"):
                for one in entry[f"details_{kind}"]:
                    read += 1
                    assert pick(one["pred_answer"], [text for text, _ in one["choices"]]) == one["pred_index"]
    assert asked == read == 2 * (892 + 100)


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", 1),
        ("b. it is blue", 1),
        ("  It Is Blue ", 1),
        ("I think it is blue.", 1),
        ("C. whatever", 2),
        ("it is red, no, it is blue", 1),
        ("is red", 0),
        ("A\nbecause", 0),
        ("", None),
        ("42", None),
        ("E. nothing", None),
        ("Banana", None),
    ],
)
def test_how_an_answer_is_read(answer: str, choice: int | None) -> None:
    assert pick(answer, ["it is red", "it is blue", "no color is named"]) == choice


def benchmark(folder: Path, captions: Any = CAPTIONS) -> list[str]:
    """Small files; the words of a command without the judge's address."""
    questions = {
        name: [
            {"question": f"color of {name}?", "choices": [["right", 1], ["wrong", -1]], "type": "positive"},
            {"question": f"sky of {name}?", "choices": [["not named", 1], ["named", -1]], "type": "negative"},
        ]
        for name in CAPTIONS
    }
    for name, content in {"captions": captions, "qa": questions, "names": NAMES}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    paths = [str(folder / f"{name}.json") for name in ("captions", "qa", "names", "judged")]
    return ["judge", paths[0], "--questions", paths[1], "--class-names", paths[2], "--out", paths[3], "--model", "toy"]


def answer(request: dict[str, Any]) -> str:
    text = request["messages"][0]["content"]
    if "a dog" in text and "Is it likely" in text:
        return "B. No"
    return "nonsense" if "sky of 2?" in text else "A."


def test_a_judged_benchmark_is_scored_and_nonsense_is_counted(tmp_path: Path, capsys) -> None:
    words = benchmark(tmp_path)
    with chat_server(answer) as server:
        assert cli_run(*words, "--url", server.url, "--json") == 0
        assert len(server.requests) == 9
        assert {(r["temperature"], r["max_tokens"]) for r in server.requests} == {(0.0, 300)}
    found = json.loads(capsys.readouterr().out)
    # 1: both right; 2: a positive, and nothing; 3: not recognised, at most 0.
    assert (found["positives"], found["negatives"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found["unread"] == ["2: 'nonsense'"]
    files = ("--judged", words[words.index("--out") + 1], "--questions", words[3])
    assert cli_run("score", "--task", "dlc", *files, "--no-mlflow") == 0  # without the judge
    said = capsys.readouterr()
    assert "positives 0.667, negatives 0.333, mean 0.500" in said.out
    assert "in 1 answers the judge picked no choice" in said.err


def test_a_judge_that_goes_away_is_asked_only_for_the_rest(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("rb.core.chat_endpoint.LONGEST_WAIT_S", 0.001)
    words = benchmark(tmp_path)
    with chat_server(answer) as server:

        def dies(request: dict[str, Any]) -> str:
            if len(server.requests) > 4:
                server.faults = ["reset"] * 999
            return answer(request)

        server.answer = dies
        assert cli_run(*words, "--url", server.url, "--parallel", "1") == 2
        assert not (tmp_path / "judged.json").exists()
    said = capsys.readouterr().err
    assert "no answer of toy in 6 tries" in said
    kept = len(list((tmp_path / "judged.answers").glob("*/*.json")))
    assert 4 <= kept <= 6
    with chat_server(answer, ["slow", "html"]) as server:  # slow, then nonsense by a proxy, then well
        assert cli_run(*words, "--url", server.url, "--limit-s", "0.3") == 0
        assert len(server.requests) == 9 - kept + 2
    with chat_server(answer) as server:
        assert cli_run(*words, "--url", server.url) == 0
        assert server.requests == []


def test_our_own_predictions_are_judged_too(tmp_path: Path) -> None:
    rows = [
        Prediction(f"{s}#{o}" if o else s, s, o, "image_region" if o else "image", "dlc", "test", text, ["x"], None)
        for s, o, text in (("sa/7", "1", "a red bus"), ("dlc/2", None, "two sneakers"))
    ]
    write_predictions(tmp_path / "rows.jsonl", rows, {})
    assert read_captions(tmp_path / "rows.jsonl", ["1", "2"]) == {"1": "a red bus", "2": "two sneakers"}


def judged(folder: Path, better: Callable[[], object]):
    words, server = benchmark(folder), ChatServer(answer)
    return lambda: cli_run(*words, "--url", server.url), lambda _: better()


@remedy(
    "objects {}, such as {}; give one caption for each object",
    also=["or a predictions.jsonl; give one caption for each object"],
)
def test_an_object_without_a_caption(tmp_path: Path):
    fault = judged(tmp_path, lambda: benchmark(tmp_path))
    (tmp_path / "captions.json").write_text(json.dumps({"1": "a red bus", "9": "what?"}))
    return fault


@remedy("give the benchmark's qa.json")
def test_no_questions(tmp_path: Path):
    fault = judged(tmp_path, lambda: benchmark(tmp_path))
    (tmp_path / "qa.json").write_text(json.dumps({"1": [{"question": "?"}]}))
    return fault


@remedy("give the benchmark's class_names.json")
def test_no_class_names(tmp_path: Path):
    fault = judged(tmp_path, lambda: benchmark(tmp_path))
    (tmp_path / "names.json").write_text(json.dumps({"1": "bus"}))
    return fault
