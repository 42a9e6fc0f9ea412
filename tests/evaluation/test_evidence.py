"""Evidence of grounding: captions judged against the scenes' truth, and the controls: other boxes, other scenes, no input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from eval import score as score_command
from eval import table as table_command
from rb.cli import main as rb
from rb.core.config import DecodeConfig, FoundationConfig
from rb.data.index import ManifestReader
from rb.data.pipeline import InputView, PredictDataset
from rb.data.predictions import Prediction, read_predictions, write_predictions
from rb.data.samples import SampleTransform
from rb.data.shuffled_boxes import shuffle_boxes
from rb.evaluation.scoring import score_file
from rb.evaluation.verdicts import VERDICTS, shares
from rb.inference.predicting import BLIND, SHUFFLED, WHOLE, Job, predict
from rb.model.weights.build import build_model
from rb.pages.report_scores import scores_section
from rb.sources.images import ImageTransform
from rb.toy.world.judge import toy_judge
from rb.toy.world.rooms import descriptions, make_room, room_truth
from rb.toy.world.scenes import cloud_captions, make_cloud, make_scene, region_expressions, whole_captions
from rb.toy.world.truth import scene_truth, singles_out, true_region
from tests.support import tiny
from tests.support.loading import as_loaded

SCENES = {f"coco/{i}": make_scene(3, "test", i) for i in range(40)}
CLOUDS = {f"objaverse/{i}": make_cloud(3, "test", i) for i in range(20)}
ROOMS = {f"scannet/{i}": make_room(3, "test", i) for i in range(20)}


@pytest.fixture(scope="module")
def truth_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    entries = {name: scene_truth(scene) for name, scene in {**SCENES, **CLOUDS}.items()}
    path.write_text(json.dumps(entries | {name: room_truth(room) for name, room in ROOMS.items()}))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert rb(["toy", "raw", "--out", f"{folder}/raw", "--scale", "small"]) == 0
    for name in ("refcoco", "objaverse", "scanrefer"):
        arguments = ["--raw", f"{folder}/raw/{name}", "--out", f"{folder}/{name}", "--split", "test"]
        assert rb(["prepare", name, *arguments]) == 0
    return folder


def row(modality: str, source: str, item: str | None, text: str, references: Sequence[str] = ("a cube",)) -> Prediction:
    name = source if item is None else f"{source}#{item}"
    return Prediction(name, source, item, modality, "toy", "test", text, list(references), None)


def image_regions() -> list[Prediction]:
    """What people would say of each region."""
    return [
        row("image_region", name, item.object_id, said[0], said)
        for name, scene in SCENES.items()
        for item in scene.objects
        if (said := region_expressions(scene, item))
    ]


def room_regions() -> list[Prediction]:
    return [
        row("point_cloud_region", name, item.object_id, said[0], said)
        for name, room in ROOMS.items()
        for item in room.objects
        if (said := descriptions(room, item))
    ]


def judged(truth_file: Path, rows: list[Prediction]) -> dict[str, float]:
    return {name: found["share"] for name, found in shares(rows, toy_judge([truth_file])(rows)).items()}


@pytest.mark.parametrize("regions", [image_regions, room_regions])
def test_what_people_say_singles_the_object_out_and_fails_for_its_neighbours(regions, truth_file: Path) -> None:
    rows = regions()
    found = judged(truth_file, rows)
    assert {name: value for name, value in found.items() if name != "hard"} == dict.fromkeys(
        ("true", "true_of_box", "right_object", "true_of_box_hard", "right_object_hard"), 1.0
    )
    assert 0.2 < found["hard"] < 1.0
    objects = {name: [r.object_id for r in rows if r.source_id == name] for name in {r.source_id for r in rows}}
    moved = []
    for one in rows:  # the caption of one object, asked of the next in its scene
        own = objects[one.source_id]
        other = own[(own.index(one.object_id) + 1) % len(own)]
        if other != one.object_id:
            moved.append(row(one.modality, one.source_id, other, one.prediction))
    wrong = judged(truth_file, moved)
    assert wrong["true"] == 1.0
    assert wrong["right_object"] == 0.0
    assert wrong["true_of_box"] <= 0.1


def test_attributes_alone_are_true_but_not_enough_in_hard_scenes(truth_file: Path) -> None:
    rows = [
        row("image_region", name, item.object_id, f"{item.colour} {item.shape}")
        for name, scene in SCENES.items()
        for item in scene.objects
    ]
    found = judged(truth_file, rows)
    assert found["true_of_box"] == found["true_of_box_hard"] == 1.0
    assert found["right_object_hard"] == 0.0
    assert found["right_object"] == pytest.approx(1 - found["hard"])


def test_a_position_word_is_true_of_the_half_or_of_the_outermost() -> None:
    def item(name: str, x: float) -> dict[str, object]:
        return {"object_id": name, "shape": "cube", "colour": "red", "size": "big", "box": [x, 10, x + 8, 18]}

    truth = {"width": 64, "height": 64, "objects": [item("a", 2), item("b", 15), item("c", 50)]}
    assert [true_region("left red cube", truth, name) for name in "abc"] == [True, True, False]
    assert [singles_out("left red cube", truth, name) for name in "abc"] == [True, False, False]
    right = {**truth, "objects": [item("a", 40), item("b", 50)]}
    assert true_region("left red cube", right, "a")
    assert not true_region("left red cube", right, "b")
    assert not true_region("a red cube and a red cube", truth, "a")
    with pytest.raises(ValueError, match="no object 'z' in this scene"):
        true_region("nonsense", truth, "z")


@pytest.mark.parametrize("kind", ["image", "point_cloud"])
def test_whole_captions_are_true_at_home_and_seldom_elsewhere(kind: str, truth_file: Path) -> None:
    said = (
        {name: whole_captions(scene)[0] for name, scene in SCENES.items()}
        if kind == "image"
        else {name: cloud_captions(cloud)[0] for name, cloud in CLOUDS.items()}
    )
    found = judged(truth_file, [row(kind, name, None, text) for name, text in said.items()])
    assert set(found) == {"true", "true_elsewhere"}
    assert found["true"] == 1.0
    assert found["true_elsewhere"] < 0.7


def test_the_error_is_that_of_a_mean_over_sources() -> None:
    rows = [row("image_region", f"coco/{i // 2}", str(i), "") for i in range(200)]
    together = shares(rows, [{"true": i // 2 % 2 == 0} for i in range(200)])["true"]
    apart = shares(
        [row("image", f"coco/{i}", None, "") for i in range(200)], [{"true": i % 2 == 0} for i in range(200)]
    )
    assert (together["share"], together["n"]) == (0.5, 200)
    assert together["error"] == pytest.approx((0.25 / 100) ** 0.5, rel=0.1)  # 100 scenes, each all or nothing
    assert apart["true"]["error"] == pytest.approx((0.25 / 200) ** 0.5, rel=0.1)
    some = shares(rows[:4], [{"true": True}, {}, {}, {}])
    assert some == {"true": {"share": 1.0, "n": 1, "error": None}}
    assert set(shares(rows, [dict.fromkeys(VERDICTS, True)] * 200)) == set(VERDICTS)


def test_scores_table_page_and_refusals(truth_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = {"run": str(tmp_path), "name": "step_0000300", "step": 300}
    said, rows = tmp_path / "predictions", image_regions()
    write_predictions(said / "regions.jsonl", rows, {"variant": "checkpoint", "checkpoint": checkpoint})
    write_predictions(said / "shuffled.jsonl", rows, {"variant": "shuffled", "checkpoint": checkpoint})
    clouds = [row("point_cloud", name, None, cloud_captions(cloud)[0]) for name, cloud in CLOUDS.items()]
    write_predictions(said / "blind.jsonl", clouds, {"variant": "blind", "checkpoint": checkpoint})
    files = [str(said / f"{name}.jsonl") for name in ("regions", "shuffled", "blind")]
    quick = ["--no-java", "--no-mlflow", "--metrics", "CIDEr"]
    assert score_command.main([*files, "--truth", str(truth_file), *quick]) == 0
    assert "right_object 1.0000" in capsys.readouterr().out
    written = json.loads((tmp_path / "metrics" / "regions.json").read_text())
    assert written["scores"]["right_object"] == 1.0
    assert written["truth"]["right_object"] == {"share": 1.0, "n": len(rows), "error": 0.0}
    assert 0 < written["truth"]["right_object_hard"]["n"] < len(rows)
    example = json.loads((tmp_path / "metrics" / "regions.examples.jsonl").read_text().splitlines()[0])
    assert example["right_object"] is True

    assert table_command.main([str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "RegionBLIP, boxes shuffled" in table
    assert "RegionBLIP, sees nothing" in table
    assert f"right object: {VERDICTS['right_object']}" in table
    assert "What is true of the captions" in scores_section(tmp_path)

    # A control that says what it left out stands in the column of the whole set, with a remark; one that does not, in its own.
    head = table.splitlines()[1]
    part = {"variant": "shuffled", "checkpoint": checkpoint}
    for left_out, columns in (
        ({"regions without another box": 1}, 1),
        ({"regions without another box": 2}, 2),
        ({}, 2),
    ):
        write_predictions(said / "shuffled.jsonl", rows[1:], {**part, "left_out": left_out})
        assert score_command.main([files[1], *quick]) == 0
        capsys.readouterr()
        assert table_command.main([str(tmp_path)]) == 0
        found = capsys.readouterr().out
        assert found.splitlines()[0].count("image region") == columns, left_out
        assert (f"{len(rows) - 1} captions; left out: regions without another box 1." in found) == (columns == 1)
        assert (found.splitlines()[1] == head) == (columns == 1)
    write_predictions(said / "shuffled.jsonl", rows[1:], {**part, "left_out": {"none": "x"}})
    assert score_command.main([files[1], *quick]) == 2
    assert "left_out {'none': 'x'}; it must hold reasons with counts" in capsys.readouterr().err
    write_predictions(said / "shuffled.jsonl", rows, part)

    # Without a judge nothing of it appears.
    plain = score_file(said / "regions.jsonl", use_java=False, use_mlflow=False, metrics=["CIDEr"])
    assert "truth" not in plain
    assert not set(plain["scores"]) & set(VERDICTS)

    (tmp_path / "other.json").write_text(json.dumps({"coco/1": {"objects": []}}))
    (tmp_path / "none.json").write_text("[]")
    for words, truth in (
        ("no truth file there", [tmp_path / "absent.json"]),
        ("no truth file (scene id to objects)", [tmp_path / "none.json"]),
        ("scene 'coco/0' is not in", [tmp_path / "other.json"]),
        ("says something else of scene 'coco/1'", [truth_file, tmp_path / "other.json"]),
    ):
        options = [option for path in truth for option in ("--truth", str(path))]
        assert score_command.main([files[0], *options, *quick]) == 2
        assert words in capsys.readouterr().err


def test_shuffled_boxes_are_others_of_the_same_source_and_nothing_else_changes(world: Path) -> None:
    reader = ManifestReader(world / "refcoco")
    found = shuffle_boxes(reader)
    assert found == shuffle_boxes(reader)
    assert found != shuffle_boxes(reader, seed=1)
    assert len(found.box_of) + found.num_single == reader.num_examples
    given = []
    for number, box_of in found.box_of.items():
        loaded = reader.example(number)
        assert loaded.item is not None
        assert loaded.record.objects[box_of].object_id != loaded.item.object_id
        given.append((loaded.record.source_id, box_of))
    assert len(set(given)) == len(given)

    def first(view: InputView) -> PredictDataset:
        decoder = SampleTransform({"image": ImageTransform(16)})
        return PredictDataset(reader, "image_region", decoder, batch_size=8, view=view, limit=sorted(found.box_of))

    own, moved = first(InputView())[0], first(InputView(box_of=found.box_of))[0]
    assert own.boxes is not None
    assert moved.boxes is not None
    assert not (own.boxes == moved.boxes).all(dim=1).any()
    assert torch.equal(own.inputs, moved.inputs)
    for mine, other in zip(own.samples, moved.samples, strict=True):
        assert (mine.id, mine.references, mine.raw_box) == (other.id, other.references, other.raw_box)
    assert not first(InputView(blind=True))[0].inputs.any()
    with pytest.raises(ValueError, match="no boxes to shuffle"):
        shuffle_boxes(ManifestReader(world / "objaverse"))


def test_controls_by_prediction(world: Path, foundation: FoundationConfig, tmp_path: Path) -> None:
    """The base model of images ignores boxes, so it says the same with others; the regional parts of clouds do not."""
    config = tiny.model_config(foundation, train_modalities=("image_region", "point_cloud_region"))
    built = build_model(config, seed=0)
    for name, value in built.model.named_parameters():
        if ".pafe." in name:
            value.data.mul_(20)
    loaded = as_loaded(built, DecodeConfig(num_beams=1, max_new_tokens=6))

    def captions(modality: str, data: str, view: str = WHOLE) -> tuple[dict[str, str], dict]:
        predict(Job(ManifestReader(world / data), modality, view), loaded, tmp_path / "said.jsonl")
        rows, meta = read_predictions(tmp_path / "said.jsonl")
        return {one.id: one.prediction for one in rows}, meta

    for modality, data in (("image_region", "refcoco"), ("point_cloud_region", "scanrefer")):
        own, meta = captions(modality, data)
        moved, moved_meta = captions(modality, data, SHUFFLED)
        assert (meta["variant"], moved_meta["variant"]) == ("base", "shuffled")
        assert moved_meta["left_out"] == {"regions without another box": len(own) - len(moved)}
        assert moved.keys() <= own.keys()
        same = all(own[name] == text for name, text in moved.items())
        assert same == (modality == "image_region")
    blind, meta = captions("image_region", "refcoco", BLIND)
    assert meta["variant"] == "blind"
    assert len(set(blind.values())) == 1
    with pytest.raises(ValueError, match="need a modality with boxes, not image"):
        captions("image", "refcoco", SHUFFLED)
