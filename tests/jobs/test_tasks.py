"""Plans of evaluations in other tasks than captions: answers, zero-shot classes and retrieval, as ``rb predict`` and ``rb score`` give them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rb.cli import main as rb
from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.data.formats import Question, Record
from rb.data.shard_writer import ShardWriter
from rb.evaluation.table import read_metrics
from tests.support import exported
from tests.support.small_data import media, write_set


def write_plan(folder: Path, foundation: FoundationConfig) -> Path:
    exported.make_run(folder, foundation)
    write_set(folder / "regions", IMAGE_REGION, 4)
    with ShardWriter(folder / "classes", "small", POINT_CLOUD, "test") as writer:
        for i in range(4):
            writer.write(Record(f"c/{i}", "small", "test", 0, 0, [("red cube", "ball")[i % 2]]), *media(POINT_CLOUD, i))
    with ShardWriter(folder / "asked", "small", IMAGE, "val") as writer:
        for i in range(3):
            asked = [
                Question(10 * i + k, "what is it", ["cube"] * 10, None, kind)
                for k, kind in enumerate(("other", "number"))
            ]
            writer.write(Record(f"v/{i}", "small", "val", 20, 14, [], questions=asked), *media(IMAGE, i))
    names = folder / "names.txt"
    names.write_text("red cube\nball\ncone\n")
    tree = {
        "models": {"tiny": {"checkpoint": f"{folder}/tiny"}, "base": {"base": f"{folder}/tiny", "paper": "OPT-2.7B"}},
        "tasks": {
            "vqav2": {
                "data": f"{folder}/asked",
                "modality": IMAGE,
                "task": "vqa",
                "variants": ["base"],
                "paper": "VQAv2",
                "decode": {"num_beams": 1, "max_new_tokens": 2},
                "limit": 2,
            },
            "classes": {
                "data": f"{folder}/classes",
                "modality": POINT_CLOUD,
                "task": "zeroshot",
                "classes": str(names),
            },
            "rankings": {"data": f"{folder}/regions", "modality": IMAGE_REGION, "task": "retrieval", "top_k": 3},
        },
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_tasks_of_a_plan(foundation: FoundationConfig, tmp_path: Path) -> None:
    plan, out = write_plan(tmp_path, foundation), tmp_path / "out"
    words = ["evaluate", "--plan", str(plan), "--out", str(out), "--no-mlflow"]
    assert rb(words) == 0
    cells = {cell["cell"]: cell for cell in json.loads((out / "table.json").read_text())["cells"]}
    assert list(cells) == ["tiny-classes-ours", "tiny-rankings-ours", "base-vqav2-base"]
    for cell, task in (("tiny-classes-ours", "zeroshot"), ("tiny-rankings-ours", "retrieval")):
        scores = tmp_path / "scores.json"
        file = str(out / "predictions" / f"{cell}.jsonl")
        assert rb(["score", "--task", task, file, "--no-mlflow", "--out", str(scores)]) == 0
        found = json.loads(scores.read_text())
        assert cells[cell]["scores"] == {name: 100 * value for name, value in found["scores"].items()}
        assert cells[cell]["chance"] == found["chance"]
    answers = cells["base-vqav2-base"]
    assert answers["paper"] == {"accuracy_lavis": 51.88}
    assert set(answers["scores"]) == {"accuracy_official", "accuracy_lavis", "accuracy_lmms_eval"}
    assert (answers["num_examples"], answers["decoding"]["num_beams"]) == (4, 1)  # a limit is of images
    assert answers["decoding"]["prompt"] == "Question: {} Short answer:"
    assert answers["parts"]["number"]["num_examples"] == 2
    text = (out / "table.txt").read_text()
    assert "vqav2: answers of image, small val" in text
    assert "  number" in text
    assert "chance" in text
    with pytest.raises(ValueError, match="no metrics there"):
        read_metrics(out)  # of captions
    times = {path: path.stat().st_mtime_ns for path in out.glob("[pm]*/*")}
    assert rb(words) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("[pm]*/*")} == times
    (tmp_path / "names.txt").write_text(
        "red cube\nball\ncone\nround thing\n"
    )  # other classes: that cell alone is made again
    assert rb(words) == 0
    made = {path for path in times if path.exists() and path.stat().st_mtime_ns != times[path]}
    assert {path.name.split(".")[0] for path in made} == {"tiny-classes-ours"}
