"""The DeepSpeed engine: one optimizer step under ZeRO-2, and the whole training state in and out. The only user of deepspeed.

Holds: the settings file, the optimizer's kernel, forward - backward - step, gathering and scattering of parameters and moments. Not:
which modality trains when (`schedule.py`), files (`checkpoint.py`). Besides the public API it reads a few attributes of DeepSpeed's ZeRO
optimizer; `_check_contract` names them, so that another version fails at the start and not in a checkpoint. DeepSpeed's optimizer step is
replaced by `zero_step.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from rb.checkpoints.checkpoint import EXP_AVG, EXP_AVG_SQ, PARAMETER, UPDATES, TrainState, check_names
from rb.core import dist, heartbeat
from rb.core.batch import Batch, LossTerms
from rb.core.config import OptimConfig, TrainConfig
from rb.core.install import find_file
from rb.core.strict_json import read
from rb.training import optim as groups
from rb.training import zero_step

TESTED_VERSION = "0.19.8"
# Sections that would change what the project has decided and tested: see docs/architecture.md.
FORBIDDEN_SECTIONS = {
    "fp16": "what trains is fp32, frozen parts have model.frozen_dtype",
    "bf16": "what trains is fp32, frozen parts have model.frozen_dtype",
    "optimizer": "use the run's optim section",
    "scheduler": "use the run's optim section",
}


@dataclass
class StepResult:
    """What one optimizer step did.

    Attributes:
        terms: every loss term and "total", 0-dim on the device, this rank's mean over its micro-batches; the mean over ranks is the step's.
        applied: whether parameters moved; false on all ranks where any loss or gradient on any rank was not finite.
        grad_norm: norm over all ranks before clipping; infinite where not applied.
        ids: sample ids of this rank.
        positions: their positions in the modality's stream.
    """

    terms: dict[str, Tensor]
    applied: bool
    grad_norm: Tensor | float
    ids: list[str]
    positions: list[int]


class _TotalLoss(nn.Module):
    """What DeepSpeed wraps: micro-batch -> total loss. DeepSpeed hooks the output, so it must be a plain tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.terms: dict[str, Tensor] = {}

    def forward(self, batch: Batch, share: object) -> Tensor:
        losses: LossTerms = self.model(batch, share)
        self.terms = {name: value.detach() for name, value in losses.with_total().items()}
        # A loss that is not finite may still have a finite gradient (an L1 of infinity). Make that NaN, so that DeepSpeed's own
        # check skips the step on all ranks; without a host sync, and bit-equal where the loss is finite.
        finite = torch.isfinite(torch.stack(list(self.terms.values()))).all()
        return losses.total * torch.where(finite, 1.0, float("nan"))


class Engine:
    """A model under DeepSpeed ZeRO-2 whose step moves one modality's parameters.

    Args:
        model: `model.shares(batches, layout)` gives every micro-batch of a step with its share, `model(batch, share)` its `LossTerms`;
            parameters that train are float32 and require gradients.
        modalities_of: for every parameter that trains, the modalities that use it.
        optim: rate (its peak), betas, decay, clipping, kernel.
        train: batch sizes, DeepSpeed's file.
        timeout_s: how long a collective may wait; none is ``train.timeout_s``.

    Raises:
        ValueError: batch sizes do not divide; the settings file is missing or asks for what is not supported; the kernel cannot run.
    """

    def __init__(
        self,
        model: Any,
        modalities_of: Mapping[str, Iterable[str]],
        optim: OptimConfig,
        train: TrainConfig,
        timeout_s: float | None = None,
    ) -> None:
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, parameter in self.parameters.items():
            assert parameter.dtype == torch.float32, f"{name} trains in {parameter.dtype}"
            assert parameter.ndim > 0, f"{name} is 0-dim, which DeepSpeed cannot take; give it shape [1]"
        self.layout = train.layout(dist.world_size())
        dist.group(self.layout.group_size)  # made now, so that it gets the time limit too
        settings = ds_settings(train, optim, dist.world_size())
        deepspeed = import_deepspeed()
        device = next(iter(self.parameters.values())).device
        param_groups = groups.parameter_groups(self.parameters, modalities_of, optim)
        self.kernel = choose_kernel(optim.kernel, device)
        self.optimizer = _build_optimizer(self.kernel, param_groups, optim)
        self.optimizer.idle_groups_move = optim.idle_groups == "moved"
        self._loss = _TotalLoss(model)
        with _quiet(), heartbeat.waiting("the start of DeepSpeed"):
            self._engine, *_ = deepspeed.initialize(model=self._loss, optimizer=self.optimizer, config=settings)
        dist.set_timeout(timeout_s or train.timeout_s)
        self._zero = self._engine.optimizer
        _check_contract(self._zero, deepspeed.__version__)
        self._zero.step = zero_step.ZeroStep(self._zero, self.optimizer)
        groups.prefill(self.optimizer)
        self._slices = self._locate()

    def train_step(self, modality: str, rate: float, batches: Iterator[Batch]) -> StepResult:
        """One optimizer step: as many micro-batches as accumulate, backward through each, one update of `modality`'s groups.

        All of them are read before the first forward pass, since each is weighed by the tokens of the whole step.
        Collective: all ranks call it with the same modality and rate.
        """
        sums: dict[str, Tensor] = {}
        self.optimizer.set_active(modality)
        self.optimizer.set_rate(rate)
        taken = [next(batches) for _ in range(self.layout.grad_accum_steps)]
        ids = [one for batch in taken for one in batch.ids]
        heartbeat.samples(ids)
        for batch, share in self.model.shares(taken, self.layout):
            assert batch.modality == modality, f"the schedule says {modality}, the data are {batch.modality}"
            loss = self._engine(batch, share)
            with heartbeat.waiting("backward and the reduction of gradients"):
                self._engine.backward(loss)
                for name, value in self._loss.terms.items():
                    sums[name] = sums[name] + value if name in sums else value
                self._engine.step()  # DeepSpeed wants one a micro-batch; it moves parameters at the last of them
        norm = self._engine.get_global_grad_norm()
        terms = {name: value / len(taken) for name, value in sums.items()}
        positions = [position for batch in taken for position in batch.positions]
        return StepResult(terms, self._engine.was_step_applied(), norm, ids, positions)

    def gather_state(self) -> TrainState | None:
        """A copy of the whole training state, in rank 0's CPU memory; none elsewhere. Collective, one group of parameters after another."""
        state = TrainState() if dist.is_main() else None
        for index, group in enumerate(self.optimizer.param_groups):
            heartbeat.beat()
            updates = groups.step_count(self.optimizer, group)
            for kind, piece in self._pieces(index).items():
                gathered = dist.gather(piece)  # [all of the group, padded]
                if state is None or gathered is None:
                    continue
                whole = gathered.cpu()
                for name, (start, shape) in self._slices[index].items():
                    state.tensors[kind][name] = whole[start : start + shape.numel()].view(shape)
                    state.tensors[UPDATES][name] = torch.tensor([updates])
        return state

    def scatter_state(self, state: TrainState, where: str) -> None:
        """Take over a whole training state, the same on all ranks. Collective.

        Raises:
            CheckpointError: names of `state` (read from `where`) and of the model differ.
        """
        check_names(where, state.names, self.parameters)
        for index, group in enumerate(self.optimizer.param_groups):
            for kind, piece in self._pieces(index).items():
                # Beyond the last parameter there is only padding, which stays as it is: zero.
                whole = torch.zeros(piece.numel() * dist.world_size())
                for name, (start, shape) in self._slices[index].items():
                    assert state.tensors[kind][name].shape == shape, f"{where}: {kind} {name} has another shape"
                    whole[start : start + shape.numel()] = state.tensors[kind][name].flatten()
                piece.copy_(whole[dist.rank() * piece.numel() : (dist.rank() + 1) * piece.numel()])
            counts = {int(state.tensors[UPDATES][name]) for name in self._slices[index]}
            assert len(counts) == 1, f"{where}: parameters of one group with different update counts {counts}"
            groups.set_step_count(self.optimizer, group, counts.pop())
        self._zero.update_lp_params()  # the model's own copies of the parameters, from the pieces just written

    def close(self) -> None:
        """Give back what DeepSpeed holds."""
        self._engine.destroy()

    def _pieces(self, index: int) -> dict[str, Tensor]:
        """This rank's equal share of a group's flat parameters and moments, 1-dim; writing to them writes the state."""
        piece = self._zero.single_partition_of_fp32_groups[index]
        moments = self.optimizer.state[piece]
        return {PARAMETER: piece.data, EXP_AVG: moments["exp_avg"], EXP_AVG_SQ: moments["exp_avg_sq"]}

    def _locate(self) -> list[dict[str, tuple[int, torch.Size]]]:
        """For each group: parameter name -> (start in the group's flat buffer, shape)."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        located = []
        for parameters, starts in zip(
            self._zero.round_robin_bit16_groups, self._zero.round_robin_bit16_offsets, strict=True
        ):
            located.append({names[id(p)]: (start, p.shape) for p, start in zip(parameters, starts, strict=True)})
        assert sorted(name for group in located for name in group) == sorted(self.parameters), (
            "DeepSpeed lost parameters"
        )
        return located


def ds_settings(train: TrainConfig, optim: OptimConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings: the file, with what the run says filled in.

    Raises:
        ValueError: the file is missing or not JSON; a value contradicts the run; a section would change what the project relies on.
    """
    path = find_file(train.ds_config)
    if path is None or not path.is_file():
        raise ValueError(f"train.ds_config: {train.ds_config} does not exist; the project's own are in ds_configs/")
    try:
        settings = read(path, "write it as the project's own in ds_configs/ are")
    except ValueError as error:
        raise ValueError(f"train.ds_config: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"train.ds_config: {path} must hold a JSON object, found {type(settings).__name__}")
    for section, instead in FORBIDDEN_SECTIONS.items():
        if section in settings:
            raise ValueError(f"{path}: section {section!r} is not supported: {instead}")
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") != 2 or "offload_optimizer" in zero or "offload_param" in zero:
        raise ValueError(
            f"{path}: zero_optimization must be stage 2 without offload (offload re-applies stale gradients)"
        )
    of_the_run = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.layout(world_size).micro_batch_size,
        "gradient_accumulation_steps": train.layout(world_size).grad_accum_steps,
        "gradient_clipping": optim.grad_clip,
        "communication_data_type": {"float32": "fp32", "bfloat16": "bf16"}[train.gradient_communication],
    }
    for key, value in of_the_run.items():
        if settings.get(key, "auto") not in ("auto", value):
            raise ValueError(f'{path}: {key} is {settings[key]}, the run says {value}; write "auto" there')
        settings[key] = value
    settings["zero_allow_untested_optimizer"] = True  # our subclass of AdamW, which has the tests DeepSpeed asks for
    return settings


def choose_kernel(wanted: str, device: torch.device) -> str:
    """The optimizer kernel that `optim.kernel` means on this device: "torch", "torch_fused" or "deepspeed_fused".

    Raises:
        ValueError: DeepSpeed's kernel is asked for where it cannot be built.
    """
    if wanted == "auto":
        return "torch_fused" if device.type == "cuda" else "torch"
    if wanted == "deepspeed_fused":
        compiler = os.environ.get("CXX", "g++")
        needed = [compiler, "ninja"] + (["nvcc"] if device.type == "cuda" else [])
        missing = [program for program in needed if shutil.which(program) is None]
        if missing:
            raise ValueError(
                f"optim.kernel: deepspeed_fused is compiled when first used and needs {', '.join(missing)}, not found on PATH; "
                "install a C++ compiler and ninja (and the CUDA toolkit), or use optim.kernel=auto"
            )
    return wanted


def import_deepspeed() -> Any:
    """The deepspeed module, without what a rank would wait for and never use.

    Its compiled shared-memory collective: on a CPU DeepSpeed compiles that at every first start (half a minute, needs a C++ compiler), for inference
    only, and to know what it could compile it starts the compiler several times. Its Muon optimizer, which it imports in any training, whose decorators
    import torch's compiler (3 s of processor time). MLflow, for its autotuner.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _quiet():
        with _absent("mlflow"):
            import deepspeed
            import deepspeed.ops

        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
        with mock.patch.object(torch, "compile", _uncompiled), contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    return deepspeed


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    """A module that is not imported yet counts as not installed meanwhile."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _uncompiled(function: Any = None, **_: object) -> Any:
    """In the place of ``torch.compile``, as a call or a decorator with options: the function as it is."""
    return function if function is not None else _uncompiled


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While DeepSpeed starts: what it prints goes to the error stream, and of its log only errors are shown."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


def _build_optimizer(kernel: str, param_groups: list[dict[str, Any]], optim: OptimConfig) -> groups.ActiveGroups:
    if kernel != "deepspeed_fused":
        return groups.torch_adamw(param_groups, optim, fused=kernel == "torch_fused")
    from deepspeed.ops.adam import FusedAdam

    class ModalityFusedAdam(groups.ActiveGroups, FusedAdam):
        """DeepSpeed's fused AdamW, moving only the active modality's groups."""

    return ModalityFusedAdam(param_groups, lr=optim.lr, betas=optim.betas, adam_w_mode=True)  # type: ignore[call-arg]


def _check_contract(zero: Any, version: str) -> None:
    """What `Engine` and `ZeroStep` read of DeepSpeed's ZeRO optimizer beyond its public API."""
    needed = (
        *zero_step.NEEDED,
        "round_robin_bit16_groups",
        "round_robin_bit16_offsets",
        "update_lp_params",
    )
    missing = [name for name in needed if not hasattr(zero, name)]
    if missing:
        raise RuntimeError(
            f"DeepSpeed {version}: {type(zero).__name__} has no {', '.join(missing)}, which this project reads to train, save "
            f"and load; install the tested one, deepspeed=={TESTED_VERSION}"
        )
