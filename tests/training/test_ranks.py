"""One step divided in every way among ranks and micro-batches: the same losses, the same gradients. Real gloo processes, the real model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rb.checkpoints import checkpoint
from rb.core import dist
from rb.core.batch import Batch
from rb.core.config import (
    DataConfig,
    DataSource,
    FoundationConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from rb.core.exit_codes import leave
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import Built, build_model
from rb.training.engine import Engine, import_deepspeed
from rb.training.validate import Validation, open_validation_data
from tests.support import small_data, tiny
from tests.support.processes import finish, free_port, start_function_ranks

Measured = dict[str, torch.Tensor]
MODALITIES = (IMAGE_REGION, POINT_CLOUD)
# Ways to divide a step of 8 samples, as (ranks, micro-batch): 1x8, 1x(4+4), 2x4, 2x(2+2), 4x2.
DIVISIONS = ((1, 8), (1, 4), (2, 4), (2, 2), (4, 2))
# global batch, pool, divisions; the first is what the others must equal. Pools are split into groups of ranks, or take several passes; of
# pools of 6 on 4 ranks, two ranks make one in three passes, because 6 and 4 have the common divisor 2.
PARTS = {
    "half a batch": (8, 4, ((1, 4), (1, 2), (2, 4), (2, 2), (4, 2), (4, 1))),
    "pairs": (8, 2, ((1, 2), (2, 2), (4, 2))),
    "six of twelve": (12, 6, ((1, 6), (4, 1))),
}
HELD_OUT = ((1, 4), (1, 1), (2, 4), (4, 2))  # divisions for validation


def prepared(foundation: FoundationConfig) -> Built:
    built = build_model(tiny.model_config(foundation), seed=0)
    with torch.no_grad():
        for name, parameter in built.model.trainable_parameters().items():
            if "lora_B" in name:  # zero would hide A's gradient
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return built


def read(text: TextProcessor, modality: str, layout: StepLayout) -> list[Batch]:
    """This rank's micro-batches of a step."""
    batches = []
    for micro_step in range(layout.grad_accum_steps):
        start = layout.start(dist.group(layout.world_size).rank, micro_step)
        rows = range(start, start + layout.micro_batch_size)
        batches.append(tiny.make_batch(modality, text, rows))
        if (
            modality == IMAGE_REGION
        ):  # rows 0 and 4 show one object: duplicates across ranks and passes must be left out
            batches[-1].object_keys = torch.tensor([0 if row == 4 else row for row in rows])
    return batches


def by_the_model(model: RegionBLIP, text: TextProcessor, modality: str, layout: StepLayout) -> Measured:
    """Loss terms and gradients of one step, averaged as training averages them; made by groups of the ranks that are there."""
    model.zero_grad()
    sums: Measured = {}
    for batch, share in model.shares(read(text, modality, layout), layout):
        losses = model(batch, share)
        losses.total.backward()
        for name, value in losses.with_total().items():
            sums[f"loss {name}"] = sums.get(f"loss {name}", torch.zeros(())) + value.detach()
    sums |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    ranks = dist.group(layout.world_size)
    return {name: dist.all_reduce_sum(value, ranks) / layout.num_parts for name, value in sums.items()}


def by_the_engine(model: RegionBLIP, text: TextProcessor, micro_batch_size: int) -> Measured:
    """One step of each modality under DeepSpeed: loss terms, the norm before clipping, and AdamW's first moments, a tenth of the gradients."""
    model.zero_grad()
    train = TrainConfig(global_batch_size=8, micro_batch_size=micro_batch_size, ds_config="ds_configs/zero2_cpu.json")
    before = {name: parameter.detach().clone() for name, parameter in model.trainable_parameters().items()}
    engine = Engine(model, model.parameter_modalities(), OptimConfig(grad_clip=0.5), train)
    found: Measured = {}
    for modality in MODALITIES:
        result = engine.train_step(modality, 1e-4, iter(read(text, modality, engine.layout)))
        assert result.applied
        for name, value in result.terms.items():
            found[f"loss {modality} {name}"] = dist.all_reduce_sum(value) / dist.world_size()
        found[f"grad {modality} norm"] = torch.as_tensor(result.grad_norm)
    state = engine.gather_state()
    if state is not None:
        found |= {f"grad {name}": moment for name, moment in state.tensors[checkpoint.EXP_AVG].items()}
    engine.close()
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            parameter.copy_(before[name])
    return found


def by_validation(built: Built, held_out: Path, micro_batch_size: int) -> Measured:
    """Validation's losses of three pools of 4: two groups of ranks have one or two each, or a rank reads each in several passes."""
    source = {"val": {IMAGE_REGION: (DataSource(str(held_out)),)}, "num_workers": 0}
    config = RunConfig(
        model=built.config,
        data=DataConfig(**source),  # type: ignore[arg-type]
        train=TrainConfig(global_batch_size=8, contrastive_batch_size=4, micro_batch_size=micro_batch_size),
        validation=ValidationConfig(every=1, num_loss_batches=3, num_examples=0),
    )
    values, _ = Validation(config, open_validation_data(config.data), built).run(1)
    return {f"loss {name}": torch.tensor(value) for name, value in values.items()}


def worker(foundation: FoundationConfig, held_out: Path, out: Path, ports: dict[int, int]) -> None:
    """One of four processes: all of them together, then two of them, then one alone."""
    torch.set_num_threads(1)
    dist.init(timeout_s=60)
    first_rank, built = dist.rank(), prepared(foundation)
    found: dict[str, dict[tuple[int, int], Measured]] = {}
    for part, (whole, pool, divisions) in PARTS.items():
        for modality in MODALITIES if part == "half a batch" else (IMAGE_REGION,):
            layouts = [StepLayout(whole, micro, pool, world) for world, micro in divisions]
            found[f"{part}, {modality}"] = {
                (one.world_size, one.micro_batch_size): by_the_model(built.model, built.text, modality, one)
                for one in layouts
            }
    measure(built, held_out, out, found)
    if first_rank == 3:
        leave(0)
    world, rank = (1, 0) if first_rank == 2 else (2, first_rank)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_PORT=str(ports[world]))
    deepspeed = import_deepspeed()  # which takes it that a process has one group for life
    deepspeed.comm.comm.cdb = deepspeed.utils.groups._WORLD_GROUP = None
    dist.init(timeout_s=60)
    measure(built, held_out, out, {})
    leave(0)


def measure(built: Built, held_out: Path, out: Path, found: dict[str, dict[tuple[int, int], Measured]]) -> None:
    """The engine's steps and validation's losses on the ranks that are there, with what was found before to a file; then they part."""
    model, text, ranks = built.model, built.text, dist.world_size()
    found["engine"] = {
        (ranks, micro): by_the_engine(model, text, micro) for world, micro in DIVISIONS if world == ranks
    }
    found["validation"] = {
        (ranks, micro): by_validation(built, held_out, micro) for world, micro in HELD_OUT if world == ranks
    }
    if dist.is_main():
        torch.save(found, out / f"{ranks}.pt")
    dist.shutdown()


def apart(found: Measured, expected: Measured) -> tuple[float, str]:
    """The largest relative difference, over what is allowed (above 1 is too much), and of what."""
    assert found.keys() == expected.keys()
    norms = {name: (float((found[name] - value).norm()), float(value.norm())) for name, value in expected.items()}
    return max(
        (difference / max(norm, 1e-12) / (1e-5 if name.startswith("loss") else 1e-4), name)
        for name, (difference, norm) in norms.items()
    )


@pytest.fixture(scope="module")
def cases(
    foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[tuple[int, int], Measured]]:
    """What was measured: case -> (ranks, micro-batch) -> values."""
    folder = tmp_path_factory.mktemp("ranks")
    small_data.write_set(folder / "held_out", IMAGE_REGION, 14)
    ports = {1: free_port(), 2: free_port()}
    finish(*start_function_ranks(4, worker, foundation, folder / "held_out", folder, ports))
    by_world = [torch.load(folder / f"{world}.pt", weights_only=True) for world in (1, 2, 4)]
    merged: dict[str, dict[tuple[int, int], Measured]] = {}
    for found in by_world:
        for case, by_division in found.items():
            merged.setdefault(case, {}).update(by_division)
    return merged


def check(by_division: dict[tuple[int, int], Measured]) -> Measured:
    """All divisions of a step against the first, which is returned."""
    (first, expected), *others = by_division.items()
    assert others
    for division, found in others:
        worst, name = apart(found, expected)
        assert worst <= 1, f"{division} against {first}: {name} {worst:.1f}"
    return expected


@pytest.mark.dist
def test_the_engine_makes_the_same_step_however_it_is_divided(
    cases: dict[str, dict[tuple[int, int], Measured]],
) -> None:
    assert tuple(cases["engine"]) == DIVISIONS
    names = check(cases["engine"]).keys()
    assert names > {f"loss {IMAGE_REGION} {term}" for term in ("itc", "itm", "itg", "llm", "reg", "total")}
    assert {f"grad {modality} norm" for modality in MODALITIES} < names
    assert any("temperature" in name for name in names)


@pytest.mark.dist
@pytest.mark.parametrize("part", PARTS)
def test_a_pool_that_is_part_of_the_step_is_the_same_however_it_is_divided(
    part: str, cases: dict[str, dict[tuple[int, int], Measured]]
) -> None:
    for modality in MODALITIES if part == "half a batch" else (IMAGE_REGION,):
        assert tuple(cases[f"{part}, {modality}"]) == PARTS[part][2]
        check(cases[f"{part}, {modality}"])
    # The pool is what it says: among fewer samples the own one is easier to find.
    of_all, of_part = cases["engine"][1, 8], cases[f"{part}, {IMAGE_REGION}"][PARTS[part][2][0]]
    assert (of_part["loss itc"] < of_all[f"loss {IMAGE_REGION} itc"]) == (PARTS[part][1] < 8)


@pytest.mark.dist
def test_validation_finds_the_same_losses_on_any_ranks_and_micro_batches(
    cases: dict[str, dict[tuple[int, int], Measured]],
) -> None:
    assert tuple(cases["validation"]) == HELD_OUT
    assert check(cases["validation"]).keys() == {
        f"loss val/{IMAGE_REGION}/loss_{term}" for term in ("itc", "itm", "itg", "llm", "reg", "total")
    }
