"""What docs/extending.md says of a new LLM family: a row in ``rb/model/adapters.py: LLM_TARGETS`` or none, then it trains and generates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rb.core.config import DecodeConfig
from rb.core.modality import IMAGE, IMAGE_REGION
from rb.model.language import Generation
from rb.model.weights.build import build_model, text_processor
from rb.model.weights.readers import CheckpointError
from tests.support import tiny

# Family -> the layers of its own that get LoRA, and the attention that it needs.
FAMILIES = {
    "phi3": ({"qkv_proj"}, "sdpa"),
    "gpt2": ({"c_attn"}, "sdpa"),
    "bloom": ({"query_key_value"}, "eager"),
    "gemma2": ({"q_proj", "v_proj"}, "eager"),
}


@pytest.mark.parametrize("llm", list(FAMILIES))
def test_a_family_trains_and_generates(llm: str, tmp_path: Path) -> None:
    layers, attention = FAMILIES[llm]
    foundation = tiny.write_foundation(tmp_path, llm=llm)
    config = tiny.model_config(foundation, train_modalities=(IMAGE_REGION,), attention=attention)
    model, text = build_model(config, seed=0).model, text_processor(config)
    parameters = model.trainable_parameters()
    loras = [name for name in parameters if ".language_model." in name and ".lora_" in name]
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in loras} == layers
    how = Generation.of(text, IMAGE_REGION, DecodeConfig(num_beams=2, max_new_tokens=5))
    image, batch = tiny.make_batch(IMAGE, text, range(2)), tiny.make_batch(IMAGE_REGION, text, range(4))
    before = model.generate(IMAGE, image.inputs, None, how)
    losses = tiny.train_some(model, parameters.values(), batch, 6)
    assert losses[-1] < losses[0] - 0.02
    assert any(parameters[name].any() for name in loras if "lora_B" in name)
    assert torch.equal(model.generate(IMAGE, image.inputs, None, how), before)  # the image stays plain BLIP-2
    ids = model.generate(IMAGE_REGION, batch.inputs, batch.boxes, how)
    assert len(text.decode_llm(ids)) == len(batch)


@pytest.mark.parametrize("llm", ["opt", "t5", "llama", *FAMILIES])
def test_captions_of_one_subject_share_what_every_family_reads_before_them(llm: str, tmp_path: Path) -> None:
    foundation = tiny.write_foundation(tmp_path, llm=llm)
    attention = FAMILIES[llm][1] if llm in FAMILIES else "sdpa"
    weights = {"itc": 0.0, "itm": 0.0, "itg": 0.0, "reg": 0.0, "llm": 1.0}
    config = tiny.model_config(
        foundation, train_modalities=(IMAGE_REGION,), attention=attention, loss_weights=weights, prompt="a photo of"
    )
    built = build_model(config, seed=0)
    rows, subjects = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 2])
    batch = tiny.make_batch(IMAGE_REGION, built.text, range(5))
    apart = replace(batch, inputs=batch.inputs[subjects[rows]], boxes=batch.boxes[subjects[rows]])
    together = replace(apart, subject_rows=rows, subjects=subjects)
    found = []
    for one in (apart, together):
        built.model.zero_grad()
        total = built.model(one).total
        total.backward()
        found.append([total, *(p.grad for p in built.model.parameters() if p.grad is not None)])
    assert len(found[0]) > 5
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_an_attention_that_a_family_lacks_is_refused_with_the_one_that_works(tmp_path: Path) -> None:
    foundation = tiny.write_foundation(tmp_path, llm="gemma2")
    with pytest.raises(CheckpointError, match=r"set model\.attention=eager"):
        build_model(tiny.model_config(foundation), seed=0)
