"""Scores of parts of a set, of answers with their annotators', and of DLC-Bench in MLflow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rb.data.predictions import Prediction, write_predictions
from rb.evaluation.scoring import score_file
from rb.evaluation.task_scores import score_task
from rb.evaluation.vqa import MODES, vqa_accuracy
from tests.support.raw_data import cli_run
from tests.support.remedies import remedy

DOMAINS = ("in-domain", "near-domain", "out-domain")
TEXTS = ("a red cube on a table", "two dogs in the snow", "a man who rides a horse")


def captions() -> list[Prediction]:
    """Nine images of three domains; predictions are right in part."""
    made = []
    for i in range(9):
        text = TEXTS[i % 3]
        said = text if i < 4 else f"{text} and a tree"
        row = Prediction(
            f"nocaps/{i}", f"nocaps/{i}", None, "image", "nocaps", "val", said, [text, f"{text} {i}"], None
        )
        made.append(replace(row, part=DOMAINS[i // 3]))
    return made


def test_each_domain_of_nocaps_is_scored_as_a_set_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "nocaps.jsonl", tmp_path / "nocaps.json"
    write_predictions(file, captions(), {})
    words = ["score", str(file), "--no-java", "--no-mlflow", "--metrics", "CIDEr", "ROUGE_L", "--out", str(out)]
    assert cli_run(*words) == 0
    found, said = json.loads(out.read_text()), capsys.readouterr().out
    assert list(found["parts"]) == list(DOMAINS)
    for part in DOMAINS:
        write_predictions(tmp_path / f"{part}.jsonl", [row for row in captions() if row.part == part], {})
        alone = score_file(tmp_path / f"{part}.jsonl", use_java=False, use_mlflow=False, metrics=["CIDEr", "ROUGE_L"])
        assert found["parts"][part] == {"num_examples": 3, "scores": alone["scores"]}
        assert f"  {part}: 3 captions  CIDEr {alone['scores']['CIDEr']:.4f}" in said
        assert "parts" not in alone
    assert found["num_examples"] == 9
    write_predictions(file, [replace(row, part=None) for row in captions()], {})
    whole = score_file(file, use_java=False, use_mlflow=False, metrics=["CIDEr", "ROUGE_L"])
    assert "parts" not in whole
    assert whole["scores"] == found["scores"]


def answers() -> list[Prediction]:
    rows = []
    for i, (said, given, kind) in enumerate(
        [
            ("Two.", ["2", "two", "2"] * 3 + ["3"], "number"),
            ("yes", ["yes"] * 10, "yes/no"),
            ("the cat", ["cat"] * 10, "other"),
        ]
    ):
        rows.append(
            Prediction(
                f"v/1#{i}", "v/1", str(i), "image", "vqav2", "val", said, given, None, question="what?", part=kind
            )
        )
    return rows


def test_answers_are_scored_by_all_three_normalisations_and_by_type(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    write_predictions(file, answers(), {})
    found = score_task("vqa", file, tmp_path / "out.json", use_mlflow=False)
    for mode in MODES:
        each = [vqa_accuracy(row.prediction, row.references, mode) for row in answers()]
        assert found["scores"][f"accuracy_{mode}"] == pytest.approx(sum(each) / 3)
        for value, kind in zip(each, ("number", "yes/no", "other"), strict=True):
            assert found["parts"][kind]["scores"][f"accuracy_{mode}"] == value
    assert found["scores"]["accuracy_official"] < found["scores"]["accuracy_lavis"]  # "the cat" where all say "cat"
    assert json.loads((tmp_path / "out.json").read_text()) == found


@remedy("needs a question and the answers of two annotators or more; predict with --task vqa on a set that has them")
def test_rows_that_are_no_answers(tmp_path: Path):
    file = tmp_path / "answers.jsonl"
    write_predictions(file, captions(), {})
    fault = lambda: score_task("vqa", file, tmp_path / "out.json", use_mlflow=False)  # noqa: E731
    return fault, lambda _: write_predictions(file, answers(), {})


def test_means_of_dlc_bench_reach_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    asked = {
        kind: {"question": "which?", "choices": [["a", 1], ["b", -1]], "type": kind}
        for kind in ("positive", "negative")
    }
    (tmp_path / "qa.json").write_text(json.dumps({"7": list(asked.values())}))
    judged = {f"details_{kind}s": [{**one, "pred_index": i}] for i, (kind, one) in enumerate(asked.items())}
    (tmp_path / "judged.json").write_text(json.dumps({"7": {"recognition_result": True, **judged}}))
    files = ["--judged", str(tmp_path / "judged.json"), "--questions", str(tmp_path / "qa.json")]
    assert cli_run("score", "--task", "dlc", *files) == 0

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'regionblip'")
    runs = client.search_runs([experiment.experiment_id])
    found = [run.data.metrics.get("eval/dlc_bench/test/dlc/positives") for run in runs]
    assert 1.0 in found
    assert -1.0 in [run.data.metrics.get("eval/dlc_bench/test/dlc/negatives") for run in runs]
