"""An installed wheel, in an empty folder with an empty HOME: what it holds, and the whole chain from the demo to a caption by `rb`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "rb", "ds_configs", "launch", "eval")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in BUILT_FROM:
        copy = shutil.copyfile if (ROOT / name).is_file() else shutil.copytree
        copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_what_runs_need_and_no_pretraining(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        "ds_configs/zero2.json",
        "launch/runs/toy_opt.yaml",
        "launch/ablations/toy.yaml",
        "launch/evaluations/table1.yaml",
    }
    assert {f"rb/shipped/{name}" for name in shipped} <= names
    assert {"rb/py.typed", "rb/toy/foundation/blip2-opt/config.json", "rb/evaluation/paper.json"} <= names
    assert not [name for name in names if name.startswith(("rb/toy/pretraining", "tests", "eval"))]


@pytest.mark.slow
@pytest.mark.dist
def test_the_chain_runs_from_it_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, home, here = tmp_path / "site", tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RB_", "XDG_", "PYTHON"))}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def rb(*arguments: str) -> str:
        return run(str(site / "bin" / "rb"), *arguments)  # the console script that pip wrote

    assert run(sys.executable, "-c", "import rb; print(rb.__file__)").startswith(str(site))
    assert rb("--version").strip()
    assert "toy_opt" in rb("runs", "list")
    # Prepare, train under the launcher, predict, score, report, table.
    rb("toy", "demo", "--steps", "8", "--scale", "small", "--out", "demo")
    run_dir = here / "demo/runs/toy_opt"
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert {path.stem for path in (run_dir / "metrics").glob("*.json")} >= {"image_region", "point_cloud_region"}
    predictions = {path.stem: path.read_bytes() for path in (run_dir / "predictions").glob("*.jsonl")}
    assert (
        predictions["base_image"] == predictions["image"]
    )  # captions of whole images are BLIP-2's before and after training
    assert len(set(predictions.values())) == len(predictions) - 1 == 8
    # The demo makes all its predictions in one process; a process that makes one alone writes the same file.
    data = ("--data", "demo/shards/scanrefer_test", "--modality", "point_cloud_region")
    rb("predict", "--checkpoint", "demo/runs/toy_opt", *data, "--out", "alone.jsonl")
    assert (here / "alone.jsonl").read_bytes() == predictions["point_cloud_region"]
    rb("export", "demo/runs/toy_opt", "--out", "export")
    photo = next((here / "demo/raw/refcoco/images").rglob("*.jpg"))
    caption = ("caption", str(photo), "--box", "5", "5", "40", "40", "--checkpoint")
    of_run = rb(*caption, "demo/runs/toy_opt")
    assert of_run.strip()
    assert rb(*caption, "export", "--foundation", str(site / "rb/toy/foundation")) == of_run
