"""The switches that only ablations use, and `rb ablate`: plan, runs, table."""

from __future__ import annotations

import pytest

from rb.core.config import FoundationConfig, LoraConfig
from rb.model.weights.build import build_model
from tests import tiny


@pytest.mark.parametrize("llm", [True, False])
def test_lora_can_be_left_out_of_the_llm(llm: bool, foundation: FoundationConfig) -> None:
    model = build_model(tiny.model_config(foundation, lora=LoraConfig(r=2, llm=llm)), seed=0).model
    places = {name.split(".")[1] for name in model.trainable_parameters() if ".lora_" in name}
    assert places == ({"qformer", "language_model"} if llm else {"qformer"})
    model.adapters.activate("image_region")
    assert model.adapters.active == "image_region"
