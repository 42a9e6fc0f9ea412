"""Scoring files through the real command: what it writes, where, what reaches MLflow, what it refuses; and Table 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import score, table
from rb.data.formats import Prediction, read_predictions, write_predictions
from rb.evaluation.caption_metrics import METRICS
from rb.evaluation.comparing import compare
from rb.evaluation.comparison_text import format_comparison
from rb.evaluation.scoring import metrics_path, score_file, set_digest
from rb.evaluation.table import build_table, format_table
from rb.tracking import Journal
from tests.support.processes import finish, start

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "caption_metrics.json").read_text(encoding="utf-8"))
DECODING = {"num_beams": 5, "min_new_tokens": 1, "max_new_tokens": 30}
CHECKPOINT = {"run": "/somewhere/toy", "name": "step_0000300", "step": 300}

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on PATH")


def rows(modality: str = "image_region") -> list[Prediction]:
    return [
        Prediction(row["id"], row["id"], None, modality, "refcoco", "test", row["prediction"], row["references"], None)
        for row in GOLDEN["rows"]
    ]


def write(path: Path, predictions: list[Prediction] | None = None, **meta: Any) -> Path:
    made = {
        "variant": "checkpoint",
        "checkpoint": CHECKPOINT,
        "decoding": DECODING,
        "reference_policy": "all sentences",
    }
    write_predictions(path, rows() if predictions is None else predictions, {**made, **meta})
    return path


def command(*args: object, **environment: str | None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    call = [sys.executable, "-m", "eval.score", *map(str, args)]
    return subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_what_a_metrics_file_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "run" / "predictions" / "regions.jsonl")
    returned = score_file(path, use_java=False, use_mlflow=False, attainable=True)
    written = json.loads((tmp_path / "run" / "metrics" / "regions.json").read_text())
    assert written == returned
    assert [written[key] for key in ("modality", "dataset", "split", "variant")] == [
        "image_region",
        "refcoco",
        "test",
        "checkpoint",
    ]
    assert set(written["scores"]) == set(METRICS)
    assert written["scores"]["CIDEr"] == pytest.approx(GOLDEN["corpus"]["CIDEr"], abs=1e-9)
    assert (written["num_examples"], written["num_references"]) == (20, sum(len(r.references) for r in rows()))
    assert (written["decoding"], written["reference_policy"]) == (DECODING, "all sentences")
    assert written["checkpoint"] == CHECKPOINT
    assert 0 < written["scores"]["CIDEr"] < written["attainable"]["CIDEr"] < 10
    lines = (tmp_path / "run" / "metrics" / "regions.examples.jsonl").read_text().splitlines()
    examples = {row["id"]: row["CIDEr"] for row in map(json.loads, lines)}
    assert set(examples) == {row.id for row in rows()}
    assert sum(examples.values()) / 20 == pytest.approx(written["scores"]["CIDEr"], abs=1e-12)


def test_where_scores_go(tmp_path: Path) -> None:
    assert metrics_path(tmp_path / "predictions" / "a.jsonl") == tmp_path / "metrics" / "a.json"
    assert metrics_path(tmp_path / "predictions.jsonl") == tmp_path / "metrics.json"
    assert metrics_path(tmp_path / "a.jsonl") == tmp_path / "a.metrics.json"


def test_the_set_is_its_ids_and_references_and_nothing_else() -> None:
    digest = set_digest(rows())
    assert set_digest(rows()[::-1]) == digest
    assert set_digest([replace(row, prediction="other") for row in rows()]) == digest
    assert set_digest(rows()[1:]) != digest
    assert set_digest([replace(rows()[0], references=["other"]), *rows()[1:]]) != digest


def test_without_java_one_line_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    path = write(tmp_path / "predictions.jsonl")
    done = command(path, "--no-mlflow", PATH=str(tmp_path / "bin"), JAVA_HOME=None)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for name in ("METEOR", "SPICE"):
        mine = [line for line in lines if line.startswith(f"skipped {name}: ")]
        assert len(mine) == 1
        assert "install a Java runtime" in mine[0]
    assert "Traceback" not in done.stderr
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {name for name, value in written["scores"].items() if value is None} == {"METEOR", "SPICE"}
    assert set(written["skipped"]) == {"METEOR", "SPICE"}
    assert written["tokeniser"] == "simple"


def repeat_a_row(path: Path) -> str:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[3]]))
    return "line 21: id 'c03' is already in"


def lose_a_row(path: Path) -> str:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return "19 rows, but its meta file counts 20"


def swap_an_id(path: Path) -> str:
    path.write_text(path.read_text().replace("c07", "x07"))
    return "its ids are not those that its meta file names"


def mix_sets(path: Path) -> str:
    write(path, [*rows()[1:], replace(rows()[0], split="val")])
    return "rows of 2 sets (image_region refcoco test; image_region refcoco val)"


def drop_references(path: Path) -> str:
    write(path, [*rows()[1:], replace(rows()[0], references=[])])
    return "id 'c00' has no references to score against"


def leave_none(path: Path) -> str:
    write(path, [])
    return "no predictions in it"


def remove(path: Path) -> str:
    path.unlink()
    return "no predictions file there"


def invent_a_variant(path: Path) -> str:
    write(path, variant="bas")
    return "variant 'bas'; known: base, crops, checkpoint, shuffled, blind"


@pytest.mark.parametrize(
    "spoil",
    [repeat_a_row, lose_a_row, swap_an_id, mix_sets, drop_references, leave_none, remove, invent_a_variant],
    ids=lambda f: f.__name__,
)
def test_a_file_that_cannot_be_scored_is_refused_in_one_line(spoil, tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "predictions.jsonl")
    message = spoil(path)
    assert score.main([str(path), "--no-java", "--no-mlflow"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert str(path) in said
    assert not (tmp_path / "metrics.json").exists()


def test_out_names_one_file_only(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "a.jsonl")
    assert score.main([str(path), str(path), "--out", str(tmp_path / "m.json")]) == 2
    assert "--out names one file" in capsys.readouterr().err
    assert score.main([str(path), "--out", str(tmp_path / "new" / "m.json"), "--no-java", "--no-mlflow"]) == 0
    assert (tmp_path / "new" / "m.examples.jsonl").is_file()


@pytest.mark.slow
@needs_java
@pytest.mark.java
def test_scorings_at_the_same_time_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on one SPICE cache: one has it, the other does without. Neither stalls at a model that loops."""
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xmx1m")  # reaches no tool
    loop = "a chair left of a table and " * 143  # 1,001 words, which held SPICE for minutes
    long = replace(rows()[0], id="long", source_id="long", prediction=loop, references=["a chair", f"a cube {loop}"])
    more = ([long], [])
    wanted = ["CIDEr", "SPICE"] if os.environ.get("RB_SPICE_JARS") else ["CIDEr", "BLEU-4"]
    calls = []
    for number in range(2):
        path = write(tmp_path / f"{number}" / "predictions.jsonl", [*rows()[number : number + 3], *more[number]])
        options = ["--no-mlflow", "--spice-cache", str(tmp_path / "cache"), "--metrics", *wanted]
        calls.append([path, *options])
    running = [start("eval.score", *call) for call in calls]
    for number, process in enumerate(running):
        said = finish(process)
        if "SPICE" in wanted:
            assert ("first 60 words of 1 predictions and 1 references" in said) == (number == 0)
    for number in range(2):
        written = json.loads((tmp_path / f"{number}" / "metrics.json").read_text())
        assert written["tokeniser"] == "ptb"
        assert written["skipped"] == {}
        if "SPICE" in wanted:
            expected = [row["spice"]["All"]["f"] for row in GOLDEN["rows"][number : number + 3]]
            lines = (tmp_path / f"{number}" / "metrics.examples.jsonl").read_text().splitlines()
            found = {row["id"]: row["SPICE"] for row in map(json.loads, lines)}
            assert found.pop("long", 1) > 0
            assert sorted(found.values()) == pytest.approx(sorted(expected), abs=1e-9)
            assert written["spice_cut"] == {"words": 60, "predictions": 1 - number, "references": 1 - number}


def test_a_terminated_scoring_takes_java_along(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    java, mark = tmp_path / "bin" / "java", tmp_path / "pid"
    # Gives a version, then hangs as the tokeniser.
    java.write_text(
        f"""#!/bin/sh\n[ "$1" = -version ] && echo 'openjdk version "17"' >&2 && exit\n"""
        f"""echo $$ > {mark}.new; /bin/mv {mark}.new {mark}; exec /bin/sleep 600\n"""
    )
    java.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | {"PATH": str(java.parent)}
    path = write(tmp_path / "predictions.jsonl")
    process = subprocess.Popen([sys.executable, "-m", "eval.score", str(path), "--no-mlflow"], cwd=ROOT, env=env)
    try:
        deadline = time.monotonic() + 240
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert mark.exists()
        process.terminate()
        assert process.wait(timeout=120) == 143
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_scores_reach_the_training_run_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = tmp_path / "toy"
    run.mkdir()
    Journal(run / "journal.jsonl").close()
    trained = write(run / "predictions" / "regions.jsonl", checkpoint={**CHECKPOINT, "run": str(run)})
    base = [replace(row, prediction="a thing") for row in rows()]
    untrained = write(run / "predictions" / "base.jsonl", base, variant="base", checkpoint=None)
    assert score.main([str(trained), str(untrained), "--no-java"]) == 0

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.search_experiments(filter_string="name = 'regionblip'")[0].experiment_id
    runs = {one.info.run_name: one for one in client.search_runs([experiment])}
    assert set(runs) == {"toy", "toy-regions", "toy-base"}
    for metric in ("CIDEr", "BLEU-4", "ROUGE_L"):
        points = client.get_metric_history(runs["toy"].info.run_id, f"eval/refcoco/test/{metric}")
        assert [(p.step, p.value) for p in points] == [(300, pytest.approx(GOLDEN["corpus"][metric], abs=1e-9))]
        points = client.get_metric_history(runs["toy"].info.run_id, f"eval/refcoco/test/base/{metric}")
        assert [p.step for p in points] == [0]
        assert points[0].value < GOLDEN["corpus"][metric]
    assert "eval/refcoco/test/METEOR" not in runs["toy"].data.metrics
    job = runs["toy-regions"]
    assert job.data.metrics["eval/refcoco/test/CIDEr"] == pytest.approx(GOLDEN["corpus"]["CIDEr"], abs=1e-9)
    assert job.data.tags["variant"] == "checkpoint"
    digest = set_digest(read_predictions(trained)[0])
    assert job.data.params["set_sha256"] == digest
    (scored,) = job.inputs.dataset_inputs
    assert (scored.dataset.name, scored.dataset.digest) == ("refcoco", digest[:36])
    assert scored.dataset.source == str(trained.resolve())
    assert {tag.key: tag.value for tag in scored.tags} == {"digest": digest, "mlflow.data.context": "evaluation"}
    # As MLflow's own clients write a child run: who, with what, under which run, from when to when.
    assert job.data.tags["mlflow.parentRunId"] == runs["toy"].info.run_id
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(job.data.tags)
    assert all(one.info.start_time <= one.info.end_time for one in (job, runs["toy-base"]))
    assert client.get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"


def metrics(variant: str, modality: str, cider: float, spice: float | None, **more: Any) -> dict[str, Any]:
    return {
        "modality": modality,
        "dataset": "refcoco" if modality == "image_region" else "cap3d",
        "split": "test",
        "variant": variant,
        "checkpoint": CHECKPOINT if variant == "checkpoint" else None,
        "scores": {"CIDEr": cider, "SPICE": spice},
        "attainable": {"CIDEr": 7.5},
        "skipped": {} if spice is not None else {"SPICE": "RB_SPICE_JARS is not set"},
        "tokeniser": "ptb",
        "num_examples": 1234,
        "num_references": 3456,
        "set_sha256": modality,
        "reference_policy": "all sentences",
        "decoding": DECODING,
        **more,
    }


TABLE = [
    metrics("checkpoint", "point_cloud", 0.851, None),
    metrics("checkpoint", "image_region", 0.635, 0.213),
    metrics("crops", "image_region", 0.151, 0.0456),
    metrics("base", "image_region", 0.0, 0.0, decoding={**DECODING, "num_beams": 1}),
]


def test_table_1() -> None:
    text = format_table(TABLE)
    assert text.splitlines()[:7] == [
        "              | image region | point cloud",
        "              | refcoco test |  cap3d test",
        "              | CIDEr  SPICE | CIDEr  SPICE",
        "--------------+--------------+-------------",
        "base          |   0.0    0.0 |     -      -",
        "base on crops |  15.1    4.6 |     -      -",
        "RegionBLIP    |  63.5   21.3 |  85.1      -",
    ]
    notes = text.split("\n\n")[1]
    assert "image region (refcoco test): 1,234 captions, 3456 references; reference policy: all sentences" in notes
    assert "CIDEr of a perfect captioner 750.0" in notes
    assert "image region (refcoco test), base: decoding num_beams 1" in notes
    assert "point cloud (cap3d test): SPICE skipped: RB_SPICE_JARS is not set" in notes
    assert format_table(TABLE[::-1]) == text


def test_unequal_sets_and_tokenisers_get_columns_of_their_own() -> None:
    base = metrics("base", "image_region", 0.1, 0.1)
    for difference in ({"set_sha256": "another"}, {"tokeniser": "simple"}):
        result = build_table([base, metrics("checkpoint", "image_region", 0.2, 0.2, **difference)])
        assert len(result.columns) == 2
        assert sorted(cells for _, row in result.rows for cells in row) == [
            ("-", "-"),
            ("-", "-"),
            ("10.0", "10.0"),
            ("20.0", "20.0"),
        ]
    assert len(build_table([base, metrics("checkpoint", "image_region", 0.2, 0.2)]).columns) == 1


def test_two_trained_models_are_told_apart_and_two_claims_refused() -> None:
    later = metrics("checkpoint", "image_region", 0.7, 0.2, checkpoint={**CHECKPOINT, "name": "step_0000600"})
    names = [name for name, _ in build_table([*TABLE, later]).rows]
    assert names == ["base", "base on crops", "RegionBLIP toy/step_0000300", "RegionBLIP toy/step_0000600"]
    with pytest.raises(ValueError, match=r"a\.json and b\.json score the same"):
        build_table([{**later, "file": "a.json"}, {**later, "file": "b.json"}])


def test_table_command(tmp_path: Path, capsys) -> None:
    assert table.main([str(tmp_path)]) == 2
    assert "no metrics there; `rb score" in capsys.readouterr().err
    write(tmp_path / "predictions" / "a.jsonl")
    assert score.main([str(tmp_path / "predictions" / "a.jsonl"), "--no-java", "--no-mlflow"]) == 0
    capsys.readouterr()
    assert table.main([str(tmp_path)]) == 0
    assert "RegionBLIP | 164.6      -" in capsys.readouterr().out
    (tmp_path / "metrics" / "b.json").write_text("{}")
    assert table.main([str(tmp_path)]) == 2
    assert "b.json: no metrics file (it has no 'modality')" in capsys.readouterr().err


@pytest.mark.parametrize("references", [["a red cube"], ["a red cube", "the cube"]])
@pytest.mark.parametrize("examples", [1, 3])
def test_a_cider_that_is_0_whatever_is_predicted_is_said_to_be(
    tmp_path: Path, capsys, references: list[str], examples: int
) -> None:
    """CIDEr counts what tells references apart: nothing in a set of one example, or of equal references."""
    given = [replace(row, prediction=references[0], references=references) for row in rows()[:examples]]
    path = write(tmp_path / "predictions/a.jsonl", given)
    assert score.main([str(path), "--no-java", "--no-mlflow", "--metrics", "CIDEr"]) == 0
    shown = capsys.readouterr()
    assert "CIDEr 0.0000" in shown.out
    remark = "CIDEr is 0 whatever is predicted"
    assert shown.err.count(remark) == 1
    assert table.main([str(tmp_path)]) == 0
    assert remark in capsys.readouterr().out
    assert remark in format_comparison("x", compare([path, path], use_java=False))


def test_an_ordinary_set_has_no_remark_on_its_cider(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "predictions/a.jsonl", rows()[:2])
    assert score.main([str(path), "--no-java", "--no-mlflow", "--metrics", "CIDEr"]) == 0
    assert "whatever" not in capsys.readouterr().err
