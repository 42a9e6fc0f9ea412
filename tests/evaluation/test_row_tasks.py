"""``rb score --task category | phrase | scan2cap``: golden figures, the protocols side by side, boxes of detectors, files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rb.core import strict_json
from rb.data.predictions import Prediction, write_predictions
from rb.evaluation import category
from rb.evaluation.caption_metrics import score_captions
from rb.evaluation.category import normal_name, score_categories
from tests.support.raw_data import cli_run
from tests.support.remedies import Fault, Said, remedy

GOLDEN = strict_json.read(Path(__file__).parents[1] / "golden" / "category_scores.json")
CUBE, BALL, FAR = [0.0, 0, 0, 1, 1, 1], [3.0, 0, 0, 4, 1, 1], [9.0, 9, 9, 10, 10, 10]


def row(
    item: str, text: str, references: Sequence[str], box: list[float] | None = None, scene: str = "scene0000_00"
) -> Prediction:
    source = f"scannet/{scene}"
    return Prediction(
        f"{source}#{item}", source, item, "point_cloud_region", "scanrefer", "val", text, list(references), box
    )


ROWS = [
    row("1", "a red cube on the floor", ["a red cube on the floor", "the small red cube"], CUBE),
    row("2", "a blue ball by the door", ["this is a blue ball by the door"], BALL),
    row("3", "a green cone", ["a tall green cone in the corner"], FAR, "scene0001_00"),
]


def saved(path: Path, rows: Sequence[Prediction]) -> Path:
    write_predictions(path, rows, {})
    return path


def scored(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert cli_run("score", *map(str, words), "--no-java", "--no-mlflow", "--json") == 0
    return dict(json.loads(capsys.readouterr().out))


def test_category_scores_are_the_public_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [[normal_name(r["prediction"]), normal_name(r["answer"])] for r in GOLDEN["rows"]] == [
        r["processed"] for r in GOLDEN["rows"]
    ]
    found = score_categories([r["prediction"] for r in GOLDEN["rows"]], [[r["answer"]] for r in GOLDEN["rows"]])
    assert found.overlaps == [r["s_iou"] for r in GOLDEN["rows"]]
    assert found.similarities == pytest.approx([r["ss"] for r in GOLDEN["rows"]], abs=1e-5)
    assert "Loading" not in capsys.readouterr().err  # no bar of the library's
    rows = [row(str(k), r["prediction"], [r["answer"]]) for k, r in enumerate(GOLDEN["rows"])]
    file = saved(tmp_path / "names.jsonl", rows)
    scores = scored(capsys, "--task", "category", file, "--out", tmp_path / "out.json")["scores"]
    assert scores["word_overlap"] == pytest.approx(GOLDEN["mean"]["s_iou"], abs=1e-12)
    assert scores["semantic_similarity"] == pytest.approx(GOLDEN["mean"]["ss"], abs=1e-5)
    assert json.loads((tmp_path / "out.json").read_text())["scores"] == scores


def test_without_the_encoder_word_overlap_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(category, "_PACKAGE", "not_there")
    file = saved(tmp_path / "names.jsonl", [row("1", "a red bus", ["car", "bus"])])
    assert cli_run("score", "--task", "category", str(file), "--no-mlflow") == 0
    said = capsys.readouterr()
    assert said.out.strip() == "1 examples:  word_overlap 0.3333"
    assert "regionblip[eval]" in said.err
    assert "1 examples have several names; the best counts" in said.err


def test_phrases_per_region_and_per_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "phrases.jsonl", ROWS)
    region = scored(capsys, "--task", "phrase", file)
    sentence = scored(capsys, "--task", "phrase", file, "--per", "sentence")
    assert (region["entries"], sentence["entries"]) == (3, 4)
    plain = score_captions({r.id: r.prediction for r in ROWS}, {r.id: r.references for r in ROWS}, use_java=False)
    assert region["scores"]["CIDEr"] == plain.scores["CIDEr"]
    pairs = [(f"{r.id}{k}", r.prediction, text) for r in ROWS for k, text in enumerate(r.references)]
    alone = score_captions({i: text for i, text, _ in pairs}, {i: [text] for i, _, text in pairs}, use_java=False)
    assert sentence["scores"]["CIDEr"] == alone.scores["CIDEr"] != plain.scores["CIDEr"]
    assert cli_run("score", "--task", "phrase", str(file), "--per", "sentence", "--no-java", "--no-mlflow") == 0
    assert "4 entries (per sentence: each sentence is one entry):  CIDEr" in capsys.readouterr().out


def test_scores_of_a_task_are_logged_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, Any] = {}
    monkeypatch.setattr(
        "rb.evaluation.scoring.log_evaluation", lambda scores, **rest: logged.update(rest, scores=scores)
    )
    file = saved(tmp_path / "phrases.jsonl", ROWS)
    assert cli_run("score", "--task", "phrase", str(file), "--no-java") == 0
    assert list(logged["scores"]) == ["phrase/CIDEr"]
    assert logged["name"] == "phrases-phrase"
    assert (logged["data"].dataset, logged["tags"]["reference_policy"][:10]) == ("scanrefer", "per region")


def scan2cap(capsys: pytest.CaptureFixture[str], file: Path, *words: object) -> dict[str, Any]:
    return scored(capsys, "--task", "scan2cap", file, *words)


def test_given_boxes_count_all_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "rows.jsonl", ROWS)
    found = scan2cap(capsys, file, "--tokens", "out")
    assert found["protocol"] == "given boxes (no detector); sos and eos out"
    assert found["found"] == {"0.25": 3, "0.5": 3}
    plain = score_captions({r.id: r.prediction for r in ROWS}, {r.id: r.references for r in ROWS}, use_java=False)
    assert found["scores"]["CIDEr@0.5"] == found["scores"]["CIDEr@0.25"] == pytest.approx(plain.scores["CIDEr"])
    assert found["scores"]["ROUGE-L@0.5"] == pytest.approx(plain.scores["ROUGE_L"])
    inside = scan2cap(capsys, file)
    assert inside["protocol"].endswith("eos in")
    assert inside["scores"]["ROUGE-L@0.5"] > found["scores"]["ROUGE-L@0.5"]  # two words that always fit


def test_proposals_are_matched_one_to_one_and_what_is_not_found_scores_0(tmp_path: Path, capsys) -> None:
    file = saved(tmp_path / "rows.jsonl", ROWS)
    all_right = scan2cap(capsys, file)["scores"]
    shifted = [0.0, 0, 0, 1, 1, 2]  # IoU 1/2 with the cube
    less = [3.0, 0, 0, 4, 1, 3.5]  # IoU 1/3.5 with the ball
    proposals = tmp_path / "proposals.json"
    proposals.write_text(json.dumps({"scene0000_00": [{"box": shifted}, {"box": shifted}, {"box": less}]}))
    found = scan2cap(capsys, file, "--proposals", proposals)
    assert found["found"] == {"0.25": 2, "0.5": 1}
    assert found["protocol"].startswith("proposals matched one to one, captions of the given boxes")
    assert found["described"] == 3
    for name in ("CIDEr", "BLEU-4", "ROUGE-L"):
        assert all_right[f"{name}@0.5"] >= found["scores"][f"{name}@0.25"] >= found["scores"][f"{name}@0.5"]
    # The cube's caption is right: it has ROUGE-L 1, over three objects.
    assert found["scores"]["ROUGE-L@0.5"] == pytest.approx(1 / 3)
    captioned = {
        "scene0000_00": [{"box": CUBE, "caption": "nonsense"}, {"box": BALL, "caption": [ROWS[1].references[0]]}]
    }
    proposals.write_text(json.dumps(captioned))
    own = scan2cap(capsys, file, "--proposals", proposals, "--tokens", "out")
    assert "the proposals' captions" in own["protocol"]
    assert own["found"] == {"0.25": 2, "0.5": 2}
    assert own["scores"]["ROUGE-L@0.5"] == pytest.approx(1 / 3)  # of the ball; the cube's is nonsense


def test_predictions_in_proposed_boxes_against_all_described_objects(tmp_path: Path, capsys) -> None:
    given = saved(tmp_path / "given.jsonl", ROWS)
    proposed = saved(tmp_path / "proposed.jsonl", [replace(ROWS[0], box=[0.0, 0, 0, 1, 1, 3]), ROWS[1]])
    found = scan2cap(capsys, proposed, "--given", given)
    assert (found["described"], found["found"]) == (3, {"0.25": 2, "0.5": 1})
    stranger = saved(tmp_path / "other.jsonl", [row("9", "a", ["b"], CUBE)])
    assert cli_run("score", "--task", "scan2cap", str(stranger), "--given", str(given)) == 2
    assert "'scannet/scene0000_00#9' is not among the described objects" in capsys.readouterr().err


def test_proposals_of_another_scene_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "p.json").write_text(json.dumps({"scene0700_00": [{"box": CUBE}]}))
    assert cli_run("score", "--task", "scan2cap", str(file), "--proposals", str(tmp_path / "p.json")) == 2
    assert "holds none of the 2 scenes" in capsys.readouterr().err


def typed_with(words: list[object], at: int, better: Callable[[], object]) -> tuple[Fault, Callable[[Said], object]]:
    return lambda: cli_run("score", *map(str, words), "--no-java", "--no-mlflow"), lambda _: words.__setitem__(
        at, better()
    )


@remedy("boxes have no caption; give every box one, or none")
def test_some_captions(tmp_path: Path):
    file, proposals = saved(tmp_path / "rows.jsonl", ROWS), tmp_path / "p.json"
    some = [{"box": CUBE, "caption": "x"}, {"box": BALL}]
    proposals.write_text(json.dumps({"scene0000_00": some}))
    words = ["--task", "scan2cap", file, "--proposals", proposals]
    return lambda: cli_run("score", *map(str, words), "--no-java", "--no-mlflow"), lambda _: proposals.write_text(
        json.dumps({"scene0000_00": some[:1]})
    )


@remedy("has no box in a scene; predict with --modality point_cloud_region")
def test_no_boxes(tmp_path: Path):
    flat = saved(tmp_path / "flat.jsonl", [replace(r, box=None) for r in ROWS])
    return typed_with(["--task", "scan2cap", flat], 2, lambda: saved(tmp_path / "rows.jsonl", ROWS))


@remedy("scores one file that rb predict wrote; give its predictions.jsonl")
def test_no_file(tmp_path: Path):
    file = saved(tmp_path / "rows.jsonl", ROWS)
    words = ["--task", "phrase"]
    return lambda: cli_run("score", *map(str, words), "--no-java", "--no-mlflow"), lambda _: words.append(file)


@remedy("--given and --proposals say twice where objects were found; give one of them")
def test_both(tmp_path: Path):
    file, proposals = saved(tmp_path / "rows.jsonl", ROWS), tmp_path / "p.json"
    proposals.write_text(json.dumps({"scene0000_00": [{"box": CUBE}]}))
    words = ["--task", "scan2cap", file, "--proposals", proposals, "--given", file]
    return lambda: cli_run("score", *map(str, words), "--no-java", "--no-mlflow"), lambda _: words.__delitem__(
        slice(5, None)
    )


@remedy("is not among the described objects; give both files of one split")
def test_another_split(tmp_path: Path):
    stranger = saved(tmp_path / "other.jsonl", [row("9", "a", ["b"], CUBE)])
    given = saved(tmp_path / "given.jsonl", ROWS)
    return typed_with(["--task", "scan2cap", stranger, "--given", given], 2, lambda: given)
