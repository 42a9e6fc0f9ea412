"""``train.activation_checkpointing``: equal losses and gradients bit by bit, fewer saved bytes, and what is computed again is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rb.bench.step_counters import count_step
from rb.core.config import RunConfig, TrainConfig
from rb.costs.memory import step_bytes
from rb.costs.meta_model import training_model_of
from rb.model.weights.build import build_model
from rb.training.micro_batch import memory_model
from tests.support import tiny
from tests.support.lora import speak


@pytest.mark.parametrize(("llm", "given"), [("opt", {}), ("t5", {}), ("opt", {"point_qformer": "separate"})])
def test_a_step_is_the_same_and_keeps_less(tmp_path: Path, llm: str, given: dict[str, str]) -> None:
    config = tiny.model_config(tiny.write_foundation(tmp_path, llm=llm), frozen_dtype="float32", **given)
    built = build_model(config, seed=0)
    model = speak(built.model)
    batches = [tiny.make_batch(modality, built.text, range(4)) for modality in model.parts]

    def found() -> tuple[list[dict[str, torch.Tensor]], list[int]]:
        values, saved = [], []
        for batch in batches:
            saved.append(step_bytes(model, batch).saved)
            losses = model(batch)
            losses.total.backward()
            gradients = {name: p.grad for name, p in model.trainable_parameters().items() if p.grad is not None}
            values.append({name: value.detach() for name, value in losses.with_total().items()} | gradients)
            model.zero_grad(set_to_none=True)
        return values, saved

    plain, most = found()
    model.recompute_activations()
    again, least = found()
    for one, other in zip(plain, again, strict=True):
        assert one.keys() == other.keys()
        assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []
    assert all(less < more for less, more in zip(least, most, strict=True))


def test_counters_and_memory_know_it(tmp_path: Path) -> None:
    train = TrainConfig(global_batch_size=8, ds_config="ds_configs/zero2_cpu.json")
    off = RunConfig(model=tiny.model_config(tiny.write_foundation(tmp_path, llm="opt")), train=train)
    on = replace(off, train=replace(train, activation_checkpointing=True))
    plain, again = (count_step(training_model_of(config), "image_region", 8, 1) for config in (off, on))
    assert again.needed == plain.needed
    # At most one forward pass more, which is half or a third of what is executed without.
    assert 1.1 * plain.total("flops") < again.total("flops") < 1.5 * plain.total("flops")
    layout = train.layouts(1)[0]
    less, more = (memory_model(config, 1).of("image_region", layout) for config in (on, off))
    assert less.saved < more.saved
    assert less.step < more.step
