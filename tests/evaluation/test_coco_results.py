"""Others' predictions in COCO's result format: scores equal to pycocoevalcap's on the same files, what is refused, and the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rb.cli import main as rb
from rb.evaluation.coco_results import read_coco_results
from tests.support.remedies import covers, helps, remedy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "caption_metrics.json").read_text(encoding="utf-8"))
FAST = ["BLEU-1", "BLEU-4", "ROUGE_L", "CIDEr"]

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on PATH")


def write(folder: Path, ids: list[Any], name: str = "captions_val2014.json") -> tuple[Path, Path, list[Any], Any]:
    """The golden captions under ``ids`` as results and annotations; annotations are in another order than images."""
    rows = GOLDEN["rows"][: len(ids)]
    results = [{"image_id": i, "caption": row["prediction"]} for i, row in zip(ids, rows, strict=True)]
    said = [(i, text) for i, row in zip(ids, rows, strict=True) for text in row["references"]]
    annotations = {
        "info": {"year": 2014},
        "images": [{"id": i, "file_name": "a.jpg", "license": 3} for i in ids],
        "licenses": [],
        "type": "captions",
        "annotations": [{"image_id": i, "id": k, "caption": text} for k, (i, text) in enumerate(said)][::-1],
    }
    given, truth = folder / "blip2.json", folder / name
    given.write_text(json.dumps(results))
    truth.write_text(json.dumps(annotations))
    return given, truth, results, annotations


def published(annotations: Path, results: Path) -> dict[str, float]:
    """What pycocoevalcap's COCOEvalCap computes of the files, by its own parts; METEOR and SPICE have golden values elsewhere."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    from pycocotools.coco import COCO

    coco = COCO(str(annotations))
    done = coco.loadRes(str(results))
    truth, given = (PTBTokenizer().tokenize({i: side.imgToAnns[i] for i in coco.getImgIds()}) for side in (coco, done))
    bleu, _ = Bleu(4).compute_score(truth, given, verbose=0)
    others = {
        name: scorer.compute_score(truth, given)[0] for name, scorer in (("ROUGE_L", Rouge()), ("CIDEr", Cider()))
    }
    return {"BLEU-1": bleu[0], "BLEU-4": bleu[3], **others}


@needs_java
@pytest.mark.java
def test_scores_equal_those_of_pycocoevalcap(tmp_path: Path, capsys) -> None:
    given, truth, _, annotations = write(tmp_path, [458755 + 7 * i for i in range(20)])
    annotations["annotations"][3]["caption"] = "A man,\nin a hat ."
    annotations["annotations"].append({"image_id": 7, "id": 999, "caption": "of an image that is not listed"})
    truth.write_text(json.dumps(annotations))
    words = ["score", "--coco-results", str(given), "--annotations", str(truth), "--no-mlflow", "--json"]
    assert rb([*words, "--metrics", *FAST]) == 0
    said = capsys.readouterr()
    assert "left out 1 annotations of images that it does not list" in said.err
    (out, result), *_ = json.loads(said.out).items()
    assert out == str(tmp_path / "blip2.metrics.json")
    assert json.loads(Path(out).read_text()) == result
    expected = published(truth, given)
    assert {name: result["scores"][name] for name in FAST} == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected["BLEU-4"] < expected["CIDEr"]
    assert (result["dataset"], result["split"], result["variant"]) == ("captions_val2014", "val", "other")
    assert (result["num_examples"], result["tokeniser"]) == (20, "ptb")
    assert result["num_references"] == sum(len(row["references"]) for row in GOLDEN["rows"])
    assert result["annotations"] == str(truth)


def test_text_ids_of_regions_and_numbers_that_are_texts_in_one_file(tmp_path: Path) -> None:
    given, truth, *_ = write(
        tmp_path, [f"COCO_train2014_{i:012d}_box_1_2_30_{i}" for i in range(3)], "Refcoco_test.json"
    )
    rows, _ = read_coco_results(given, truth)
    assert {(row.modality, row.dataset, row.split) for row in rows} == {("image_region", "Refcoco_test", "test")}
    given, truth, results, _ = write(tmp_path, [3, 1, 2], "nocaps.json")
    given.write_text(json.dumps([row | {"image_id": str(row["image_id"])} for row in results[::-1]]))
    rows, about = read_coco_results(given, truth)
    assert [row.id for row in rows] == ["3", "1", "2"]
    assert [row.prediction for row in rows] == [row["caption"] for row in results]
    assert [sorted(row.references) for row in rows] == [sorted(r["references"]) for r in GOLDEN["rows"][:3]]
    assert {(row.modality, row.split) for row in rows} == {("image", "all")}
    assert about["variant"] == "other"


IDS = list(range(10, 20))
ROW = {"image_id": 10, "caption": "a cube"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r, _: r[4:], "4 images (10, 11, 12, ...) of 10 in {truth} without a caption; caption them, or give annotations"),
        (lambda r, _: [*r, ROW, {"image_id": "11", "caption": ""}], "2 images (10, 11) with more than one row"),
        (lambda r, _: [*r, {**ROW, "image_id": 7}], "1 image (7) of 11 not listed in {truth}"),
        (lambda r, _: [*r, {**ROW, "image_id": 7.0}], "row 11: must be an object whose image_id is a whole number"),
        (lambda r, _: [*r, {**ROW, "image_id": True}], "row 11: must be an object whose image_id"),
        (lambda r, _: [*r, ["a"]], "row 11: must be an object whose image_id"),
        (lambda r, _: [*r, {"image_id": 7}], "row 11: caption must be a text, got None"),
        (lambda r, _: {"results": r}, "must be a list; COCO's result format"),
        (lambda r, a: a.update(images=[]) or r, "'images' is empty"),
        (lambda r, a: a.update(annotations=a["annotations"][8:]) or r, "without annotations; remove them from 'images'"),
        (lambda r, a: a.pop("images") and r, "field 'images' is missing"),
        (lambda r, a: (a.clear(), r)[1], "field 'images' is missing"),
        (lambda r, a: a["annotations"][0].update(caption=[]) or r, "annotations[0]: caption must be a text"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_in_one_line(spoil, message: str, tmp_path: Path, capsys) -> None:
    given, truth, results, annotations = write(tmp_path, IDS)
    given.write_text(json.dumps(spoil(results, annotations)))
    truth.write_text(json.dumps(annotations))
    assert rb(["score", "--coco-results", str(given), "--annotations", str(truth), "--no-java", "--no-mlflow"]) == 2
    said = capsys.readouterr().err
    assert message.format(truth=truth) in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blip2.json", "captions_val2014.json"]


# Message -> (results that cause it, results and number of the first listed image after its advice was followed).
REMEDIES = {
    "not listed in {}; give the annotations of the split that was captioned, or remove these rows": (
        lambda r: [*r, {**ROW, "image_id": 7}],
        lambda r: (r, 0),
    ),
    "without a caption; caption them, or give annotations": (lambda r: r[4:], lambda r: (r[4:], 4)),
    "every image has one caption: keep one row of each": (lambda r: [*r, ROW], lambda r: (r, 0)),
    "caption must be a text, got {}; write the row again": (
        lambda r: [{**r[0], "caption": 3}, *r[1:]],
        lambda r: (r, 0),
    ),
    "is a whole number or a text, got {}; write it again": (lambda r: [{"caption": "a"}, *r[1:]], lambda r: (r, 0)),
}


@pytest.mark.parametrize("says", covers(REMEDIES))
def test_what_a_refusal_advises_helps(tmp_path: Path, says: str) -> None:
    spoil, mend = REMEDIES[says]
    given, truth, results, annotations = write(tmp_path, IDS)
    given.write_text(json.dumps(spoil(results)))

    def follow(said: str) -> None:
        mended, first = mend(results)
        given.write_text(json.dumps(mended))
        truth.write_text(json.dumps(annotations | {"images": annotations["images"][first:]}))

    helps(says, lambda: read_coco_results(given, truth), follow)


@remedy("{}: {} without annotations; remove them from 'images', and from the results")
def test_an_image_that_nobody_described(tmp_path: Path):
    given, truth, results, annotations = write(tmp_path, IDS)
    truth.write_text(json.dumps(annotations | {"images": [*annotations["images"], {"id": 7}]}))
    given.write_text(json.dumps([*results, {**ROW, "image_id": 7}]))

    def follow(said: str) -> None:
        given.write_text(json.dumps(results))
        truth.write_text(json.dumps(annotations))

    return lambda: read_coco_results(given, truth), follow


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either files that rb predict wrote, or --coco-results"),
        (["a.jsonl", "--coco-results", "b.json", "--annotations", "c.json"], "give either files"),
        (["--coco-results", "b.json"], "belong together"),
        (["a.jsonl", "--annotations", "c.json"], "belong together"),
        (["--coco-results", "b.json", "--annotations", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_options_that_do_not_fit(words: list[str], message: str, capsys) -> None:
    assert rb(["score", *words, "--no-java", "--no-mlflow"]) == 2
    assert message in capsys.readouterr().err


def test_other_models_are_rows_of_the_table(tmp_path: Path, capsys) -> None:
    """Two models on one set: one column, one row each, told apart by their files; the protocol below."""
    (tmp_path / "predictions").mkdir()
    given, truth, results, _ = write(tmp_path / "predictions", IDS)
    other = given.with_name("git.json")
    other.write_text(json.dumps([row | {"caption": "a thing"} for row in results]))
    truth = truth.rename(tmp_path / truth.name)
    words = ["--annotations", str(truth), "--no-java", "--no-mlflow", "--metrics", "CIDEr"]
    assert rb(["score", "--coco-results", str(given), str(other), *words]) == 0
    assert "10 captions, " in (said := capsys.readouterr().out)
    assert "(all annotations of an image)  CIDEr " in said
    assert rb(["table", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "another model predictions/blip2.json |" in table
    assert "another model predictions/git.json   |" in table
    assert "reference policy: all annotations of an image" in table
    assert "captions_val2014 val" in table
