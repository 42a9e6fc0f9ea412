"""``train.compile``: the model's large parts by ``torch.compile``, which fuses their small operations. Numbers stay equal within rounding.

One graph is made of the ViT's layers, one of what Point-BERT computes behind its grouping, one of the LLM (T5's encoder has its own) and one of each pass of the
Q-Former: with texts, and of ITM. What carries LoRA has these for each modality, because its adapter is part of the graph. Sizes are symbols in all of them, so
that a graph serves any number of samples and tokens (a single sample has its own), and a run that resumes makes the graphs that it had. Losses, PaFE and the
projections run as they are. Where no gradient is wanted, the Q-Former and the LLM run as they are, too: captions during a training are those of plain transformers, and no graph is
made for each length of a caption.
CUDA graphs are not recorded: their outputs are overwritten by the next call, and features of a pool are kept longer than that.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rb.core import heartbeat
from rb.core.ranks_here import ranks_of_this_host
from rb.model.point_encoder import PointBert

LEAST_CAPABILITY = (7, 0)  # of an NVIDIA GPU for which Triton makes code
# Of one function; what needs more, torch runs as it is. The Q-Former has two for each modality, and two more where a micro-batch shares sources.
MOST_GRAPHS = 64


def check_can_compile(device: torch.device) -> None:
    """Raises ``ValueError`` with the reason where this device cannot run what ``torch.compile`` makes."""
    if device.type == "cuda":
        if not _has_triton():
            raise ValueError(
                "train.compile: torch.compile makes Triton kernels on a GPU, and triton is not installed; "
                "pip install triton, or use train.compile=false"
            )
        found = torch.cuda.get_device_capability(device)
        if found < LEAST_CAPABILITY:
            raise ValueError(
                f"train.compile: Triton makes kernels for compute capability 7.0 and above, this GPU has {found[0]}.{found[1]}; use train.compile=false"
            )
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"train.compile: torch.compile makes C++ on a CPU and needs {compiler}, not found on PATH; install a C++ compiler, or use train.compile=false"
        )


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def compile_parts(
    vision: nn.Module, points: PointBert | None, trained: Iterable[nn.Module], backend: str | Callable[..., Any]
) -> None:
    """From the next call on. Names of parameters stay.

    Args:
        vision: BLIP-2's vision model.
        trained: what carries LoRA.
        backend: of ``torch.compile``.
    """
    _share_cores()
    # Seconds to import: only where something is compiled.
    dynamo: Any = importlib.import_module("torch._dynamo")
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MOST_GRAPHS)
    # With sizes as symbols, numbers such as LoRA's scaling would be symbols too, and everything traced twice.
    dynamo.config.specialize_float = True
    # Sizes that are equal by chance when a graph is made, as of samples and patches, are not one size.
    sizes: Any = importlib.import_module("torch.fx.experimental._config")
    sizes.use_duck_shape = False
    _show_progress(dynamo.callback)
    graph = functools.partial(torch.compile, backend=backend, dynamic=True)
    encoder = vision.get_submodule("encoder")
    encoder.forward = graph(encoder.forward)
    if points is not None:
        points.read_groups = graph(points.read_groups)  # type: ignore[method-assign]
    for part in trained:
        part.forward = _where_gradients_are_wanted(graph(part.forward), part.forward)


def _share_cores() -> None:
    """Triton's compiler works in processes beside a rank, by itself one for each of up to 32 cores: the ranks of a host share its cores instead."""
    share = min(32, max(1, (os.cpu_count() or 1) // ranks_of_this_host()))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(share))  # read when the compiler is imported


def _show_progress(callback: Any) -> None:
    """While the compiler works, which may be in any step, a rank has the time that it has to start (``limits.start_s``)."""
    before: list[str] = []

    def begins(*_: object) -> None:
        before.append(heartbeat.current_phase())
        heartbeat.phase(heartbeat.START)

    def ends(*_: object) -> None:
        heartbeat.phase(before.pop())

    callback.on_compile_start(begins)
    callback.on_compile_end(ends)


def _where_gradients_are_wanted(compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def forward(*args: Any, **named: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **named)

    return forward
