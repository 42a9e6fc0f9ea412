"""The step over the active groups only does what DeepSpeed's own step does, bit for bit, with fewer collectives: 2 and 4 gloo ranks."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rb.checkpoints.checkpoint import KINDS, TrainState
from rb.core import dist
from rb.core.config import OptimConfig, TrainConfig
from rb.core.exit_codes import leave
from rb.training.engine import Engine
from tests.support.processes import finish, start_function_ranks
from tests.support.training_worker import GLOBAL_BATCH, ORDER, TinyModel, batches

STEPS = 7
BAD_STEP = 4


class Collectives(TorchDispatchMode):
    """How many calls of torch.distributed run within it."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func._schema.name.startswith("c10d::")
        return func(*args, **(kwargs or {}))


def trained(own_step: bool, optim: OptimConfig) -> tuple[TrainState | None, list[float], list[int]]:
    """State of all ranks, this rank's copy of the norms, collectives of each step."""
    model = TinyModel()
    train = TrainConfig(
        global_batch_size=GLOBAL_BATCH, micro_batch_size=1, ds_config="ds_configs/zero2_cpu.json", timeout_s=60
    )
    engine = Engine(model, model.parameter_modalities(), optim, train)
    if not own_step:
        del engine._zero.step  # DeepSpeed's own is behind it
    norms, collectives = [], []
    for step in range(STEPS):
        modality = ORDER[step % len(ORDER)]
        with Collectives() as counted:
            result = engine.train_step(
                modality, 1e-2, batches(modality, step, 1, bad_rank=1 if step == BAD_STEP else -1)
            )
        assert result.applied == (step != BAD_STEP)
        norms.append(float(result.grad_norm))
        collectives.append(counted.number)
    state = engine.gather_state()
    copies = torch.cat([parameter.detach().flatten() for parameter in engine.parameters.values()])
    assert torch.equal(dist.all_gather(copies[None]), copies.expand(dist.world_size(), -1)), "ranks differ"
    engine.close()
    return state, norms, collectives


def rank() -> None:
    torch.set_num_threads(1)
    dist.init(timeout_s=60)
    for kernel, clip, idle in (("torch", 0.05, "still"), ("torch_fused", 0.0, "moved")):
        optim = OptimConfig(lr=1e-2, weight_decay=0.1, kernel=kernel, grad_clip=clip, idle_groups=idle)
        (ours, norms, few), (theirs, their_norms, many) = trained(True, optim), trained(False, optim)
        assert norms == their_norms, (norms, their_norms)
        # a reduction for every micro-batch, a sum for the norms, a gather of the parameters unless the step is skipped
        passes = GLOBAL_BATCH // dist.world_size()
        assert few == [passes + (1 if step == BAD_STEP else 2) for step in range(STEPS)], few
        assert sum(few) < sum(many)
        if ours is not None and theirs is not None:
            for kind in KINDS:
                for name, value in theirs.tensors[kind].items():
                    assert torch.equal(ours.tensors[kind][name], value), (optim, kind, name)
    dist.barrier()
    leave(0)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_equal_to_deepspeeds_own_step(ranks: int) -> None:
    finish(*start_function_ranks(ranks, rank))
