"""A training that reads from an S3 store in which requests fail is the training on the local shards, and nothing that it writes holds a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE_REGION
from rb.core.run_file import to_tree
from rb.launching.secrets import secret_variables
from tests.support import tiny
from tests.support.processes import finish, start_ranks
from tests.support.raw_data import cli_run
from tests.support.small_data import write_set
from tests.support.stores import KEY, S3, SECRET, FaultyProxy, reading_from


@pytest.mark.dist
def test_the_same_run_and_no_secret_in_it(
    foundation: FoundationConfig, s3: S3, tmp_path: Path, monkeypatch, capfd
) -> None:
    """Two ranks with a loader process each, MLflow on; a tenth of the requests fails. Then predictions from the store."""
    write_set(tmp_path / "set", IMAGE_REGION, 10)
    url = s3.upload(tmp_path / "set", "training")
    tree = {
        "output_dir": str(tmp_path / "runs"),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": [IMAGE_REGION]},
        "optim": {"lr": 1e-3, "warmup_steps": 0},
        "train": {
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "max_steps": 3,
            "log_every": 1,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
            "timeout_s": 300,
        },
    }
    monkeypatch.setenv("RB_VERBOSITY", "verbose")
    said = ""
    proxy = FaultyProxy(s3.port, 0.1, seed=2)
    with reading_from(proxy.port, tmp_path / "cache"):
        for name, place, mlflow in (("local", str(tmp_path / "set"), False), ("stored", url, True)):
            data = {"train": {IMAGE_REGION: [{"manifest": place}]}, "num_workers": 1}
            run = tree | {"name": name, "data": data, "tracking": {"mlflow": mlflow}}
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(run))
            said += finish(*start_ranks(2, "rb.train", "--run", tmp_path / f"{name}.yaml"))
        words = ["--checkpoint", tmp_path / "runs/stored", "--data", url, "--modality", IMAGE_REGION]
        words += ["--out", tmp_path / "runs/stored/predictions/x.jsonl", "--limit", 3, "decode.num_beams=1"]
        assert cli_run("predict", *map(str, words)) == 0
    proxy.close()
    assert proxy.counted.total() > proxy.counted["none"] > 0
    states = [next((tmp_path / "runs" / name).rglob("step_*/state.safetensors")) for name in ("local", "stored")]
    assert states[0].read_bytes() == states[1].read_bytes()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "journal.jsonl", "log.txt", "environment.json", "x.jsonl"} <= {path.name for path in written}
    out = capfd.readouterr()
    for secret in (SECRET, KEY):
        assert [path for path in written if secret.encode() in path.read_bytes()] == []
        assert secret not in said + out.out + out.err


def test_agents_get_logins_of_stores_by_a_file() -> None:
    logins = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_ENDPOINT_URL": "http://host",
        "FSSPEC_S3_KEY": KEY,
        "FSSPEC_S3_SECRET": SECRET,
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
        "HF_TOKEN": "x",
    }
    assert secret_variables(logins | {"RB_SHARD_CACHE": "/disk"}) == logins
