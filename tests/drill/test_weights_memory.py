"""Host memory when two ranks load one sharded fp32 checkpoint of 2 GB into bf16 at once; ``make test`` does it with 0.2 GB."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.trials import Figures
from tests.support.weights_memory import measure, write_checkpoint


def test_peak_is_the_bf16_model_and_one_shard(tmp_path: Path, figures: Figures) -> None:
    total, shard = write_checkpoint(tmp_path, 2.0, 8)
    started = time.monotonic()
    ranks = measure(tmp_path)
    bound = 1.5 * total / 2 + shard
    print(f"fp32 checkpoint {total / 1e6:.0f} MB, shards of at most {shard / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB")
    print(f"loaded by {len(ranks)} ranks at once in {time.monotonic() - started:.0f} s, imports included")
    for rank in ranks:
        used = rank["peak"] - rank["before"]
        figures["peak MB of a rank"] = max(used / 1e6, figures.get("peak MB of a rank", 0))
        print(f"a rank: peak {used / 1e6:.0f} MB above its start, model {rank['model'] / 1e6:.0f} MB")
        assert 0.45 * total < rank["model"] <= used <= bound
