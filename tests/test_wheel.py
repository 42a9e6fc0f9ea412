"""An installed wheel, in an empty folder with an empty HOME: what it holds, and the whole chain from the demo to a caption by `rb`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Commands of `rb`, a JSON list of lists of words, in one process, which imports torch once. A line of \x1e ends the output of each.
COMMANDS = """
import json, sys
from rb.cli import main
for words in json.loads(sys.argv[1]):
    if code := main(words):
        sys.exit(code)
    print("\\x1e", flush=True)
"""
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
    data = ["--data", "demo/shards/scanrefer_test", "--modality", "point_cloud_region"]
    photo = str(next((here / "demo/raw/refcoco/images").rglob("*.jpg")))
    caption = ["caption", photo, "--box", "5", "5", "40", "40", "--checkpoint"]
    commands = [
        ["predict", "--checkpoint", "demo/runs/toy_opt", *data, "--out", "alone.jsonl"],
        ["export", "demo/runs/toy_opt", "--out", "export"],
        [*caption, "demo/runs/toy_opt"],
        [*caption, "export", "--foundation", str(site / "rb/toy/foundation")],
    ]
    said = run(sys.executable, "-c", COMMANDS, json.dumps(commands)).split("\x1e\n")
    assert (here / "alone.jsonl").read_bytes() == predictions["point_cloud_region"]
    assert said[2].strip()
    assert said[3] == said[2]
