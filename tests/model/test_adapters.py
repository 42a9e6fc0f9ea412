"""Where LoRA sits and who shares it: ``model.lora.llm``, ``qformer``, ``shared``, ``targets``."""

from __future__ import annotations

import pytest

from rb.core.config import FoundationConfig, LoraConfig, ModelConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from tests.support import tiny

MODALITIES = (IMAGE_REGION, POINT_CLOUD)


def lora_names(model: RegionBLIP) -> list[str]:
    return [name for name in model.trainable_parameters() if ".lora_" in name]


@pytest.mark.parametrize(
    ("lora", "places"),
    [
        ({}, {"qformer", "language_model"}),
        ({"llm": False}, {"qformer"}),
        ({"qformer": False}, {"language_model"}),
        ({"qformer": False, "shared": True}, {"language_model"}),
    ],
)
def test_lora_sits_in_the_parts_that_the_run_names(
    lora: dict[str, bool], places: set[str], foundation: FoundationConfig
) -> None:
    model = build_model(tiny.model_config(foundation, lora=LoraConfig(r=2, **lora)), seed=0).model
    assert {name.split(".")[1] for name in lora_names(model)} == places
    model.adapters.activate(IMAGE_REGION)
    assert model.adapters.active == IMAGE_REGION


def test_no_lora_in_either_qformer(foundation: FoundationConfig) -> None:
    config = tiny.model_config(foundation, lora=LoraConfig(r=2, qformer=False), point_qformer="separate")
    model = build_model(config, seed=0).model
    assert {name.split(".")[1] for name in lora_names(model)} == {"language_model"}
    assert model.adapters.point_peft is None


def test_a_shared_adapter_is_used_and_trained_by_all_modalities(foundation: FoundationConfig) -> None:
    config = tiny.model_config(foundation, lora=LoraConfig(r=2, shared=True))
    model, text = build_model(config, seed=0).model, text_processor(config)
    users, own = model.parameter_modalities(), build_model(tiny.model_config(foundation), seed=0).model
    assert {users[name] for name in lora_names(model)} == {MODALITIES}
    assert len(lora_names(own)) == 2 * len(lora_names(model))
    for modality in MODALITIES:
        model.zero_grad()
        model(tiny.make_batch(modality, text, range(4))).total.backward()
        touched = {name for name, p in model.named_parameters() if p.grad is not None}
        assert touched == {name for name, who in users.items() if modality in who}
    model.adapters.activate("image")  # not trained: plain BLIP-2
    assert model.adapters.active is None


def test_listed_targets_replace_the_familys(foundation: FoundationConfig) -> None:
    config = tiny.model_config(foundation, lora=LoraConfig(r=2, targets=("fc1", "out_proj")))
    names = [name for name in lora_names(build_model(config, seed=0).model) if ".language_model." in name]
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names} == {"fc1", "out_proj"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LoraConfig(llm=False, qformer=False), r"model\.lora: llm and qformer are both false"),
        (lambda: LoraConfig(llm=False, targets=("fc1",)), r"model\.lora\.targets: .*model\.lora\.llm is false"),
        (
            lambda: ModelConfig(lora=LoraConfig(shared=True), point_qformer="separate"),
            r"model\.lora\.shared: .*model\.point_qformer=shared",
        ),
    ],
)
def test_options_that_cannot_work_together_are_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
