"""Samples of one source piece in one batch: it is encoded once, what stands before captions of one subject is read once, and every loss and
gradient is what it is with a copy for each sample.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rb.core import dist
from rb.core.batch import Batch, numbered
from rb.core.config import FoundationConfig
from rb.core.exit_codes import leave
from rb.core.modality import IMAGE_REGION, MODALITIES, POINT_CLOUD_REGION
from rb.core.seeding import hash_key
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.model.encoded import Encoded, ModalityModel, StepShare
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import Built, build_model
from tests.support import tiny
from tests.support.host_waits import host_waits
from tests.support.processes import finish, start_function_ranks

Measured = dict[str, torch.Tensor]
ROWS = 12
GROUPS = (0, 4, 8, 9)  # rows of a step where a group begins: two of four samples, one alone, one of three
# (micro-batch, pool, ranks): whole groups; groups cut by micro-batches, in pools of one pass or of several, on one rank and on two.
DIVISIONS = ((12, 12, 1), (3, 6, 1), (6, 12, 2), (3, 12, 2))


def prepared(foundation: FoundationConfig) -> Built:
    """A model of all modalities whose adapters do something."""
    built = build_model(tiny.model_config(foundation, train_modalities=tuple(MODALITIES)), seed=0)
    with torch.no_grad():
        for name, parameter in built.model.trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return built


def copied(modality: str, text: TextProcessor, rows: range) -> Batch:
    """Rows of a step in which each sample has a copy of its group's source; the second sample of a group shows the first one's object."""
    batch = tiny.make_batch(modality, text, range(ROWS))
    first = torch.tensor([max(start for start in GROUPS if start <= row) for row in range(ROWS)])
    shown = torch.tensor([row - 1 if row - 1 in GROUPS and row not in GROUPS else row for row in range(ROWS)])
    batch = replace(
        batch,
        inputs=batch.inputs[first],
        boxes=None if batch.boxes is None else batch.boxes[shown],
        object_keys=shown if batch.boxes is not None else first,
        source_keys=torch.tensor([hash_key("source", int(row)) for row in first]),
    )
    return batch.rows(slice(rows.start, rows.stop))


def grouped(batch: Batch) -> Batch:
    """The same with each source once."""
    starts = torch.cat([torch.tensor([True]), batch.source_keys[1:] != batch.source_keys[:-1]])
    subject_rows, subjects = numbered(batch.object_keys)
    return replace(
        batch,
        inputs=batch.inputs[starts],
        source_rows=starts.cumsum(0) - 1,
        subject_rows=subject_rows,
        subjects=subjects,
    )


def step(model: RegionBLIP, text: TextProcessor, modality: str, layout: StepLayout, in_groups: bool) -> Measured:
    """Losses and gradients of one step, averaged as training averages them."""
    model.zero_grad()
    rank, micro = dist.group(layout.world_size).rank, layout.micro_batch_size
    starts = [layout.start(rank, number) for number in range(layout.grad_accum_steps)]
    batches = [copied(modality, text, range(start, start + micro)) for start in starts]
    sums: Measured = {}
    for batch, share in model.shares([grouped(one) for one in batches] if in_groups else batches, layout):
        losses = model(batch, share)
        losses.total.backward()
        for name, value in losses.with_total().items():
            sums[f"loss {name}"] = sums.get(f"loss {name}", torch.zeros(())) + value.detach()
    sums |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: dist.all_reduce_sum(v, dist.group(layout.world_size)) / layout.num_parts for n, v in sums.items()}


def differences(built: Built, world: int) -> dict[str, float]:
    """The largest relative difference of a loss, and of a gradient in parts of the largest gradient, for each modality and division on so many ranks."""
    worst: dict[str, float] = {}
    for modality in MODALITIES:
        for micro, pool, ranks in DIVISIONS:
            if ranks != world:
                continue
            layout = StepLayout(ROWS, micro, pool, world)
            one, other = (step(built.model, built.text, modality, layout, in_groups) for in_groups in (False, True))
            assert one.keys() == other.keys()
            scale = max(float(value.abs().max()) for name, value in one.items() if name.startswith("grad"))
            for name, value in one.items():
                kind = name.split()[0]
                found = float((other[name] - value).abs().max()) / (max(1.0, float(value)) if kind == "loss" else scale)
                key = f"{modality} {kind} {micro} of {pool}"
                worst[key] = max(worst.get(key, 0.0), found)
    return worst


def rank_of_two(foundation: FoundationConfig, out: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init(timeout_s=60)
    found = differences(prepared(foundation), 2)
    if dist.is_main():
        out.write_text(json.dumps(found))
    dist.barrier()
    dist.shutdown()
    leave(0)


@pytest.fixture(scope="module")
def built(foundation: FoundationConfig) -> Built:
    return prepared(foundation)


@pytest.mark.dist
def test_losses_and_gradients_do_not_depend_on_grouping(
    built: Built, foundation: FoundationConfig, tmp_path: Path
) -> None:
    ranks = start_function_ranks(2, rank_of_two, foundation, tmp_path / "found.json")
    found = differences(built, 1)
    finish(*ranks)
    found |= json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(MODALITIES) * 2 * len(DIVISIONS)
    assert {name: value for name, value in found.items() if value > 1e-6} == {}


def test_each_source_is_encoded_once(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pass with gradient and in the pass before it, where a pool takes several."""
    encoded: list[int] = []
    encode = ModalityModel.encode
    monkeypatch.setattr(ModalityModel, "encode", lambda own, inputs: encoded.append(len(inputs)) or encode(own, inputs))
    for micro, pieces in ((12, [4]), (6, [2, 3]), (3, [1, 2, 2, 1])):
        encoded.clear()
        step(built.model, built.text, IMAGE_REGION, StepLayout(ROWS, micro, 12, 1), in_groups=True)
        assert encoded == pieces


def test_what_stands_before_the_captions_of_a_subject_is_read_once(built: Built) -> None:
    """And no padding is read; nothing makes the host wait for a GPU."""
    batch = grouped(copied(IMAGE_REGION, built.text, range(ROWS)))
    seen: list[tuple[int, ...]] = []
    hook = built.model.blip2.language_model.get_decoder().register_forward_pre_hook(
        lambda _, args, named: seen.append(tuple(named["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        assert host_waits(lambda: built.model(batch).total.backward()) == []
    finally:
        hook.remove()
    context = built.model.parts[IMAGE_REGION].query_tokens.shape[1] + batch.prompt_ids.shape[1]
    assert len(batch.subjects) < ROWS
    assert seen == [(1, len(batch.subjects) * context + int(batch.llm_mask.sum()) - ROWS)]


def test_stages_have_a_row_for_each_sample(built: Built) -> None:
    batch = copied(POINT_CLOUD_REGION, built.text, range(ROWS))
    one, other = built.model.stages(batch), built.model.stages(grouped(batch))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5)


def test_parts_of_a_batch_take_their_sources_along(built: Built) -> None:
    batch = copied(IMAGE_REGION, built.text, range(ROWS))
    parts = [grouped(batch).rows(slice(start, start + 3)) for start in range(0, ROWS, 3)]
    assert [len(part.inputs) for part in parts] == [1, 2, 2, 1]
    joined = Batch.joined(parts)
    for one in (*parts, joined):
        assert len(one.for_samples(one.inputs)) == len(one)
    assert torch.equal(joined.for_samples(joined.inputs), batch.inputs)
    assert len(joined.inputs) == 6
    whole = grouped(batch)
    for one in (whole, joined, whole.rows(slice(1, 7))):  # subjects by object, wherever the batch was cut
        assert torch.equal(one.object_keys[one.subjects][one.subject_rows], one.object_keys)
    alone = whole.rows(slice(8, 9))
    assert alone.source_rows is alone.subject_rows is alone.subjects is None
    assert torch.equal(Batch.joined([alone, parts[0]]).source_rows, torch.tensor([0, 1, 1, 1]))


def test_pairs_of_one_source_are_hard_negatives_unless_left_out(built: Built) -> None:
    batch = grouped(copied(IMAGE_REGION, built.text, range(ROWS)))
    objects, sources, texts = (
        keys[:, None] == keys for keys in (batch.object_keys, batch.source_keys, batch.caption_keys)
    )
    other = ~torch.eye(ROWS, dtype=torch.bool)
    assert (sources & ~objects & ~texts).any()
    model = built.model.of(IMAGE_REGION)
    built.model.adapters.activate(IMAGE_REGION)
    for choice, left_out in (("keep", objects | texts), ("leave_out", objects | sources | texts)):
        changed = replace(model, config=replace(model.config, same_image_negatives=choice))
        encoded = Encoded.of(changed, batch, StepShare(1, {}, dist.group(1), 1), reads_text=True)
        assert torch.equal(encoded.pool.duplicates, left_out & other)
        chosen = encoded.negatives.features
        assert chosen.shape == (ROWS, *encoded.features.shape[1:])
        # With every pair of one source left out, no row is shown its own source as a negative.
        own = (chosen == batch.for_samples(encoded.features)).flatten(1).all(1)
        assert not (own.any() and choice == "leave_out")
