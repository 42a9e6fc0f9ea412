"""Beam search: a context is read once for all beams, LoRA is a part of copied weights; captions and weights stay what they were, for every LLM family."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from rb.bench.generation import random_prompts
from rb.core.config import DecodeConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.model.language import Generation, generate
from rb.model.weights.build import Built, build_model
from tests.support import tiny

ATTENTION = {"bloom": "eager", "gemma2": "eager"}
DECODE = DecodeConfig(num_beams=4, max_new_tokens=7)


def built_with_adapters(folder: Path, llm: str) -> Built:
    """A model whose adapters say something."""
    config = tiny.model_config(
        tiny.write_foundation(folder, llm=llm),
        train_modalities=(IMAGE_REGION, POINT_CLOUD),
        attention=ATTENTION.get(llm, "sdpa"),
    )
    built = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=generator)
    return built


@pytest.mark.parametrize("llm", ["opt", "t5", "llama", "gpt2", "phi3", "bloom", "gemma2"])
def test_captions_are_those_of_transformers_with_lora_at_every_word(llm: str, tmp_path: Path) -> None:
    built = built_with_adapters(tmp_path, llm)
    model = built.model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    scores = []
    for modality in (IMAGE_REGION, POINT_CLOUD, IMAGE):
        model.adapters.activate(modality)
        prompt = random_prompts(model, 12, 0)
        how = Generation.of(built.text, modality, DECODE)
        with model.adapters.merged_in_llm():
            ours = generate(model.blip2.language_model, prompt, how)
        assert model.adapters.active == (modality if modality != IMAGE else None)
        plain = generate(model.blip2.language_model, prompt, how, reads_for_all_beams=False)
        assert torch.equal(ours, plain)
        words = {"decoder_input_ids": how.prompt_ids[:, :0].new_zeros(12, 1)} if llm == "t5" else {}
        scores.append(model.blip2.language_model(inputs_embeds=prompt, **words).logits)
    for one, other in combinations(scores, 2):
        assert (one - other).abs().max() > 1e-2, "the adapters do nothing, so nothing was tried"
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_weights_come_back_after_an_error(tmp_path: Path) -> None:
    model = built_with_adapters(tmp_path, "opt").model
    before = dict(model.named_parameters())
    model.adapters.activate(IMAGE_REGION)
    with pytest.raises(KeyboardInterrupt), model.adapters.merged_in_llm():
        assert dict(model.named_parameters()).keys() == before.keys()
        raise KeyboardInterrupt
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.adapters.active == IMAGE_REGION


def test_only_float32_is_merged_by_itself_and_the_sum_is_rounded_once(tmp_path: Path) -> None:
    model = built_with_adapters(tmp_path, "opt").model
    layer = next(m for n, m in model.blip2.language_model.named_modules() if n.endswith("q_proj"))
    model.adapters.activate(IMAGE_REGION)
    exact = layer.base_layer.weight + layer.get_delta_weight(IMAGE_REGION)
    with model.adapters.merged_in_llm(None):
        torch.testing.assert_close(layer.base_layer.weight, exact)
    with model.adapters.merged_in_llm(wanted=False):
        assert not torch.equal(layer.base_layer.weight, exact)
    whole, model = model, model.to(torch.bfloat16)
    weight = layer.base_layer.weight
    with model.adapters.merged_in_llm(None):
        assert layer.base_layer.weight is weight
        assert layer._active_adapter == [IMAGE_REGION]
    a, b = (part[IMAGE_REGION].weight.float() for part in (layer.lora_A, layer.lora_B))
    with whole.adapters.merged_in_llm(), torch.autocast("cpu", torch.bfloat16):
        assert layer.base_layer.weight.dtype == torch.bfloat16
    with whole.adapters.merged_in_llm():
        expected = (weight.float() + (b @ a) * layer.scaling[IMAGE_REGION]).bfloat16()
        assert torch.equal(layer.base_layer.weight, expected)


@pytest.mark.parametrize(("beams", "expected"), [(1, 5 * 6), (4, 5 * 5 + 5 * 4 * 1)])
def test_a_context_is_read_once_for_all_beams(beams: int, expected: int, tmp_path: Path) -> None:
    """5 contexts of 6 places; the last place is read by the search itself, once for each beam."""
    built = built_with_adapters(tmp_path, "opt")
    llm, places = built.model.blip2.language_model, list[int]()
    layer = next(m for n, m in llm.named_modules() if n.endswith("layers.0"))
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: places.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    how = Generation.of(built.text, IMAGE_REGION, DecodeConfig(num_beams=beams, max_new_tokens=4, min_new_tokens=4))
    how = replace(how, prompt_ids=how.prompt_ids[:, :0])
    generate(llm, random_prompts(built.model, 5, 0)[:, :1].expand(-1, 6, -1), how)
    assert sum(places) == expected + 3 * 5 * beams
