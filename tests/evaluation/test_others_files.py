"""Predictions for others' tools and from them: each form as the other tool reads it, ids that do not belong together, logs of lmms-eval."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rb.data.predictions import Prediction, write_predictions
from rb.evaluation.coco_results import read_coco_results
from rb.evaluation.dlc_judge import read_captions
from rb.evaluation.others_files import read_lmms_eval
from tests.support.raw_data import cli_run
from tests.support.remedies import remedy

TEXTS = ["left man", 'the "big"\tdog', "a caf\u00e9\nat night"]


def rows(region: bool = True) -> list[Prediction]:
    return [
        Prediction(
            f"coco/{10 + k}#{k}" if region else f"coco/{10 + k}",
            f"coco/{10 + k}",
            str(k) if region else None,
            "image_region" if region else "image",
            "refcoco",
            "val",
            text,
            [f"reference {k}", "man"],
            None,
        )
        for k, text in enumerate(TEXTS)
    ]


def exported(folder: Path, form: str, *words: object, region: bool = True) -> Path:
    write_predictions(folder / "rows.jsonl", rows(region), {})
    out = folder / f"out-{form}.{'tsv' if form == 'vlmevalkit' else 'json'}"
    assert (
        cli_run("export-predictions", str(folder / "rows.jsonl"), "--as", form, "--out", str(out), *map(str, words))
        == 0
    )
    return out


def replayed(path: Path) -> dict[int, str]:
    """As lmms-eval's from_log takes a log: every error would be passed over there."""
    log = json.loads(path.read_text())
    assert log["args"]["limit"] is None
    assert isinstance(log["args"]["model_args"], str)
    assert log["model_configs"]["task"] == "refcoco_bbox_val"
    return {one["doc_id"]: one["resps"][0][0] for one in log["logs"]}


def test_lmms_eval_replays_our_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(tmp_path, "lmms-eval", "--task", "refcoco_bbox_val")
    assert replayed(path) == dict(enumerate(TEXTS))
    assert json.loads((tmp_path / "out-lmms-eval.doc_ids.json").read_text()) == {r.id: k for k, r in enumerate(rows())}
    assert "hold it against the order of refcoco_bbox_val" in capsys.readouterr().out
    order = {r.id: 2 - k for k, r in enumerate(rows())}
    (tmp_path / "ids.json").write_text(json.dumps(order))
    path = exported(tmp_path, "lmms-eval", "--task", "refcoco_bbox_val", "--doc-ids", tmp_path / "ids.json")
    assert replayed(path) == dict(enumerate(reversed(TEXTS)))


def test_coco_dam_and_vlmevalkit(tmp_path: Path) -> None:
    coco = exported(tmp_path, "coco", region=False)
    truth = {
        "images": [{"id": 10 + k} for k in range(3)],
        "annotations": [{"image_id": 10 + k, "caption": "x"} for k in range(3)],
    }
    (tmp_path / "captions_val.json").write_text(json.dumps(truth))
    assert [r.prediction for r in read_coco_results(coco, tmp_path / "captions_val.json")[0]] == TEXTS
    assert json.loads(coco.read_text())[0]["image_id"] == 10
    assert list(read_captions(exported(tmp_path, "dam"), ["0", "1", "2"]).values()) == TEXTS
    with exported(tmp_path, "vlmevalkit").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [one["prediction"] for one in table] == TEXTS
    assert [json.loads(one["answer"]) for one in table] == [r.references for r in rows()]
    assert list(table[0]) == ["index", "image", "question", "answer", "prediction"]


def sample(number: int, **changes: Any) -> dict[str, Any]:
    return {"doc_id": number, "filtered_resps": [TEXTS[number]], "target": "['reference', 'man']", **changes}


@pytest.mark.parametrize("form", ["lines", "metric", "old"])
def test_logs_of_lmms_eval_are_scored_as_ours(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "20261129_041133_samples_refcoco_bbox_val.jsonl"
    said = {"answer": ["reference", "man"], "pred": "x", "ann_id": 7}
    changes = {"refcoco_CIDEr": said, "target": ""} if form == "metric" else {}
    items = [sample(k, **changes) for k in range(3)]
    if form == "old":
        path = tmp_path / "refcoco.json"
        logs = [{"doc_id": k, "resps": [[TEXTS[k]]], "target": ["reference", "man"]} for k in range(3)]
        path.write_text(json.dumps({"args": {}, "model_configs": {"task": "refcoco_bbox_val"}, "logs": logs}))
    else:
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
    found, about = read_lmms_eval(path)
    assert [r.prediction for r in found] == TEXTS
    assert {tuple(r.references) for r in found} == {("reference", "man")}
    assert {(r.dataset, r.split, r.modality) for r in found} == {("refcoco_bbox_val", "val", "image_region")}
    assert about["variant"] == "other"
    assert cli_run("score", "--lmms-eval", str(path), "--no-java", "--no-mlflow", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out).values()
    assert result["num_examples"] == 3
    assert result["num_references"] == 6


def scored(folder: Path, content: str, good: str):
    path = folder / "a_samples_refcoco_bbox_val.jsonl"
    path.write_text(content)
    return (
        lambda: cli_run("score", "--lmms-eval", str(path), "--no-java", "--no-mlflow"),
        lambda _: path.write_text(good),
    )


GOOD = json.dumps(sample(0)) + "\n" + json.dumps(sample(1)) + "\n"


@remedy(
    "must hold doc_id, filtered_resps or resps, and target; give its log of samples",
    also=["holds no documents; give its log of samples"],
)
def test_another_log(tmp_path: Path):
    return scored(tmp_path, json.dumps({"doc_id": 3, "text": "x"}), GOOD)


@remedy("comes twice; keep one row of each")
def test_a_document_twice(tmp_path: Path):
    return scored(tmp_path, GOOD + GOOD, GOOD)


@remedy("has no logs of lmms-eval; give its log of samples")
def test_another_file(tmp_path: Path):
    (tmp_path / "x.json").write_text("[]")
    (tmp_path / "y_samples_refcoco.jsonl").write_text(GOOD)
    files = [tmp_path / "x.json"]
    return (
        lambda: cli_run("score", "--lmms-eval", str(files[0]), "--no-java", "--no-mlflow"),
        lambda _: files.insert(0, tmp_path / "y_samples_refcoco.jsonl"),
    )


def exporting(folder: Path, *words: object):
    write_predictions(folder / "rows.jsonl", rows(), {})
    given = ["export-predictions", str(folder / "rows.jsonl"), "--out", str(folder / "o"), *map(str, words)]
    return given, lambda: cli_run(*given)


@remedy("give it by --task, such as refcoco_bbox_val")
def test_no_task(tmp_path: Path):
    words, fault = exporting(tmp_path, "--as", "lmms-eval")
    return fault, lambda said: words.extend(["--task", said.found(r"such as (\w+)")])


@pytest.mark.parametrize("ids", [{"coco/10#0": 0}, {"more": 9}, {"coco/10#0": 1}, {"coco/10#0": 5}], ids=str)
def test_doc_ids_that_do_not_belong(ids: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {r.id: k for k, r in enumerate(rows())}
    (tmp_path / "ids.json").write_text(json.dumps(ids if len(ids) == 1 and ids.get("coco/10#0") == 0 else whole | ids))
    _, fault = exporting(tmp_path, "--as", "lmms-eval", "--task", "t", "--doc-ids", tmp_path / "ids.json")
    assert fault() == 2
    assert "lmms-eval asks for every document" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@remedy(
    "lmms-eval asks for every document of its task: give one prediction for each",
    also=["must map ids of predictions to doc_ids, whole numbers; write it again"],
)
def test_doc_ids(tmp_path: Path):
    (tmp_path / "ids.json").write_text(json.dumps({"coco/10#0": 0}))
    _, fault = exporting(tmp_path, "--as", "lmms-eval", "--task", "t", "--doc-ids", tmp_path / "ids.json")
    whole = {r.id: k for k, r in enumerate(rows())}
    return fault, lambda _: (tmp_path / "ids.json").write_text(json.dumps(whole))


@remedy("would both be {} there; write one file for each")
def test_one_name_for_two(tmp_path: Path):
    pair = [Prediction(f"{s}/1", f"{s}/1", None, "image", "d", "val", "t", ["r"], None) for s in ("coco", "vg")]
    write_predictions(tmp_path / "rows.jsonl", pair, {})
    return (
        lambda: cli_run(
            "export-predictions", str(tmp_path / "rows.jsonl"), "--as", "coco", "--out", str(tmp_path / "o")
        ),
        lambda _: write_predictions(tmp_path / "rows.jsonl", pair[:1], {}),
    )
