"""In a bf16 run the Q-Former's frozen weights are rounded once; every number is the one that autocast gives from weights in fp32."""

from __future__ import annotations

import pytest
import torch

from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from tests.support import tiny
from tests.support.lora import by_peft, speak


def losses_and_gradients(model: RegionBLIP, config: object, modality: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    losses = model(tiny.make_batch(modality, text_processor(config), range(4)))
    losses.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.with_total().items()} | found


@pytest.mark.parametrize("qformer", ["shared", "separate"])
def test_weights_rounded_once_are_those_of_autocast(foundation: FoundationConfig, qformer: str) -> None:
    config = tiny.model_config(foundation, frozen_dtype="bfloat16", point_qformer=qformer)
    model, exact = (build_model(config, seed=0).model for _ in range(2))
    whole = build_model(tiny.model_config(foundation, point_qformer=qformer), seed=0).model.state_dict()
    rounded = [
        name
        for name, p in model.named_parameters()
        if p.dtype == torch.bfloat16 and ("qformer" in name or "text_branch" in name)
    ]
    assert len(rounded) > 20
    assert not any("embeddings" in name or "LayerNorm" in name or name.startswith("point_") for name in rounded)
    for name in rounded:
        exact.get_parameter(name).data = whole[name].float()
    exact.text_branch.head = None
    for modality in (IMAGE_REGION, POINT_CLOUD):
        found = []
        for m in (speak(model), speak(exact)):
            with by_peft(m):  # our own kernels compute in the type of the weights, whether autocast is on or not
                found.append(losses_and_gradients(m, config, modality))
        ours, theirs = found
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
