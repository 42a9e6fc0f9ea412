"""One rank of tests/training/test_training_distributed.py: a small model under the real engine. Started as RANK/WORLD_SIZE processes.

usage: training_worker.py OUT_DIR [STATE_DIR]    (STATE_DIR: a run folder whose checkpoint is taken over first)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from rb.checkpoints import checkpoint
from rb.core import dist
from rb.core.batch import Batch, LossTerms
from rb.core.config import OptimConfig, TrainConfig
from rb.core.exit_codes import leave
from rb.core.step_layout import StepLayout
from rb.training.engine import Engine

GLOBAL_BATCH = 8
OPTIM = OptimConfig(lr=1e-2, weight_decay=0.1, grad_clip=0.05)
ORDER = ("image_region", "point_cloud", "image_region", "point_cloud_region")


class TinyModel(nn.Module):
    """A few parameters for each modality, one shared by both point modalities, one frozen; two loss terms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.parts = nn.ModuleDict({m: nn.Linear(5, 3) for m in ("image_region", "point_cloud", "point_cloud_region")})
        self.points = nn.Parameter(torch.randn(5))
        self.temperature = nn.Parameter(torch.full((1,), 0.07))
        self.eval()

    def parameter_modalities(self) -> dict[str, tuple[str, ...]]:
        users = {n: (n.split(".")[1],) for n, _ in self.named_parameters() if n.startswith("parts")}
        points = ("point_cloud", "point_cloud_region")
        return users | {"points": points, "temperature": ("image_region", *points)}

    def shares(self, batches: list[Batch], layout: StepLayout) -> Iterator[tuple[Batch, None]]:
        """Every micro-batch of a step weighs the same: its losses are means over samples."""
        assert len(batches) == layout.grad_accum_steps
        return iter([(batch, None) for batch in batches])

    def forward(self, batch: Batch, share: None) -> LossTerms:
        hidden = self.frozen(batch.inputs)
        if batch.modality != "image_region":
            hidden = hidden * self.points
        out = self.parts[batch.modality](hidden) / self.temperature
        # "llm" has the same gradient for any finite or infinite target: only the loss itself would show an infinity
        terms = {"itg": (out**2).mean(), "llm": (out.mean() - batch.boxes.mean()).abs()}
        return LossTerms(terms, terms["itg"] + terms["llm"])


def batches(modality: str, step: int, micro: int, bad_rank: int = -1, scale: float = 1.0) -> Iterator[Batch]:
    """This rank's micro-batches of a step, so that all ranks together see the same samples whatever their number."""
    generator = torch.Generator().manual_seed(step)
    inputs = scale * torch.randn(GLOBAL_BATCH, 5, generator=generator)
    targets = torch.randn(GLOBAL_BATCH, 4, generator=generator)
    none = torch.zeros(micro, 1, dtype=torch.int64)
    for index in range(GLOBAL_BATCH // micro // dist.world_size()):
        start = (index * dist.world_size() + dist.rank()) * micro
        rows = slice(start, start + micro)
        boxes = targets[rows].clone()
        if bad_rank == dist.rank() and index == 0:
            boxes[0] = float("inf")
        yield Batch(
            modality, [f"s{i}" for i in range(start, start + micro)], inputs[rows], boxes, none, none, none, none, none,
            none[:, 0], none[:, 0], torch.zeros(micro, 2), positions=list(range(start, start + micro)),
        )  # fmt: skip


def same(one: checkpoint.TrainState, other: checkpoint.TrainState, names: set[str]) -> bool:
    return all(torch.equal(one.tensors[k][n], other.tensors[k][n]) for k in checkpoint.KINDS for n in names)


def run(engine: Engine, first: int, last: int, micro: int) -> None:
    for step in range(first, last):
        modality = ORDER[step % len(ORDER)]
        assert engine.train_step(modality, 1e-2 / (step + 1), batches(modality, step, micro)).applied


def main(out: Path, start: Path | None) -> None:
    dist.init()
    train = TrainConfig(
        global_batch_size=GLOBAL_BATCH, micro_batch_size=2, ds_config="ds_configs/zero2_cpu.json", timeout_s=77
    )
    micro = train.micro_batch_size
    seen: dict[str, object] = {}
    model = TinyModel()
    users = model.parameter_modalities()
    engine = Engine(model, users, OPTIM, train)
    assert engine.layout.grad_accum_steps == GLOBAL_BATCH // micro // dist.world_size()
    assert not any(module.training for module in model.modules()), "DeepSpeed switched dropout on"
    if start is not None:
        found = checkpoint.require(start)
        engine.scatter_state(checkpoint.load_state(found), str(start))
        run(engine, found.step, 8, micro)

    else:
        # Every parameter, moment and count of what a step's modality does not use stays bit-identical, from the first step on.
        before = engine.gather_state()
        for step in range(4):
            modality = ORDER[step]
            run(engine, step, step + 1, micro)
            after = engine.gather_state()
            if before is not None and after is not None:
                idle = {name for name, using in users.items() if modality not in using}
                assert idle
                assert same(before, after, idle), f"a step of {modality} moved something idle"
                for name in users.keys() - idle:
                    assert not torch.equal(before.tensors["parameter"][name], after.tensors["parameter"][name]), name
                    assert int(after.tensors["updates"][name]) == int(before.tensors["updates"][name]) + 1
            before = after
        if before is not None:
            seen["updates"] = {name: int(count) for name, count in before.tensors["updates"].items()}
            (out / "at4").mkdir()
            checkpoint.save(out / "at4", 4, before, {}, keep=1)

        # A loss that is not finite, on one rank, with a gradient that is: no rank moves anything, and training goes on.
        for bad_rank in range(dist.world_size()):
            result = engine.train_step("image_region", 1e-2, batches("image_region", 99, micro, bad_rank))
            assert not result.applied
            assert bool(torch.isfinite(result.terms["total"])) == (bad_rank != dist.rank())
            assert len(result.ids) == GLOBAL_BATCH // dist.world_size()
        # All losses and all entries of the gradient are finite, but the squares that its norm adds up are not.
        result = engine.train_step("image_region", 1e-2, batches("image_region", 98, micro, scale=1e11))
        assert all(torch.isfinite(value) for value in result.terms.values())
        assert (result.applied, float(result.grad_norm)) == (False, float("inf"))
        after = engine.gather_state()
        if before is not None and after is not None:
            assert same(before, after, set(users)), "a skipped step moved something"
        run(engine, 4, 8, micro)

        # Another engine that takes over the state of step 4 ends in the same bits.
        if dist.world_size() > 1:
            dist.barrier()
            again = Engine(TinyModel(), users, OPTIM, train)
            again.scatter_state(checkpoint.load_state(checkpoint.require(out / "at4")), "at4")
            taken = again.gather_state()
            if taken is not None and before is not None:
                assert same(taken, before, set(users)), "what was taken over is not what was given"
            for name, parameter in again.parameters.items():
                assert torch.equal(parameter.data, checkpoint.load_parameters(out / "at4")[name]), (
                    f"{name}: model's own copy"
                )
            run(again, 4, 8, micro)
            one, two = engine.gather_state(), again.gather_state()
            if one is not None and two is not None:
                assert same(one, two, set(users)), "resumed and uninterrupted training differ"
            again.close()

        import torch.distributed as torch_dist

        groups = [g._get_backend(torch.device("cpu")) for g in torch_dist.distributed_c10d._world.pg_map]
        seen["timeouts"] = sorted({int(g.options._timeout.total_seconds()) for g in groups})
        seen["groups"] = len(groups)

    idle = {"torch._inductor.compile_fx", "setuptools"} & sys.modules.keys()
    assert not idle, f"DeepSpeed imported what takes seconds and no rank uses: {idle}"
    final = engine.gather_state()
    if final is not None:
        (out / "at8").mkdir()
        checkpoint.save(out / "at8", 8, final, {}, keep=1)
        (out / "seen.json").write_text(json.dumps(seen))
    engine.close()
    dist.barrier()
    dist.shutdown()
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
