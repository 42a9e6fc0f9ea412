"""`rb init`: the run file that it writes is one that trains, with the data's own numbers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from rb.cli import main
from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_paths import open_run
from rb.training import new_run
from tests.support.small_data import NUM_POINTS, write_set


def test_a_new_run_file_trains_as_it_is(
    foundation: FoundationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    regions = write_set(tmp_path / "regions", IMAGE_REGION, 12)
    for split, modality, folder in (
        ("val", IMAGE_REGION, "v"),
        ("test", IMAGE_REGION, "t"),
        ("train", POINT_CLOUD, "c"),
    ):
        write_set(tmp_path / folder, modality, 20, split)
    base = Path(foundation.blip2).parent
    command = ["init", "mine.yaml", "--data", "regions", "v", "t", "c", "--foundation", str(base), "--epochs", "3"]
    assert main(command) == 0
    text = Path("mine.yaml").read_text()
    assert f"{regions.counts['samples']} samples" in text
    assert f"--data {tmp_path / 't'} --modality image_region" in text
    run = open_run("mine.yaml")
    assert (run.name, run.model.train_modalities, run.train.epochs) == ("mine", (IMAGE_REGION, POINT_CLOUD), 3)
    assert run.data.num_workers <= max(1, len(os.sched_getaffinity(0)) // 2)
    assert set(run.data.val) == {IMAGE_REGION}
    assert run.data.mirror == {}
    Path("mirrored.yaml").write_text(text.replace("  # mirror:", "  mirror:"))  # the line that is there to be taken
    assert open_run("mirrored.yaml").data.mirror == {IMAGE_REGION: "swap", POINT_CLOUD: "swap"}
    assert Path(run.model.foundation.point_encoder).samefile(base / "point_bert")
    smallest = min(regions.counts["samples"], 40)
    assert 2 <= run.train.global_batch_size <= smallest / 8 or run.train.global_batch_size == 2
    capsys.readouterr()
    assert run.model.num_points == NUM_POINTS, "the clouds have fewer than the default"
    assert 0 < run.validation.every < 3 * 44
    assert main(["train", "--run", "mine.yaml", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(command) == 2
    assert "mine.yaml: exists already" in capsys.readouterr().err


def test_scenes_and_objects_have_their_own_number_of_points(foundation: FoundationConfig, tmp_path: Path) -> None:
    write_set(tmp_path / "objects", POINT_CLOUD, 4)
    write_set(tmp_path / "scenes", POINT_CLOUD_REGION, 4)
    base = Path(foundation.blip2).parent
    for fewest, expected in ((10_000, (NUM_POINTS, 8192)), (NUM_POINTS, (NUM_POINTS, None)), (50, (NUM_POINTS, 50))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                new_run, "_fewest_points", lambda path, n=fewest: n if path.parent.name == "scenes" else NUM_POINTS
            )
            text = new_run.run_file("a", [tmp_path / "objects", tmp_path / "scenes"], base, 1, gpu=False)
        found = [int(number) for number in re.findall(r"^  num_(?:scene_)?points: (\d+)", text, re.MULTILINE)]
        assert found == [number for number in expected if number is not None]


def test_what_cannot_train_is_refused_before_a_file_is_there(
    foundation: FoundationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "v", IMAGE_REGION, 2, "val")
    write_set(tmp_path / "c", POINT_CLOUD, 2)
    alone = tmp_path / "foundation"
    alone.mkdir()
    for part in (Path(foundation.blip2), Path(foundation.text_branch)):
        (alone / part.name).symlink_to(part)
    for name in ("blip2-a", "blip2-b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "config.json").write_text("{}")
    for data, base, error in (
        (
            "c",
            tmp_path / "two",
            f"holds blip2-a, blip2-b; name one of them, such as --foundation {tmp_path / 'two' / 'blip2-a'}",
        ),
        ("v", alone, "no set to train on, only"),
        ("c", alone, "has no point_bert/, which point_cloud needs"),
        ("c", tmp_path / "v", "needs a folder"),
    ):
        file = tmp_path / "run.yaml"
        assert main(["init", str(file), "--data", str(tmp_path / data), "--foundation", str(base)]) == 2
        assert error in capsys.readouterr().err
        assert not file.exists()
