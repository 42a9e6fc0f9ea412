"""LoRA's own kernels give what PEFT's modules give, in every family and type; they are few; and they step aside where they must."""

from __future__ import annotations

from collections import Counter as Counts
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rb.core.batch import Batch
from rb.core.config import FoundationConfig, LoraConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.costs.executed import Counter
from rb.costs.meta_model import model_of
from rb.costs.on_meta import as_on_a_gpu
from rb.model.projections import base_of, layers_together
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from tests.support import tiny
from tests.support.lora import by_peft, speak

MODALITIES = (IMAGE_REGION, POINT_CLOUD)


def built(foundation: FoundationConfig, dtype: str = "float32", **given: object) -> tuple[RegionBLIP, dict[str, Batch]]:
    """A model whose adapters say something, and a batch of each modality."""
    config = tiny.model_config(foundation, frozen_dtype=dtype, **given)
    text = text_processor(config)
    return speak(build_model(config, seed=0).model), {m: tiny.make_batch(m, text, range(4)) for m in MODALITIES}


def losses_and_gradients(model: RegionBLIP, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    losses = model(batch)
    losses.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.with_total().items()} | gradients


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Relative, of all tensors as one vector."""
    assert [(one.dtype, one.shape) for one in ours] == [(other.dtype, other.shape) for other in theirs]
    one, other = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (ours, theirs))
    return float((one - other).norm() / other.norm())


def lora_of(found: dict[str, Tensor]) -> list[Tensor]:
    return [gradient for name, gradient in found.items() if "lora_" in name]


# Query, key and value as one layer, a transposed one, which stays PEFT's; LoRA elsewhere; in both Q-Formers.
@pytest.mark.parametrize(
    ("llm", "given"),
    [
        ("opt", {}),
        ("t5", {}),
        ("phi3", {}),
        ("gpt2", {}),
        ("opt", {"lora": LoraConfig(r=3, alpha=2.0, targets=("k_proj", "fc1"))}),
        ("opt", {"point_qformer": "separate"}),
    ],
)
def test_losses_and_gradients_are_pefts(llm: str, given: dict[str, object], tmp_path: Path) -> None:
    """In float32, but for the order of sums; ITC divides by 0.07, and wherever texts are compared these differences grow."""
    model, batches = built(tiny.write_foundation(tmp_path, llm=llm), **{"lora": LoraConfig(r=3, alpha=2.0)} | given)
    for batch in batches.values():
        ours = losses_and_gradients(model, batch)
        with by_peft(model):
            theirs = losses_and_gradients(model, batch)
        assert ours.keys() == theirs.keys()
        assert difference(list(ours.values()), list(theirs.values())) < 5e-6
        assert difference(lora_of(ours), lora_of(theirs)) < 5e-6


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_bf16_is_as_near_to_what_is_exact_as_peft(llm: str, tmp_path: Path) -> None:
    """One draw may be twice as far or half as far; here are four."""
    foundation = tiny.write_foundation(tmp_path, llm=llm)
    model, _ = built(foundation, "bfloat16")
    exact, _ = built(foundation)
    with torch.no_grad():  # the rounded weights, computed with in float32
        for name, parameter in exact.named_parameters():
            parameter.copy_(model.get_parameter(name))
    text, errors = text_processor(exact.config), torch.zeros(2)
    for modality in MODALITIES:
        for draw in range(2):
            batch = tiny.make_batch(modality, text, range(4), seed=draw)
            ours, wanted = losses_and_gradients(model, batch), losses_and_gradients(exact, batch)
            with by_peft(model):
                theirs = losses_and_gradients(model, batch)
            assert ours.keys() == theirs.keys()
            assert difference(lora_of(ours), lora_of(theirs)) < 0.1
            errors += torch.tensor([difference(lora_of(each), lora_of(wanted)) for each in (ours, theirs)])
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize(
    ("llm", "name", "layers", "same"),
    [
        ("opt", "layers.1.self_attn", ("q_proj", "k_proj", "v_proj"), True),
        (
            "opt",
            "layers.1.self_attn",
            ("q_proj", "k_proj", "v_proj"),
            False,
        ),  # a family whose layers read other things than believed
        ("opt", "layers.1.self_attn", ("v_proj", "v_proj", "q_proj"), True),
        ("t5", "EncDecAttention", ("q", "k", "v"), False),
        ("t5", "EncDecAttention", ("q", "k", "v"), True),
    ],
)
def test_a_layer_alone(llm: str, name: str, layers: tuple[str, ...], same: bool, tmp_path: Path) -> None:
    model, _ = built(tiny.write_foundation(tmp_path, llm=llm), lora=LoraConfig(r=3, alpha=2.0))
    attention = next(m for path, m in model.blip2.language_model.named_modules() if path.endswith(name))
    model.adapters.activate(IMAGE_REGION)
    generator = torch.Generator().manual_seed(3)
    width = attention.get_submodule(layers[0]).get_base_layer().in_features
    inputs = [torch.randn(5, 7, width, generator=generator, requires_grad=True) for _ in range(3)]

    def run() -> list[Tensor]:
        outputs = [attention.get_submodule(layer)(inputs[0 if same else i]) for i, layer in enumerate(layers)]
        trained = [p for p in attention.parameters() if p.requires_grad]
        total = sum((output.sin() * weight).sum() for weight, output in enumerate(outputs, 1))
        gradients = torch.autograd.grad(total, [*inputs, *trained], allow_unused=True)
        return [tensor.detach() for tensor in (*outputs, *gradients) if tensor is not None]

    ours = run()
    with by_peft(model):
        theirs = run()
    assert len(ours) == len(theirs) > 3
    assert max(difference([one], [other]) for one, other in zip(ours, theirs, strict=True)) < 1e-6


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_without_an_adapter_layers_are_the_foundations_bit_for_bit(llm: str, tmp_path: Path) -> None:
    """And with one, predictions in float32 are PEFT's bit for bit; a layer that trains is not taken for frozen."""
    foundation = tiny.write_foundation(tmp_path, llm=llm)
    model, _ = built(foundation)
    start = {"decoder_input_ids": torch.zeros(4, 1, dtype=torch.int64)} if llm == "t5" else {}
    prompt = torch.randn(4, 6, model.blip2.language_model.get_input_embeddings().embedding_dim)

    def logits() -> Tensor:
        return model.blip2.language_model(inputs_embeds=prompt, **start).logits

    told: dict[str, Tensor] = {}
    for modality in (IMAGE, IMAGE_REGION, POINT_CLOUD, IMAGE, IMAGE_REGION):
        model.adapters.activate(modality)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                ours = logits()
                with by_peft(model):
                    theirs = logits()
            assert torch.equal(ours, theirs) or (grad and modality != IMAGE)
            torch.testing.assert_close(ours, theirs)
        assert torch.equal(told.setdefault(modality, ours), ours)
    assert len({tuple(one.flatten().tolist()) for one in told.values()}) == 3
    base = next(m for n, m in model.named_modules() if n.endswith((".q_proj.base_layer", ".q.base_layer")))
    base.weight.requires_grad_()
    logits().sum().backward()
    assert base.weight.grad.abs().sum() > 0


def test_a_gradient_reaches_every_parameter_once_in_a_backward_pass(foundation: FoundationConfig) -> None:
    """Though the Q-Former runs twice, its adapter's matrices are gathered once, and what an optimizer changes is seen by the next pass."""
    model, batches = built(foundation)
    arrived: Counts[str] = Counts()
    for name, parameter in model.trainable_parameters().items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.update([name]))
    first = losses_and_gradients(model, batches[IMAGE_REGION])
    assert set(arrived) == {name for name in first if name in model.trainable_parameters()}
    assert set(arrived.values()) == {1}
    twice = losses_and_gradients(model, batches[IMAGE_REGION])
    assert all(torch.equal(first[name], twice[name]) for name in first)
    model(batches[IMAGE_REGION]).total.backward()  # a second micro-batch is added
    for name in arrived:
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * first[name])
    with torch.no_grad():
        for name in arrived:
            if "lora_" in name:
                model.get_parameter(name).data *= 1.5  # by .data, as DeepSpeed: no version counter moves
    changed = losses_and_gradients(model, batches[IMAGE_REGION])
    with by_peft(model):
        theirs = losses_and_gradients(model, batches[IMAGE_REGION])
    assert difference([changed["total"]], [theirs["total"]]) < 1e-6
    assert difference([changed["total"]], [first["total"]]) > 1e-4


@pytest.mark.parametrize("llm", ["opt", "t5"])
@pytest.mark.parametrize("part", ["qformer", "language_model"])
def test_at_most_five_launches_a_layer(llm: str, part: str, tmp_path: Path) -> None:
    """Forward, backward and casts: what all layers of a part launch more with an adapter than without, in the types of a GPU."""
    model = model_of(tiny.model_config(tiny.write_foundation(tmp_path, llm=llm), frozen_dtype="bfloat16"))
    together = list(layers_together(model.blip2.get_submodule(part)))
    dtype = torch.float32 if part == "qformer" else torch.bfloat16

    def launches(modality: str) -> int:
        model.adapters.activate(modality)
        inputs = [torch.empty(2, 3, base_of(layers[0]).in_features, dtype=dtype, device="meta") for layers in together]
        gradients = [
            torch.empty(2, 3, base_of(layer).out_features, dtype=torch.bfloat16, device="meta")
            for layers in together
            for layer in layers
        ]
        counter = Counter()
        with as_on_a_gpu(), counter, torch.autocast("meta", dtype=torch.bfloat16), model.adapters.held():
            read = [each.requires_grad_() for each in inputs]
            outputs = [layer(x) for x, layers in zip(read, together, strict=True) for layer in layers]
            torch.autograd.backward(outputs, gradients)
        return counter.found.launches

    adapted = sum(isinstance(layer, LoraLayer) for layers in together for layer in layers)
    assert adapted == sum(isinstance(module, LoraLayer) for module in model.blip2.get_submodule(part).modules())
    ours, without = launches(IMAGE_REGION), launches(IMAGE)
    with by_peft(model):
        theirs = launches(IMAGE_REGION)
    assert 2 < (ours - without) / adapted <= 5
    assert (theirs - without) / adapted > 15
