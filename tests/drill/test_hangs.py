"""On one host, under `rb train` with two ranks, a rank is stopped (SIGSTOP), loops for ever in Python, or never comes back from C code that keeps the
interpreter's lock (a regular expression); in start-up, training, validation and saving. The same for a rank that loops within a backward pass, whose
reduction the other waits in, and for the thread that writes a checkpoint beside the steps, which go on. The limit of the phase is 10 s (60 s in
start-up, where a rank imports for long). It ends with code 4, rank and phase are named, the stacks of every rank that can answer are on disk, and no
process is left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from rb.core.config import FoundationConfig
from rb.core.exit_codes import HUNG
from rb.core.heartbeat import SAVING, START, TRAINING, VALIDATION
from rb.core.run_file import to_tree
from tests.support import hanging, small_data, tiny
from tests.support.trials import Figures

ROOT = Path(__file__).resolve().parents[2]
BACKWARD, WRITING = "backward", "writing"
LIMIT_S = {START: 60.0, TRAINING: 10.0, VALIDATION: 10.0, SAVING: 10.0, BACKWARD: 10.0, WRITING: 10.0}
LATE_S = 20.0  # beyond the limit: stacks, report, the end of all processes
# Phase -> (rank, number of its beat there): while weights are read, in the fourth step, in the first batch of a validation, before a gather.
PLACES = {START: (1, 1), TRAINING: (0, 4), VALIDATION: (1, 2), SAVING: (1, 2), BACKWARD: (1, 4), WRITING: (0, 2)}
KINDS = ("stopped", "loop", "library")
CASES = [(kind, phase) for kind in KINDS for phase in (START, TRAINING, VALIDATION, SAVING)] + [
    ("loop", BACKWARD),
    ("loop", WRITING),
]
REPORTED = {BACKWARD: TRAINING, WRITING: SAVING}  # the phase of a place, where it is another word


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hangs")
    for name, records, split in (("clouds", 7, "train"), ("held_out", 4, "val")):
        small_data.write_set(folder / name, "point_cloud", records, split)
    train = {"global_batch_size": 2, "micro_batch_size": 1, "max_steps": 100_000, "checkpoint_every": 8}
    tree = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
        "data": {
            "train": {"point_cloud": [{"manifest": str(folder / "clouds")}]},
            "val": {"point_cloud": [{"manifest": str(folder / "held_out")}]},
            "num_workers": 1,
        },
        "validation": {"every": 6, "num_examples": 2},
        "train": train | {"num_threads": 1, "ds_config": "ds_configs/zero2_cpu.json"},
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


@pytest.mark.parametrize(("kind", "phase"), CASES)
def test_a_rank_hangs(kind: str, phase: str, run_file: Path, tmp_path: Path, figures: Figures) -> None:
    rank, number = PLACES[phase]
    name, fault = f"{kind}-{phase}", tmp_path / "fault"
    reported = REPORTED.get(phase, phase)
    limits = [
        f"limits.{p}_s={LIMIT_S[phase] if p == reported else 120:g}" for p in (START, TRAINING, VALIDATION, SAVING)
    ]
    limits += ["train.checkpoint_every=40"] if phase == WRITING else []
    command = [sys.executable, "-m", "rb.cli", "train", "--ranks", "2", "--run", str(run_file), f"name={name}", *limits]
    paths = {"PYTHONPATH": f"{hanging.FOLDER}:{ROOT}", "OMP_NUM_THREADS": "1"}
    asked = {"RB_TRIAL_HANG": f"{rank} {phase} {number} {kind} {fault}"}
    with (tmp_path / "said").open("w+") as said:
        started = subprocess.Popen(command, cwd=ROOT, env=os.environ | paths | asked, stdout=said, stderr=said)
    end, family = time.monotonic() + 600, dict[int, psutil.Process]()
    while started.poll() is None and time.monotonic() < end:
        family |= {process.pid: process for process in psutil.Process(started.pid).children(recursive=True)}
        time.sleep(0.2)
    words = (tmp_path / "said").read_text()
    ended = time.monotonic()
    _, left = psutil.wait_procs(list(family.values()), timeout=10)
    for process in left:
        process.kill()
    assert started.poll() == HUNG, words
    late_s = ended - float(fault.read_text()) - LIMIT_S[phase]
    figures["seconds from the limit to the end of the command"] = round(late_s, 1)
    figures["processes left"] = len(left)
    assert not left
    assert late_s < LATE_S
    assert f"hang: rank {rank} on" in words
    (report,) = (run_file.parent / "runs" / name / "hangs").glob("*/report.json")
    tree = json.loads(report.read_text())
    assert tree["verdict"]["phase"] == reported
    assert [culprit["rank"] for culprit in tree["verdict"]["culprits"]] == [rank]
    stacks = {int(rank): text for node in tree["nodes"] for rank, text in node["stacks"].items()}
    assert "File " in stacks[1 - rank]
    if kind != "stopped":  # a stopped process writes nothing
        assert " in hang" in stacks[rank]
