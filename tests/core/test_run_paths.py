"""Paths of a run: where they are looked up, what a run folder holds, and the error that names the places tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from rb.core.run_file import dump_run, load_run
from rb.core.run_paths import find_path, open_foundation, open_run, resolve_paths
from rb.training.run_folder import saved_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data, beside the folder of a run file with other data."""
    for folder in ("here/regions", "there/regions", "there/clouds", "there/text"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "there" / "run.yaml").write_text(
        "output_dir: runs\nmodel: {foundation: {blip2: rb/toy/foundation/blip2-opt, text_branch: text}}\n"
        "data: {train: {image_region: [{manifest: regions}], point_cloud: [{manifest: clouds}]}}\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_paths_are_found_from_any_folder_and_absolute_in_the_run_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run("../there/run.yaml")
    assert run.output_dir == str(place / "here" / "runs")
    assert run.data.train["image_region"][0].manifest == str(place / "here" / "regions")  # the working directory first
    assert run.data.train["point_cloud"][0].manifest == str(place / "there" / "clouds")  # then the run file's folder
    assert run.model.foundation.text_branch == str(place / "there" / "text")
    assert run.model.foundation.blip2 == str(ROOT / "rb/toy/foundation/blip2-opt")  # then the project's own files
    assert run.model.foundation.bert == ""
    assert run.train.ds_config == str(ROOT / "ds_configs" / "zero2.json")

    run_dir = place / "elsewhere"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(dump_run(run))
    monkeypatch.chdir("/")
    assert saved_run(run_dir, []) == run == resolve_paths(run)


def test_a_missing_path_names_key_value_and_places(place: Path) -> None:
    for override in (
        "data.train.point_cloud=[{manifest: ../there/clouds}, {manifest: gone}]",
        "data.val.point_cloud=[{manifest: gone}]",
        "model.foundation.point_encoder=gone",
        "train.ds_config=gone",
        "init_from=gone",
    ):
        with pytest.raises(ValueError) as error:
            open_run("../there/run.yaml", [override])
        said = str(error.value)
        assert override.split("=")[0] in said
        assert "gone does not exist" in said
        assert f"{place / 'here' / 'gone'}, {place / 'there' / 'gone'}" in said
    with pytest.raises(ValueError, match=r"point_cloud\[1\]\.manifest"):
        open_run("../there/run.yaml", ["data.train.point_cloud=[{manifest: ../there/clouds}, {manifest: gone}]"])
    with pytest.raises(ValueError, match="init_from: /gone does not exist; correct it"):
        open_run("../there/run.yaml", ["init_from=/gone"])


def test_jobs_on_the_frozen_model_look_up_the_foundation_alone(place: Path) -> None:
    run = open_foundation("../there/run.yaml", ["data.train.point_cloud=[{manifest: gone}]"])
    assert run.model.foundation.text_branch == str(place / "there" / "text")
    assert run.data.train["point_cloud"][0].manifest == "gone"


def test_the_projects_runs_have_names(place: Path) -> None:
    for name in ("toy_t5", "toy_t5.yaml"):
        assert open_foundation(name).model.foundation.blip2 == str(ROOT / "rb/toy/foundation/blip2-t5")
    with pytest.raises(ValueError, match="toy_t6: no run file, run folder or name"):
        open_run("toy_t6")


def test_a_checkout_that_moved_is_found_where_it_is_now() -> None:
    assert find_path("train.ds_config", "/old/checkout/ds_configs/zero2.json") == str(ROOT / "ds_configs/zero2.json")
    assert find_path("x", "/old/rb/rb/toy/foundation/blip2-opt") == str(ROOT / "rb/toy/foundation/blip2-opt")


def test_a_run_that_goes_on_does_not_need_its_start(place: Path) -> None:
    config = load_run(place / "there" / "run.yaml", ["init_from=gone"])
    gone = resolve_paths(config, place / "there", init_from=False).init_from
    assert gone == str(place / "here" / "gone")
