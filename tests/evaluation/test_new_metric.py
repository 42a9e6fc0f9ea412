"""A new metric is one row of the table: with nothing else it is in every place that shows scores (docs/extending.md, "A metric")."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import compare, score, table
from rb.ablate.table import _headings
from rb.core.metrics import EVERYWHERE, LOWER, METRICS, Metric, Tokenised, of_ablations, shown_in, while_training
from rb.core.run_file import load_run
from rb.data.predictions import Prediction, write_predictions
from rb.evaluation.simple_cider import simple_scores
from rb.exporting.card import score_lines, scores_of
from rb.pages.gallery import choose, gallery, read_file
from rb.pages.report_scores import scores_section
from rb.tracking import Journal
from rb.training.validate import Best

CAPTIONS = ["a red cube", "a ball a ball", "left cone", "a big big big ring"]
REPEATED = (0 + 2 / 4 + 0 + 2 / 5) / 4  # share of words that a caption has already had, mean over captions


def repeated_words(_: Tokenised, predictions: Tokenised) -> tuple[float, list[float]]:
    """Share of the words of a caption that stand in it before: what a model that loops has much of."""
    each = []
    for [text] in predictions.values():
        words = text.split()
        each.append(1 - len(set(words)) / max(1, len(words)))
    return sum(each) / len(each), each


ROW = Metric(
    "repeated_words",
    repeated_words,
    better=LOWER,
    shown_in=EVERYWHERE,
    per_example=True,
    while_training=True,
    perfect=None,
)


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with two scored prediction files, the row in the table, the scores in MLflow."""
    monkeypatch.setitem(METRICS, ROW.name, ROW)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = tmp_path / "run"
    run.mkdir()
    Journal(run / "journal.jsonl").close()
    checkpoint = {"run": str(run), "name": "step_0000300", "step": 300}
    for name, variant, captions in (("after", "checkpoint", CAPTIONS), ("before", "base", ["a a a a"] * 4)):
        rows = [
            Prediction(f"s{i}#o", f"s{i}", "o", "image_region", "toy", "test", text, ["a red cube"], None)
            for i, text in enumerate(captions)
        ]
        made = {"variant": variant, "checkpoint": checkpoint if variant == "checkpoint" else None}
        path = run / "predictions" / f"{name}.jsonl"
        write_predictions(path, rows, made)
        assert score.main([str(path), "--no-java", *(["--no-mlflow"] if variant == "base" else [])]) == 0
    return run


def test_a_metric_is_one_row(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # score file and scores per example
    found = json.loads((scored / "metrics" / "after.json").read_text())
    assert found["scores"]["repeated_words"] == pytest.approx(REPEATED)
    lines = (scored / "metrics" / "after.examples.jsonl").read_text().splitlines()
    assert [json.loads(line)["repeated_words"] for line in lines] == pytest.approx([0, 0.5, 0, 0.4])
    capsys.readouterr()

    # Table 1
    assert table.main([str(scored)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[2].split() == ["|", "CIDEr", "SPICE", "repeated-words"]
    assert next(line for line in text.splitlines() if line.startswith("RegionBLIP")).split()[-1] == "22.5"
    assert "CIDEr, SPICE and repeated-words times 100." in text

    # report: in both tables, the lower one is the better one
    html = scores_section(scored)
    assert html.count('<th scope="col" class="n">repeated-words</th>') == 2
    assert '<td class="n best">22.5</td>' in html
    assert '<td class="n best">75.0</td>' not in html

    # comparison: text with a paired interval, JSON, page
    files = [str(scored / "predictions" / f"{name}.jsonl") for name in ("before", "after")]
    page = tmp_path / "page.html"
    assert compare.main([*files, "--no-java", "--html", str(page)]) == 0
    assert "repeated-words 22.5 [" in (text := capsys.readouterr().out)
    assert "against the first -52.5 [" in text
    assert compare.main([*files, "--no-java", "--json"]) == 0
    [entry] = [
        one["files"][1]["scores"]["repeated_words"] for one in json.loads(capsys.readouterr().out)["sets"].values()
    ]
    assert entry["difference"] == pytest.approx(REPEATED - 0.75)
    assert '<th scope="row">repeated-words</th>' in page.read_text(encoding="utf-8")

    # model card
    assert any("| repeated-words | 22.5 |" in line for line in score_lines(scores_of(scored, "image_region", step=300)))

    # MLflow, at the checkpoint's step
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.search_experiments(filter_string="name = 'regionblip'")[0].experiment_id
    [training] = [one for one in client.search_runs([experiment]) if one.info.run_name == "run"]
    points = client.get_metric_history(training.info.run_id, "eval/toy/test/repeated_words")
    assert [(point.step, point.value) for point in points] == [(300, pytest.approx(REPEATED))]


def test_ablations_and_the_gallery_read_the_table_too(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [metric.name for metric in of_ablations()] == ["CIDEr", ROW.name]
    assert [heading for _, heading, _ in _headings("point_cloud")] == [
        "CIDEr",
        "repeated-words",
        "true",
        "true elsewhere",
    ]
    # Examples are ranked by the first row; where less is better, the best has least.
    monkeypatch.setattr("rb.core.metrics.METRICS", {ROW.name: ROW, **METRICS})
    file = read_file(scored / "predictions" / "after.jsonl", scored)
    views = choose(list(file.rows), file.scores, 1)
    assert (views["best"], views["worst"]) in ((["s0#o"], ["s1#o"]), (["s2#o"], ["s1#o"]))
    assert "the best by the repeated-words of RegionBLIP" in gallery(scored, 1)


def test_validation_and_keep_best_know_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "val/point_cloud/repeated_words"
    path = tmp_path / "run.yaml"
    path.write_text("data: {val: {point_cloud: [{manifest: x}]}}\nvalidation: {every: 5}\n")
    with pytest.raises(ValueError, match="keep_best"):
        load_run(path, [f"validation.keep_best={name}"])
    monkeypatch.setitem(METRICS, ROW.name, ROW)
    assert load_run(path, [f"validation.keep_best={name}"]).validation.keep_best == name
    assert Best(name, 0.2, step=5).beaten_by(0.1)
    assert not Best(name, 0.2, step=5).beaten_by(0.3)
    found = simple_scores(CAPTIONS, [["a red cube"]] * 4, while_training())
    assert found["repeated_words"] == pytest.approx(REPEATED)


def test_a_metric_that_only_describes_has_no_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(METRICS, "words", Metric("words", repeated_words, better=None, while_training=True))
    path = tmp_path / "run.yaml"
    path.write_text("data: {val: {point_cloud: [{manifest: x}]}}\nvalidation: {every: 5}\n")
    with pytest.raises(ValueError, match="keep_best"):
        load_run(path, ["validation.keep_best=val/point_cloud/words"])


def test_rows_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(AssertionError, match="cannot be compared"):
        Metric("x", None, shown_in=EVERYWHERE)
    assert {metric.name for place in EVERYWHERE for metric in shown_in(place)} <= METRICS.keys()
