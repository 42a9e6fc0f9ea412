"""A disk that fills up under a whole training and gets room again, while everything is on it: run folder, log of the shell, MLflow's store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.tracking import metric_points
from rb.tracking.commands import sync
from rb.tracking.identity import run_identity
from tests.support import small_data, tiny
from tests.support.disks import small_disk

ROOT = Path(__file__).resolve().parents[2]
STEPS = 400


def test_two_ranks_on_a_disk_that_is_full_for_a_while(foundation: FoundationConfig, tmp_path: Path) -> None:
    small_data.write_set(tmp_path / "regions", "image_region", 8)
    tree = {
        "name": "run",
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["image_region"]},
        "data": {"train": {"image_region": [{"manifest": str(tmp_path / "regions")}]}, "num_workers": 1},
        "train": {
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "max_steps": STEPS,
            "log_every": 1,
            "checkpoint_every": 20,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
            "timeout_s": 120,
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    with small_disk(tmp_path / "disk", "8m") as disk:
        run = disk.path / "run"
        journal, terminal = run / "journal.jsonl", disk.path / "terminal.txt"
        command = [sys.executable, "-m", "rb.cli", "train", "--ranks", "2", "--run", str(tmp_path / "run.yaml")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with terminal.open("wb") as output:
            process = subprocess.Popen(
                [*command, f"output_dir={disk.path}"], cwd=ROOT, env=environment, stdout=output, stderr=output
            )

        def newest() -> int:
            points = metric_points(journal).get("train/lr", [])
            return points[-1].step if points else 0

        def wait_until(step: int) -> None:
            end = time.monotonic() + 600
            while newest() < step:
                assert process.poll() is None, terminal.read_text()
                assert time.monotonic() < end
                time.sleep(0.1)

        try:
            wait_until(30)
            disk.fill()
            filled = newest()
            time.sleep(20)
            whole = checkpoint.require(run).step
            assert process.poll() is None
            disk.empty()
            assert process.wait(600) == 0, terminal.read_text()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        said = (run / "log.txt").read_text()
        steps = [point.step for point in metric_points(journal)["train/lr"]]
        assert steps == list(range(1, STEPS + 1))
        assert checkpoint.require(run).step == STEPS
        assert said.count("journal.jsonl: cannot be written") == 1
        sync(run)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{disk.path / 'mlflow.db'}")
        history = client.get_metric_history(run_identity(run)["run_id"], "train/lr")
        assert sorted(point.step for point in history) == steps
        lines = [line.split(" ", 3)[-1] for line in said.splitlines() if "cannot be" in line or "again" in line]
        saved = [int(line.split("step ")[1].split(":")[0]) for line in said.splitlines() if ": saved " in line]
        print(f"full from step {filled} for 20 s, whole checkpoint meanwhile {whole}, saved {saved}")
        print("\n".join(lines))
