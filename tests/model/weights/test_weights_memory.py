"""Host memory when a sharded fp32 checkpoint is loaded into bf16 on two ranks, scaled down; the 2 GB one is in docs/results.md."""

from __future__ import annotations

from pathlib import Path

from tests.support.weights_memory import measure, write_checkpoint


def test_peak_is_the_bf16_model_and_one_shard(tmp_path: Path) -> None:
    total, shard = write_checkpoint(tmp_path, 0.2, 8)
    assert shard < total / 3
    ranks = measure(tmp_path)
    assert len(ranks) == 2
    for rank in ranks:
        assert rank["model"] > 0.45 * total  # bf16, and the small rest
        assert rank["peak"] - rank["before"] <= 1.5 * total / 2 + shard, rank
        assert rank["peak"] - rank["before"] > 0.45 * total  # the measurement sees the model at all
