"""``train.compile``: equal losses and gradients, one graph for each encoder however many modalities and layers, and a reason where it cannot be.

The graphs are taken by torch's own compiler and run operator by operator here; docs/performance.md has what its C++ gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rb.core.config import TrainConfig
from rb.costs.random_models import SIZES, build_random, random_batch
from rb.model import compiling
from rb.model.compiling import check_can_compile
from rb.model.region_blip import RegionBLIP
from tests.support.remedies import Fault, Said, remedy

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def of_step(model: RegionBLIP, modality: str, rows: int) -> dict[str, torch.Tensor]:
    """Losses and gradients."""
    losses = model(random_batch(SIZES["small_opt"], modality, rows, CPU))
    losses.total.backward()
    found = {name: p.grad for name, p in model.trainable_parameters().items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found | {name: value.detach() for name, value in losses.terms.items()}


def test_one_graph_for_an_encoder_and_equal_steps() -> None:
    torch.manual_seed(0)
    model = build_random(SIZES["small_opt"], CPU, torch.float32)
    names = list(model.state_dict())
    cases = [(modality, rows) for rows in (4, 3, 2) for modality in model.parts]
    expected = [of_step(model, *case) for case in cases]
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph

    torch.compiler.reset()
    model.compile_encoders(backend)
    assert list(model.state_dict()) == names
    counts = []
    for case, wanted in zip(cases, expected, strict=True):
        found = of_step(model, *case)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        counts.append(len(graphs))
    assert counts[2] == 2  # the ViT's, and the point encoder's for both modalities of points
    assert counts[5:] == [4] * 4  # another number of sources makes one more of each, which serves all others
    assert min(graphs) > 10


@remedy("install a C++ compiler, or use train.compile=false")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Fault, Callable[[Said], object]]:
    monkeypatch.setenv("CXX", "no-such-compiler")

    def install(_: Said) -> None:
        (tmp_path / "no-such-compiler").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return lambda: check_can_compile(CPU), install


@remedy("pip install triton, or use train.compile=false")
def test_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> tuple[Fault, Callable[[Said], object]]:
    monkeypatch.setattr(compiling, "_has_triton", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    return lambda: check_can_compile(GPU), lambda _: monkeypatch.setattr(compiling, "_has_triton", lambda: True)


@remedy("this GPU has {}.{}; use train.compile=false")
def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[Fault, Callable[[Said], object]]:
    monkeypatch.setattr(compiling, "_has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    train = TrainConfig(compile=True)

    def asked() -> None:
        if given[-1].compile:
            check_can_compile(GPU)

    given = [train]
    return asked, lambda said: given.append(replace(train, compile=said.found(r"use train\.compile=(\w+)") != "false"))
