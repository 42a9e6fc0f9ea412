"""The one door to a trained model: what is read, what is refused, and what an override leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval.predict
from rb.api import RegionBLIP
from rb.checkpoints import checkpoint
from rb.cli import main as cli
from rb.core.fingerprints import fingerprint
from rb.core.modality import IMAGE_REGION
from rb.data.predictions import read_predictions
from rb.inference.load import check_foundation, load_trained, read_trained
from rb.model.weights.build import build_model
from rb.model.weights.hub_folder import open_folder
from rb.training.loop import warm_start
from tests.support import exported, tiny
from tests.support.small_data import write_set

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``foundation/``, a run and shards in one folder; files an hour old, so that their digests are kept."""
    folder = tmp_path_factory.mktemp("door")
    exported.make_run(folder / "runs", tiny.write_foundation(folder / "foundation"))
    write_set(folder / "shards", IMAGE_REGION, 2)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return folder


def options(world: Path, out: Path) -> list[str]:
    run, data = str(world / "runs" / "tiny"), str(world / "shards")
    return ["--checkpoint", run, "--data", data, "--modality", IMAGE_REGION, "--out", str(out)]


def test_each_file_is_opened_once_loaded_once_and_hashed_once(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.opened_files", str(world), str(tmp_path / "found.json")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([*command, *options(world, tmp_path / "p.jsonl")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = json.loads((tmp_path / "found.json").read_text())
    for found in (first, second):
        assert set(found["loaded"].values()) == {1}, found["loaded"]
        assert set(found["hashed"].values()) == {1}, found["hashed"]
        assert set(found["ours"].values()) == {1}, found["ours"]
    state = "runs/tiny/checkpoints/step_0000007/state.safetensors"
    assert set(second["hashed"]) == {f"file_sha256 {state}"}, "the foundation was hashed the first time"


def altered(world: Path, tmp_path: Path) -> Path:
    """A copy of the foundation with one weight's last bit flipped."""
    copy = shutil.copytree(world / "foundation", tmp_path / "altered")
    with (copy / "blip2-opt" / "model.safetensors").open("r+b") as file:
        file.seek(-200, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-200, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    return copy


def test_an_altered_foundation_is_refused_or_recorded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, out = world / "runs" / "tiny", altered(world, tmp_path), tmp_path / "p.jsonl"
    moved = [*options(world, out), "--foundation", str(other)]
    assert eval.predict.main(moved) == 2
    assert "was trained on another foundation: the contents of blip2 (" in capsys.readouterr().err
    assert eval.predict.main([*moved, "--allow", "foundation"]) == 0
    assert read_predictions(out)[1]["allowed"] == {"foundation": ["blip2"]}
    for refused in (
        lambda: RegionBLIP.from_pretrained(run, other),
        lambda: check_foundation(
            "init_from X",
            read_trained(run).recorded,
            build_model(read_trained(run, other).model, 0),
        ),
    ):
        with pytest.raises(ValueError, match="--allow foundation"):
            refused()
    asked = ["export", str(run), "--foundation", str(other), "--merge"]
    assert cli([*asked, "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()
    assert cli([*asked, "--out", str(tmp_path / "yes"), "--allow", "foundation"]) == 0
    written = json.loads((tmp_path / "yes" / "export.json").read_text())
    assert written["allowed"] == {"foundation": ["blip2"]}
    # The export says both: on what it was trained, and what its merged folders were made from.
    recorded = read_trained(run).recorded
    assert written["foundation"] == recorded
    assert written["exported_with"]["blip2"] == fingerprint(open_folder(other / "blip2-opt", "").files)
    assert written["exported_with"]["blip2"] != recorded["blip2"]
    assert written["exported_with"]["text_branch"] == recorded["text_branch"]
    card = (tmp_path / "yes" / IMAGE_REGION / "README.md").read_text()
    assert (
        f"exported with another blip2** (accepted by `--allow foundation`): `{written['exported_with']['blip2']}`"
        in card
    )
    with pytest.raises(ValueError, match="--allow everything: not one of foundation"):
        load_trained(run, allow=["everything"])


def test_init_from_another_foundation_is_refused_or_recorded(world: Path, tmp_path: Path) -> None:
    """The same shapes, one bit altered: by the function through which training starts from another run."""
    run = world / "runs" / "tiny"
    built = build_model(read_trained(run, altered(world, tmp_path)).model, 0)
    before = {name: value.clone() for name, value in built.model.trainable_parameters().items()}
    with pytest.raises(ValueError, match=r"init_from .*was trained on another foundation: .*--allow foundation"):
        warm_start(built, str(run), [])
    after = built.model.trainable_parameters()
    assert all(torch.equal(after[name], value) for name, value in before.items())  # nothing was taken over
    assert warm_start(built, str(run), ["foundation"]) == {"foundation": ["blip2"]}
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_options_of_a_trained_model_are_refused_with_a_run_file(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--run", str(world / "runs" / "tiny" / "config.yaml"), *options(world, tmp_path / "p.jsonl")[2:]]
    for option in (["--foundation", str(world / "foundation")], ["--allow", "foundation"]):
        assert eval.predict.main([*base, *option]) == 2
        assert "go with --checkpoint; with --run give model.foundation.blip2=FOLDER" in capsys.readouterr().err


def test_a_moved_run_finds_its_foundation_by_option(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("foundation", "runs", "shards"):
        shutil.copytree(world / part, tmp_path / "there" / part)
    config = tmp_path / "there" / "runs" / "tiny" / "config.yaml"
    config.write_text(config.read_text().replace(str(world), "/nowhere"))
    asked = options(tmp_path / "there", tmp_path / "p.jsonl")
    assert eval.predict.main(asked) == 2
    assert "/nowhere/foundation/blip2-opt does not exist" in capsys.readouterr().err
    assert eval.predict.main([*asked, "--foundation", str(tmp_path / "there" / "foundation")]) == 0


def test_a_run_whose_newest_checkpoint_is_torn_is_read_from_the_one_before(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(world / "runs" / "tiny", tmp_path / "run")
    newest = checkpoint.save(run, 9, checkpoint.load_state(checkpoint.require(run)), {"identities": {}}, keep=2)
    (newest / checkpoint.STATE_FILE).write_bytes(b"")
    (run / "checkpoints" / "latest").unlink()
    # Prediction, API, export and init_from all read a trained model by this call.
    assert read_trained(run, world / "foundation").step == exported.STEP
    assert "step_0000007 is the newest whole checkpoint and is used" in caplog.text
    with pytest.raises(checkpoint.CheckpointError, match=r"step_0000009/state.safetensors: altered"):
        read_trained(newest, world / "foundation")
