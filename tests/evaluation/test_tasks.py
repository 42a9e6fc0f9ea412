"""``rb score --task``: DLC-Bench from published judge answers, VQAv2 from files in the official form, and bad files of both."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rb.core import strict_json
from rb.evaluation.dlc import score_dlc
from rb.evaluation.vqa import MODES
from tests.support.raw_data import cli_run
from tests.support.remedies import Fault, Said, remedy

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = strict_json.read(GOLDEN / "vqa_accuracy.json")


def published(name: str) -> Any:
    return strict_json.parse(gzip.decompress((GOLDEN / f"dlc_{name}.json.gz").read_bytes()), name)


def scored(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert cli_run("score", "--json", *map(str, arguments)) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("model", "figures"), [("dam_3b_v1_eval", (0.510, 0.830, 0.670)), ("gar_1b_eval", (0.489, 0.870, 0.679))]
)
def test_published_answers_give_published_figures(
    model: str, figures: tuple[float, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged, questions = published(model), published("qa")
    (tmp_path / "judged.json").write_text(json.dumps(judged))
    (tmp_path / "qa.json").write_text(json.dumps(questions))
    files = ("--task", "dlc", "--judged", tmp_path / "judged.json", "--questions", tmp_path / "qa.json", "--no-mlflow")
    found = scored(capsys, *files, "--out", tmp_path / "scores.json")
    assert tuple(round(found[name], 3) for name in ("positives", "negatives", "mean")) == figures
    assert found["positives"] == pytest.approx(judged["avg_pos"], abs=1e-12)
    assert found["negatives"] == pytest.approx(judged["avg_neg"], abs=1e-12)
    assert (found["answers"], len(found["objects"]["positive"]), found["no_choice"]) == (892, 100, [])
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    assert cli_run("score", *map(str, files)) == 0
    assert "positives {:.3f}, negatives {:.3f}, mean {:.3f}".format(*figures) in capsys.readouterr().out


def small(kind: str, picked: Any, points: tuple[float, ...] = (1, 0, -1)) -> tuple[dict[str, Any], dict[str, Any]]:
    question = {"question": "which?", "choices": [[str(p), p] for p in points], "type": kind}
    return question, {**question, "pred_index": picked}


def benchmark(*objects: tuple[str, bool, list[Any], list[Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of (name, recognised, picks of positives, picks of negatives): judged answers, questions."""
    judged, questions = {}, {}
    for name, recognised, *picks in objects:
        rows = [[small(kind, p) for p in of] for kind, of in zip(("positive", "negative"), picks, strict=True)]
        questions[name] = [question for of in rows for question, _ in of]
        judged[name] = {"recognition_result": recognised, "details_positives": [a for _, a in rows[0]]}
        if rows[1]:
            judged[name]["details_negatives"] = [a for _, a in rows[1]]
    return judged, questions


def test_no_negatives_no_choice_and_not_recognised() -> None:
    judged, questions = benchmark(
        ("seen", True, [0, 2], [0]),  # (1 - 1) / 2; 1
        ("bare", True, [0, None, -1], []),  # a third; no negatives, so it does not count there
        ("missed", False, [0, 2], [0, 2]),  # 1 becomes 0: -1/2 both
    )
    named = {"pred_answer": "B. 0", **judged["seen"]["details_negatives"][0]}
    del named["pred_index"]
    judged["seen"]["details_negatives"] = [named]
    found = score_dlc({**judged, "avg": 7.0, "note": "of the file"}, questions, "judged")
    assert found.objects["positive"] == {"seen": 0.0, "bare": pytest.approx(1 / 3), "missed": -0.5}
    assert found.objects["negative"] == {"seen": 0.0, "missed": -0.5}
    assert found.no_choice == ["bare positive 1", "bare positive 2"]
    assert found.mean == pytest.approx(((0 + 1 / 3 - 0.5) / 3 + (0 - 0.5) / 2) / 2)


def spoiled(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> tuple[dict[str, Any], dict[str, Any]]:
    both = copy.deepcopy(benchmark(("one", True, [0], [1]), ("two", True, [1], [0])))
    change(*both)
    return both


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda j, q: j.pop("two"), "object two is missing in the judged answers"),
        (lambda j, q: q.pop("two"), "object two is missing in the questions"),
        (
            lambda j, q: j["one"].pop("recognition_result"),
            "object one: recognition_result must be true or false, got None",
        ),
        (lambda j, q: j["one"].update(details_positives=[]), "object one: 0 positive answers to 1 questions"),
        (lambda j, q: j["one"].update(details_positives=3), "object one: 3 positive answers"),
        (lambda j, q: j["one"].update(details_positives=["C"]), "positive answer 0: must be an object, got str"),
        (lambda j, q: j["one"]["details_positives"][0].update(pred_index=3), "must be one of 3 choices, got 3"),
        (lambda j, q: j["one"]["details_positives"][0].update(pred_index="C"), "must be one of 3 choices, got 'C'"),
        (lambda j, q: j["one"]["details_positives"][0].update(question="?"), "is of another question"),
        (lambda j, q: q["one"][0].update(type="neutral"), "question of one: must have a type, positive or negative"),
        (lambda j, q: q["one"][0].update(choices=[["a", "b"]]), "each a text and its points"),
        (lambda j, q: q.update(one=None), "question of one"),
    ],
)
def test_files_that_do_not_fit(change: Callable[[dict[str, Any], dict[str, Any]], object], said: str) -> None:
    with pytest.raises(strict_json.FormatError) as caught:
        score_dlc(*spoiled(change), "judged.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("judged.json: ")


@remedy("give the judged answers and the questions of one benchmark")
def test_another_benchmarks_questions() -> tuple[Fault, Callable[[Said], object]]:
    judged, questions = benchmark(("one", True, [0], [1]))
    _, other = benchmark(("two", True, [0], [1]))
    given = {"questions": other}
    return lambda: score_dlc(judged, given["questions"], "judged"), lambda _: given.update(questions=questions)


def write_vqa(folder: Path, results: list[Any], cases: list[Any]) -> tuple[object, ...]:
    rows = [{**case, "answers": [{"answer": a} for a in case["answers"]]} for case in cases]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "annotations.json").write_text(json.dumps({"annotations": rows}))
    return "--task", "vqa", "--results", folder / "results.json", "--annotations", folder / "annotations.json"


def test_vqa_in_three_modes_and_by_answer_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [{"question_id": case["question_id"], "answer": case["prediction"]} for case in CASES["cases"]]
    files = write_vqa(tmp_path, results, CASES["cases"])
    found = scored(capsys, *files)
    assert found["questions"] == 400
    for mode in MODES:
        by_kind = found["accuracy"][mode]
        assert by_kind["all"] == pytest.approx(CASES["mean"][mode], abs=1e-12)
        kinds = {case["answer_type"] for case in CASES["cases"]}
        assert by_kind.keys() == {"all", *kinds}
        for kind in kinds:
            own = [case["accuracy"][mode] for case in CASES["cases"] if case["answer_type"] == kind]
            assert by_kind[kind] == pytest.approx(100 * sum(own) / len(own))
    assert cli_run("score", *map(str, files)) == 0
    printed = capsys.readouterr().out
    assert all(f"VQA accuracy ({mode})" in printed for mode in MODES)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([{"question_id": 0, "answer": "a"}], "1 questions without an answer, such as 1"),
        ([{"question_id": i, "answer": "a"} for i in (0, 1, 2)], "1 questions not in the annotations, such as 2"),
        ([{"question_id": 0, "answer": "a"}] * 2, "row 1: question 0 comes twice"),
        ([{"question_id": 0, "answer": None}], "row 0 must be {question_id, answer}"),
        ([7], "row 0 must be {question_id, answer}"),
    ],
)
def test_answers_that_do_not_fit(
    results: list[Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_vqa(tmp_path, results, CASES["cases"][:2])
    assert cli_run("score", *map(str, files)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("task", [("vqa", "--results", "--annotations"), ("dlc", "--judged", "--questions")])
def test_a_file_that_is_not_there(task: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, one, other = task
    (tmp_path / "there").write_text("[]")
    assert cli_run("score", "--task", name, one, str(tmp_path / "there"), other, str(tmp_path / "nowhere")) == 2
    assert f"error: {other} {tmp_path / 'nowhere'}: no such file" in capsys.readouterr().err


@remedy("give one answer, a text, for each question of {}")
def test_a_question_without_an_answer(tmp_path: Path) -> tuple[Fault, Callable[[Said], object]]:
    files = [str(word) for word in write_vqa(tmp_path, [{"question_id": 0, "answer": "a"}], CASES["cases"][:2])]
    both = [{"question_id": number, "answer": "a"} for number in (0, 1)]
    return lambda: cli_run("score", *files), lambda _: write_vqa(tmp_path, both, CASES["cases"][:2])


@remedy("no annotations; give VQAv2's annotations, such as v2_mscoco_val2014_annotations.json")
def test_no_annotations(tmp_path: Path) -> tuple[Fault, Callable[[Said], object]]:
    files = [str(word) for word in write_vqa(tmp_path, [], [])]
    results = [{"question_id": 0, "answer": "a"}]
    return lambda: cli_run("score", *files), lambda _: write_vqa(tmp_path, results, CASES["cases"][:1])


@remedy("--task {} reads its own files; give {}, and no other file")
def test_a_task_without_its_files(tmp_path: Path) -> tuple[Fault, Callable[[Said], object]]:
    files = [str(word) for word in write_vqa(tmp_path, [{"question_id": 0, "answer": "a"}], CASES["cases"][:1])]
    words = {"given": files[:2]}
    return lambda: cli_run("score", *words["given"]), lambda _: words.update(given=files)
