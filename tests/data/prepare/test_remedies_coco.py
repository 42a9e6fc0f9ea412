"""What `rb prepare coco|nocaps|vqav2` advises helps: other files than those asked for, splits that nothing names, answers that are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rb.data.prepare import coco, nocaps, vqav2
from tests.data.prepare.test_coco import coco_raw, entry
from tests.data.prepare.test_coco_kinds import lavis, official, put, write
from tests.data.prepare.test_nocaps import image, nocaps_raw
from tests.data.prepare.test_vqav2 import answered, asked, files
from tests.support.raw_data import convert
from tests.support.remedies import Said, covers, helps, ran, remedy

PICTURE = "val2014/COCO_val2014_000000000001.jpg"
GT = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 1, "caption": "a cube"}]}
RESULTS = [{"image_id": 1, "caption": "a cube"}]
QUESTION = {"question_id": 10, "question": "Is it red?", "image": PICTURE, "answer": ["yes"] * 10}
# Message -> a file that it is printed for, and the command that reads that file.
OTHER_FILES: dict[str, tuple[Any, str]] = {
    "{}: its images are of Open Images, not COCO; `rb prepare nocaps` reads it": (
        {"images": [image(0, "in-domain", "a.jpg")], "annotations": [{"image_id": 0, "id": 0, "caption": "a cube"}]},
        "{command} --raw {raw} --annotations {file} --out {out}",
    ),
    "these are questions, which `rb prepare vqav2` reads": (
        [QUESTION],
        "{command} --raw {raw} --questions {file} --out {out}",
    ),
    "these are predictions, which `rb score --coco-results FILE --annotations FILE` scores": (
        RESULTS,
        "rb score --coco-results {file} --annotations {gt} --no-java --no-mlflow --metrics CIDEr",
    ),
    "{}: its images have no file names, as in LAVIS's files for scoring (`rb score --coco-results FILE --annotations {}` uses it); give "
    "coco_karpathy_train.json, coco_karpathy_val.json or coco_karpathy_test.json": (
        GT,
        "rb score --coco-results {results} --annotations {file} --no-java --no-mlflow --metrics CIDEr",
    ),
}


@pytest.mark.parametrize(
    "says", covers(OTHER_FILES, ["{}: its first row is no image with a caption (fields image, caption); {}"])
)
def test_another_file_is_sent_to_what_reads_it(tmp_path: Path, says: str) -> None:
    """The command that is named reads the file; with the right file this one works too."""
    content, command = OTHER_FILES[says]
    raw = put(tmp_path / "raw", PICTURE, "images/a.jpg", "images/val2014/COCO_val2014_000000000001.jpg")
    places = {"raw": raw, "out": tmp_path / "theirs", "file": write(tmp_path, "mine_val.json", content)}
    places |= {"gt": write(tmp_path, "gt.json", GT), "results": write(tmp_path, "results.json", RESULTS)}

    def follow(said: Said) -> None:
        named = next(words for words in said.commands if words.startswith("rb "))
        assert command.startswith(("{command}", "rb score")), command
        assert named.split()[:2] == command.format(command=named, **places).split()[:2]
        ran(command.format(command=named, **places))
        write(tmp_path, "mine_val.json", [lavis(1, "a cube")])

    helps(says, lambda: convert(coco, raw, tmp_path / "out", "val", annotations=places["file"]), follow)


@remedy("{}: its annotations have no captions; give captions_*.json of the same split")
def test_boxes_in_place_of_captions(tmp_path: Path):
    raw = put(tmp_path / "raw", PICTURE)
    content = official("val2014", {1: ["a cube"]})
    file = write(raw, "captions_val2014.json", content | {"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]})
    return lambda: convert(coco, raw, tmp_path / "out", "val"), lambda _: file.write_text(json.dumps(content))


@remedy("{}: which split it holds is not in its name; let it end in _train.json, _val.json or _test.json")
def test_a_list_that_does_not_name_its_split(tmp_path: Path):
    raw, given = put(tmp_path / "raw", PICTURE), {"file": write(tmp_path, "rows.json", [lavis(1, "a cube")])}

    def follow(said: Said) -> None:
        given["file"] = given["file"].rename(tmp_path / f"rows{said.found(r'json, (_val.json)')}")

    return lambda: convert(coco, raw, tmp_path / "out", "val", annotations=given["file"]), follow


@remedy("{}: {}, but {}: {}; choose one of them with --annotations")
def test_two_kinds_under_the_names_of_one(tmp_path: Path):
    raw = coco_raw(tmp_path / "raw", [entry(9, "train")])
    shutil.move(raw / "dataset_coco.json", raw / "coco_karpathy_val.json")
    write(raw, "coco_karpathy_train.json", [lavis(9, "a cube", "train2014")])
    given: dict[str, Path] = {}

    def follow(said: Said) -> None:
        given[said.found(r"with --(\w+)")] = raw / "coco_karpathy_train.json"

    return lambda: convert(coco, raw, tmp_path / "out", "train", **given), follow


@remedy("split {}: only {} has published captions; leave --split out")
def test_the_test_split_of_nocaps(tmp_path: Path):
    raw = nocaps_raw(tmp_path / "raw", [image(0, "in-domain", "a.jpg")], [])
    asked_for = ["test"]
    return lambda: convert(nocaps, raw, tmp_path / "out", *asked_for), lambda _: asked_for.__setitem__(
        0, nocaps.open_raw(raw).splits[0]
    )


@remedy("{}: which split it holds is neither in 'data_subtype' nor in its name; let it end in _train.json")
def test_questions_that_do_not_name_their_split(tmp_path: Path):
    raw = files(put(tmp_path / "raw", PICTURE), [], [answered(10, 1)])
    given = {"questions": write(tmp_path, "mine.json", {"questions": [asked(10, 1)]})}

    def follow(said: Said) -> None:
        given["questions"] = given["questions"].rename(tmp_path / f"mine{said.found(r'json, (_val.json)')}")

    return lambda: convert(vqav2, raw, tmp_path / "out", "val", **given), follow


@pytest.mark.parametrize("beside", [True, False])
def test_questions_without_their_answers(tmp_path: Path, beside: bool) -> None:
    raw = files(put(tmp_path / "raw", PICTURE), [asked(10, 1)], [answered(10, 1)])
    away = shutil.move(raw / "v2_mscoco_val2014_annotations.json", tmp_path / "answers.json")
    given: dict[str, Path] = {}

    def follow(said: Said) -> None:
        if beside:
            shutil.move(away, raw / said.found(r"put (\S+\.json) beside it"))
        else:
            given[said.found(r"give --(\w+)")] = away

    says = "no answers to its questions; put v2_mscoco_{}_annotations.json beside it, or give --annotations FILE"
    helps(says, lambda: convert(vqav2, raw, tmp_path / "out", "val", **given), follow)


covers(["no answers to its questions; put v2_mscoco_{}_annotations.json beside it, or give --annotations FILE"])
