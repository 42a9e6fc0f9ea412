"""One global batch on one rank and on two: the same losses, the same gradients. Real gloo processes, the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rb.core import dist
from rb.core.config import FoundationConfig
from rb.core.exit_codes import leave
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.model.weights.build import build_model, text_processor
from tests.support import tiny
from tests.support.processes import finish, start_function_ranks

GLOBAL_BATCH = 6
MODALITIES = (IMAGE_REGION, POINT_CLOUD)


def measure(foundation: FoundationConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Loss terms and gradients of the global batch, averaged over ranks, as training averages them."""
    config = tiny.model_config(foundation)
    model, text = build_model(config, seed=0).model, text_processor(config)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:  # zero would hide A's gradient
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    local = GLOBAL_BATCH // dist.world_size()
    rows = range(dist.rank() * local, (dist.rank() + 1) * local)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for modality in MODALITIES:
        batch = tiny.make_batch(modality, text, rows)
        if modality == IMAGE_REGION:  # rows 0 and 4 show one object: duplicates across ranks must be left out
            keys = [0 if row == 4 else row for row in rows]
            batch.object_keys = torch.tensor(keys)
        model.zero_grad()
        terms = model(batch)
        terms.total.backward()
        values = {f"loss {k}": v.detach() for k, v in {**terms.terms, "total": terms.total}.items()}
        values |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[modality] = {k: dist.all_reduce_sum(v) / dist.world_size() for k, v in values.items()}
    return found


def worker(foundation: FoundationConfig, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init(timeout_s=60)
    found = measure(foundation)
    if dist.is_main():
        torch.save(found, out)
    dist.shutdown()
    leave(0)


@pytest.mark.dist
def test_one_and_two_ranks_agree(foundation: FoundationConfig, tmp_path: Path) -> None:
    finish(*start_function_ranks(2, worker, foundation, tmp_path / "two.pt"))
    two, one = torch.load(tmp_path / "two.pt", weights_only=True), measure(foundation)
    for modality in MODALITIES:
        assert one[modality].keys() == two[modality].keys()
        for name, expected in one[modality].items():
            error = (two[modality][name] - expected).norm() / expected.norm().clamp_min(1e-12)
            assert error < (1e-5 if name.startswith("loss") else 1e-4), f"{modality} {name}: {error:.1e}"
    assert set(one[IMAGE_REGION]) > {f"loss {name}" for name in ("itc", "itm", "itg", "llm", "reg")}
