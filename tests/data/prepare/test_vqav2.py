"""The VQAv2 converter on hand-made files in the true formats: questions of one image in one record, answers letter by letter, rejections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rb.data.formats import Question
from rb.data.index import ManifestReader
from rb.data.prepare import vqav2
from rb.data.prepare.convert import Writing
from rb.data.prepare.convert import convert as convert_plan
from rb.data.prepare.plan import Plan
from rb.data.unfinished import Work
from tests.data.prepare.test_coco_kinds import put, write
from tests.support.raw_data import cli_run, convert, found, reasons

ODD = ["yes", "Yes.", "yes", "no", "it's\ta dog", "", "2", "yes", "yes", "yes"]


def asked(question_id: Any, image_id: Any, text: Any = "Is it red?") -> dict[str, Any]:
    return {"image_id": image_id, "question": text, "question_id": question_id}


def answered(question_id: int, image_id: int, answers: Any = None, kind: str = "yes/no") -> dict[str, Any]:
    texts = ["yes"] * 10 if answers is None else answers
    return {
        "question_type": "is it",
        "multiple_choice_answer": "yes",
        "answers": [{"answer": t, "answer_confidence": "maybe", "answer_id": k} for k, t in enumerate(texts, 1)],
        "image_id": image_id,
        "answer_type": kind,
        "question_id": question_id,
    }


def files(raw: Path, questions: list[Any], annotations: list[Any] | None, subset: str = "val2014") -> Path:
    head = {"info": {"version": "2.0", "year": 2017}, "data_type": "mscoco", "license": {"url": "x"}}
    about = {**head, "task_type": "Open-Ended", "data_subtype": subset, "questions": questions}
    write(raw, f"v2_OpenEnded_mscoco_{subset}_questions.json", about)
    if annotations is not None:
        write(raw, f"v2_mscoco_{subset}_annotations.json", {**head, "data_subtype": subset, "annotations": annotations})
    return raw


def test_questions_of_an_image_are_one_record_with_answers_as_they_stand(tmp_path: Path, capsys) -> None:
    raw = put(tmp_path / "raw", "val2014/COCO_val2014_000000262148.jpg", "train2017/000000000042.jpg")
    questions = [asked(262148000, 262148, " Where is\nhe looking? "), asked(42000, 42), asked(262148001, 262148)]
    annotations = [
        answered(262148001, 262148, ODD),
        answered(42000, 42),
        answered(262148000, 262148, ["down"] * 10, "other"),
    ]
    files(raw, questions, annotations)
    assert cli_run("prepare", "vqav2", "--raw", str(raw), "--out", str(tmp_path / "out"), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["unit"], answer["read"], answer["used"], answer["notes"]) == ("questions", 3, 3, {"images": 2})
    reader = ManifestReader(tmp_path / "out")
    assert (reader.manifest.split, reader.manifest.sample_kind) == ("val", "questions")
    assert reader.manifest.counts == {"records": 2, "objects": 0, "samples": 3}
    records = [record for record, _ in reader.records()]
    assert [(r.source_id, r.dataset) for r in records] == [("coco/262148", "vqav2"), ("coco/42", "vqav2")]
    assert records[0].questions == [
        Question(262148000, "Where is he looking?", ["down"] * 10, "is it", "other"),
        Question(262148001, "Is it red?", ODD, "is it", "yes/no"),
    ]


def test_what_cannot_be_used_is_rejected_by_reason(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "val2014/COCO_val2014_000000000001.jpg")
    questions = [
        asked(10, 1), asked(10, 1), asked(11, 1, "..."), asked("12", 1), asked(13, "1"), 7, asked(14, 1), asked(15, 1),
        asked(16, 1), asked(17, 1), asked(20, 2), asked(21, 2), asked(18, 1),
    ]  # fmt: skip
    annotations = [answered(n, 1) for n in (10, 11, 12, 13)] + [answered(n, 2) for n in (20, 21, 15)]
    annotations += [answered(16, 1, ["yes", None]), answered(17, 1) | {"answers": "yes"}, answered(18, 1, ["no"] * 9)]
    files(raw, questions, [*annotations, answered(99, 1), {"question_id": None}, 3])
    tally = convert(vqav2, raw, tmp_path / "out", "val")
    assert reasons(tmp_path / "out") == {
        "duplicate_question": 1,
        "malformed_row": 4,
        "no_answer": 3,
        "annotation_of_other_image": 1,
        "image_missing": 2,
    }
    assert (tally.read, tally.used) == (13, 2)
    assert [one.question_id for one in found(tmp_path / "out")["coco/1"].record.questions] == [10, 18]
    assert tally.notes["questions with another number of answers than 10"] == 1
    assert tally.notes["annotations without the number of a question, passed over"] == 2
    assert tally.notes["annotations of no question"] == 4  # 99, and three whose question is malformed


def test_test_splits_have_no_answers_and_all_splits_have_a_folder(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "test2015/COCO_test2015_000000000001.jpg", "val2014/COCO_val2014_000000000002.jpg")
    files(raw, [asked(10, 1)], None, "test-dev2015")
    files(raw, [asked(10, 1), asked(11, 1)], None, "test2015")
    files(raw, [asked(20, 2)], [answered(20, 2)])
    assert cli_run("prepare", "vqav2", "--raw", str(raw), "--out", str(tmp_path / "out"), "--split", "all") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "test-dev", "val"]
    (item,) = found(tmp_path / "out/test-dev").values()
    assert item.record.questions == [Question(10, "Is it red?", [], None, None)]
    assert item.record.split == "test-dev"
    with pytest.raises(ValueError, match=r"split 'train': no questions of it; .* has val, test-dev, test"):
        convert(vqav2, raw, tmp_path / "no", "train")


def test_laviss_lists_take_answers_from_the_official_file_or_hold_them(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "images/val2014/COCO_val2014_000000000001.jpg")
    row = {
        "question_id": 10,
        "question": "Is it red?",
        "image": "val2014/COCO_val2014_000000000001.jpg",
        "dataset": "vqa",
    }
    rows = [row, row | {"question_id": 11, "image": "val2014/cube.jpg"}, row | {"question_id": 12, "image": None}]
    write(raw, "annotations/vqa_val_eval.json", rows)
    with pytest.raises(
        ValueError, match=r"no answers to its questions; put v2_mscoco_val2014_annotations.json beside it"
    ):
        convert(vqav2, raw, tmp_path / "no", "val")
    files(raw / "annotations", [], [answered(10, 1, ODD)])
    (raw / "annotations/v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    convert(vqav2, raw, tmp_path / "out", "val")
    (item,) = found(tmp_path / "out").values()
    assert item.record.questions == [Question(10, "Is it red?", ODD, "is it", "yes/no")]
    assert reasons(tmp_path / "out") == {"malformed_row": 2}
    own = write(tmp_path, "vqa_train.json", [row | {"answer": ODD}, row | {"question_id": 11, "answer": "yes"}])
    convert(vqav2, raw, tmp_path / "train", "train", questions=own)
    (item,) = found(tmp_path / "train").values()
    assert item.record.questions == [Question(10, "Is it red?", ODD, None, None)]
    assert reasons(tmp_path / "train") == {"malformed_row": 1}


def test_other_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"v2_OpenEnded_mscoco_train2014_questions.json: not found"):
        vqav2.open_raw(tmp_path)
    raw = files(tmp_path / "raw", [asked(10, 1)], [answered(10, 1)])
    with pytest.raises(ValueError, match=r"val2014: not found. The raw folder should look like this"):
        convert(vqav2, raw, tmp_path / "out", "val")
    odd = write(tmp_path, "mine.json", {"questions": [asked(10, 1)]})
    with pytest.raises(
        ValueError, match=r"mine.json: which split it holds is neither in 'data_subtype' nor in its name"
    ):
        vqav2.open_raw(raw, questions=odd)
    odd = odd.rename(tmp_path / "mine_val.json")
    assert vqav2.open_raw(raw, questions=odd).splits == ("val",)
    odd.write_text('{"annotations": []}')
    with pytest.raises(ValueError, match="field 'questions' is missing"):
        vqav2.open_raw(raw, questions=odd)


def test_a_conversion_that_was_stopped_goes_on_to_the_same_set_of_questions(tmp_path: Path) -> None:
    """With rejected questions in the annotations and at images, before and after the shard that is kept."""
    raw = put(tmp_path / "raw", *(f"val2014/COCO_val2014_{number:012d}.jpg" for number in range(1, 6)))
    (raw / "val2014/COCO_val2014_000000000002.jpg").unlink()
    questions = [asked(10 * number + k, number) for number in range(1, 6) for k in range(2)]
    files(raw, [asked(10, 1, "?"), *questions], [answered(one["question_id"], one["image_id"]) for one in questions])
    writing = Writing(work=Work({"converter": "vqav2"}), max_shard_bytes=3000)

    def stopped_at(number: int) -> Plan:
        plan = vqav2.open_raw(raw).plan("val")

        def write(conversion: Any, item: Any, image: Any) -> None:
            if item.file.source == f"coco/{number}":
                raise KeyboardInterrupt
            plan.write(conversion, item, image)

        return Plan(**{**vars(plan), "write": write})

    whole = convert_plan(stopped_at(0), tmp_path / "whole", writing)
    with pytest.raises(KeyboardInterrupt):
        convert_plan(stopped_at(5), tmp_path / "set", writing)
    assert (tmp_path / ".set.unfinished").is_dir()
    assert convert_plan(stopped_at(0), tmp_path / "set", writing) == whole
    assert (whole.read, whole.used, whole.rejected) == (11, 8, {"malformed_row": 1, "image_missing": 2})
    one, other = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("whole", "set"))
    assert one == other
    assert ManifestReader(tmp_path / "set").manifest.sample_kind == "questions"
