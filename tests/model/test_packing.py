"""Packed captions: equal to padded ones in outputs and gradients, in one pass whose tokens all count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rb.core.batch import Batch
from rb.core.modality import IMAGE_REGION
from rb.model.language import predict_captions
from rb.model.packing import IMPLEMENTATION, Packing, packs
from rb.model.weights.build import Built, build_model
from tests.support import tiny

ROWS = torch.tensor([0, 0, 1, 0, 1])
SUBJECTS = torch.tensor([0, 2])


def built_with(llm: str, folder: Path, attention: str = "sdpa") -> Built:
    foundation = tiny.write_foundation(folder, llm=llm)
    return build_model(tiny.model_config(foundation, train_modalities=(IMAGE_REGION,), attention=attention), seed=0)


def test_places_of_a_small_batch() -> None:
    """Captions of 3, 1 and 2 tokens, the last two of one subject, behind contexts of 2: tokens 0..3 are contexts, 4..6 read words."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    fields = dict.fromkeys(("inputs", "boxes", "text_ids", "prompt_ids", "object_keys", "caption_keys"))
    of_two = {"subject_rows": torch.tensor([0, 1, 1]), "subjects": torch.tensor([0, 1])}
    batch = Batch(
        "image", ["a", "b", "c"], text_mask=mask, llm_ids=mask, llm_mask=mask, itm_uniforms=mask, **fields, **of_two
    )  # type: ignore[arg-type]
    assert batch.llm_inputs.tolist() == [0, 1, 6]
    packing = Packing.of(batch, 2)
    slots = packing.slots.view(packing.shape).tolist()
    assert [row[:2] for row in slots] == [[0, 1], [2, 3], [2, 3]]
    assert (slots[0][2:], slots[2][2]) == ([4, 5], 6)
    assert packing.places.tolist() == [0, 1, 4, 5, 2, 3, 10]
    assert packing.positions.tolist() == [[0, 1, 0, 1, 2, 3, 2]]


@pytest.mark.parametrize("llm", ["opt", "t5", "llama"])
@pytest.mark.parametrize("shared", [False, True])
def test_equal_to_padded(llm: str, shared: bool, tmp_path: Path) -> None:
    built = built_with(llm, tmp_path)
    model, language = built.model, built.model.blip2.language_model
    model.adapters.activate(IMAGE_REGION)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    batch = tiny.make_batch(IMAGE_REGION, built.text, range(5))
    if shared:
        batch = replace(batch, subject_rows=ROWS, subjects=SUBJECTS)
    assert batch.llm_mask.sum(1).unique().numel() > 1
    context = torch.randn(len(SUBJECTS) if shared else 5, 4, language.config.hidden_size)
    found = []
    for implementation in (IMPLEMENTATION, "sdpa"):
        language.set_attn_implementation(implementation)
        soft_prompt = context.clone().requires_grad_()
        model.zero_grad()
        predicted = predict_captions(language, soft_prompt, batch)
        assert (predicted.logits.dim() == 2) == (implementation == IMPLEMENTATION)
        losses = torch.nn.functional.cross_entropy(
            predicted.logits.flatten(0, -2), predicted.labels.flatten(), reduction="none"
        )
        (losses * predicted.weights.flatten() * (1 + predicted.labels.flatten())).sum().backward()
        grads = [soft_prompt.grad, *(p.grad for p in language.parameters() if p.grad is not None)]
        found.append([losses[predicted.weights.flatten() > 0].sum().detach(), *grads])
    assert len(found[0]) > 5
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)


def test_what_cannot_pack_is_padded(tmp_path: Path) -> None:
    """Eager attention, and a window of attention that is shorter than a row."""
    built = built_with("opt", tmp_path / "eager", attention="eager")
    assert not packs(built.model.blip2.language_model, 1)
    llama = built_with("llama", tmp_path / "llama").model.blip2.language_model
    assert packs(llama, 30)
    llama.config.sliding_window = 20
    assert packs(llama, 20)
    assert not packs(llama, 21)
