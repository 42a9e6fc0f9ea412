"""Sets whose samples are questions, and domains: the record format, the index, what `rb data` says of them, and who refuses them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.core.config import DataSource
from rb.core.modality import IMAGE, IMAGE_REGION
from rb.data.check_record import check_record
from rb.data.formats import FormatError, Question, Record, parse_manifest, parse_record, read_manifest
from rb.data.index import ManifestReader
from rb.data.pipeline import open_training_data
from rb.data.shard_writer import ShardWriter
from tests.support.small_data import HEIGHT, WIDTH, image_bytes, record, write_set

SIZE = (WIDTH, HEIGHT)
ASKED = [
    Question(9000, "How many cubes are there?", ["2", "two", "2", ""], "how many", "number"),
    Question(9001, "Is it red?", ["yes"] * 4, "is it", "yes/no"),
]
ABOUT = Record("coco/9", "vqav2", "val", *SIZE, [], questions=ASKED)
OTHER = replace(ABOUT, source_id="coco/42", questions=[Question(42000, "What is left of the cube?")])


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images with three questions."""
    folder = tmp_path_factory.mktemp("asked") / "set"
    with ShardWriter(folder, "vqav2", IMAGE, "val") as writer:
        for seed, about in enumerate((ABOUT, OTHER)):
            writer.write(about, image_bytes(seed), "png")
    return folder


def test_records_and_manifests_without_them_keep_their_bytes(tmp_path: Path) -> None:
    plain = Record("coco/9", "coco", "val", 20, 14, ["a cube"])
    assert plain.to_json() == (
        b'{"source_id":"coco/9","dataset":"coco","split":"val","width":20,"height":14,"captions":["a cube"],"objects":[]}'
    )
    write_set(tmp_path / "set", IMAGE, 1)
    assert list(json.loads((tmp_path / "set/manifest.json").read_text())) == [
        "format_version",
        "name",
        "modality",
        "split",
        "counts",
        "rejected",
        "shards",
        "index",
    ]


def test_questions_and_domains_survive_a_round_trip() -> None:
    for given in (ABOUT, OTHER, replace(record(IMAGE, 0), domain="near-domain")):
        assert parse_record(given.to_json(), "x") == given
    assert json.loads(OTHER.to_json())["questions"] == [
        {
            "question_id": 42000,
            "question": "What is left of the cube?",
            "answers": [],
            "question_type": None,
            "answer_type": None,
        }
    ]


def test_the_index_counts_questions_and_one_image_has_all_its_own(asked: Path) -> None:
    reader = ManifestReader(asked)
    assert reader.manifest.sample_kind == "questions"
    assert reader.manifest.counts == {"records": 2, "objects": 0, "samples": 3}
    rows = [reader.sample(i) for i in range(len(reader))]
    assert [row.question for row in rows] == [*ASKED, *OTHER.questions]
    assert [row.caption for row in rows] == [item.question for item in (*ASKED, *OTHER.questions)]
    assert [reader.example(i).record for i in range(reader.num_examples)] == [ABOUT, OTHER]
    reader.close()


@pytest.mark.parametrize(
    ("modality", "bad", "says"),
    [
        (IMAGE, replace(ABOUT, captions=["a cube"]), "questions beside captions or objects"),
        (IMAGE_REGION, replace(record(IMAGE_REGION, 0), questions=ASKED), "questions beside captions or objects"),
        (IMAGE_REGION, ABOUT, "of regions"),
        (IMAGE, replace(ABOUT, questions=[ASKED[0]] * 2), r"questions\[1\]: question_id 9000 is used twice"),
        (IMAGE, replace(ABOUT, questions=[replace(ASKED[0], question=" ?")]), "a question without words"),
        (IMAGE, replace(ABOUT, questions=[replace(ASKED[0], question_id=-1)]), "'question_id' must be a whole number"),
        (IMAGE, replace(ABOUT, questions=[replace(ASKED[0], answers=[2])]), "'answers' must be a list of texts"),
        (IMAGE, replace(ABOUT, domain="a\nb"), "'domain' must not hold control"),
    ],
)
def test_questions_that_do_not_fit_are_refused(modality: str, bad: Record, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        check_record(bad, modality, "here")


def test_files_of_others_are_checked_too(asked: Path) -> None:
    raw = json.loads(ABOUT.to_json())
    for change, says in (
        ({"questions": [3]}, r"questions\[0\]: must be a JSON object"),
        ({"questions": [{"question_id": 1}]}, r"questions\[0\]: field 'question' is missing"),
        ({"questions": {}}, "'questions' must be a list"),
        ({"domain": None}, "'domain' must be a text"),
    ):
        with pytest.raises(FormatError, match=says):
            parse_record(json.dumps(raw | change).encode(), "here")
    tree = json.loads((asked / "manifest.json").read_text())
    with pytest.raises(FormatError, match="sample_kind 'answers' is unknown; known: questions"):
        parse_manifest(json.dumps(tree | {"sample_kind": "answers"}).encode(), "here")


def test_one_set_holds_captions_or_questions(tmp_path: Path) -> None:
    with (
        pytest.raises(FormatError, match="a record of captions in a set of questions"),
        ShardWriter(tmp_path / "set", "mixed", IMAGE, "val") as writer,
    ):
        writer.write(ABOUT, image_bytes(0), "png")
        writer.write(Record("coco/8", "mixed", "val", *SIZE, ["a cube"]), image_bytes(1), "png")


def test_the_commands_for_shards_work_on_questions(asked: Path, tmp_path: Path, capsys) -> None:
    assert rb(["data", "verify", str(asked), "--decode"]) == 0
    assert "2 records, 0 objects, 3 samples" in capsys.readouterr().out
    assert rb(["data", "stats", str(asked), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["sets"]
    assert (found["sources"], found["texts"], found["words"]["max"]) == (2, 3, 6)
    assert found["questions"] == {"no type": 1, "number": 1, "yes/no": 1}
    assert found["answers"] == 8
    assert rb(["data", "stats", str(asked)]) == 0
    assert "vqav2 val, questions: no type 1, number 1, yes/no 1; answers 8" in capsys.readouterr().out
    assert rb(["data", "show", str(asked), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "How many cubes are there? 2 (2), two (1)" in page
    assert "What is left of the cube?" in page
    # Adopted again, its tars give the same manifest.
    before = (asked / "manifest.json").read_bytes()
    assert rb(["data", "index", str(asked), "--modality", "image", "--overwrite"]) == 0
    assert (asked / "manifest.json").read_bytes() == before


def test_another_answer_is_a_difference(asked: Path, tmp_path: Path, capsys) -> None:
    with ShardWriter(tmp_path / "set", "vqav2", IMAGE, "val") as writer:
        writer.write(replace(OTHER, domain="out-domain"), image_bytes(1), "png")
        writer.write(replace(ABOUT, questions=ASKED[::-1]), image_bytes(0), "png")
    assert rb(["data", "diff", str(asked), str(tmp_path / "set"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["other objects, boxes or captions"] == ["coco/42"]
    assert found["equal"] == 1


def test_domains_are_counted(tmp_path: Path, capsys) -> None:
    with ShardWriter(tmp_path / "set", "nocaps", IMAGE, "val") as writer:
        for i, domain in enumerate(("in-domain", "out-domain", "out-domain")):
            writer.write(
                Record(f"nocaps/{i}", "nocaps", "val", *SIZE, ["a cube"], domain=domain), image_bytes(i), "png"
            )
    assert rb(["data", "stats", str(tmp_path / "set")]) == 0
    assert "nocaps val, domains: in-domain 1, out-domain 2" in capsys.readouterr().out
    assert rb(["data", "show", str(tmp_path / "set"), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("out-domain") == 2


def test_captions_are_neither_trained_nor_predicted_on_questions(asked: Path, tmp_path: Path, capsys) -> None:
    message = "its samples are questions, so there is no caption"
    with pytest.raises(ValueError, match=message):
        open_training_data({IMAGE: [DataSource(str(asked))]}, 0)
    foundation = Path(__file__).parents[2] / "rb/toy/foundation/blip2-opt"
    words = ["--data", str(asked), "--foundation", str(foundation)]
    assert rb(["init", str(tmp_path / "run.yaml"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    run = Path(__file__).parents[2] / "launch/runs/toy_opt.yaml"
    out = tmp_path / "out.jsonl"
    assert rb(["predict", "--run", str(run), "--data", str(asked), "--modality", "image", "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert read_manifest(asked).sample_kind == "questions"
