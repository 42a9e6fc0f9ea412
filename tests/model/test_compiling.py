"""``train.compile``: equal losses and gradients, one graph of each part for a modality however many layers, and a reason where it cannot be.

The graphs are taken by torch's own compiler and run operator by operator here; docs/performance.md has what its C++ gives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rb.core import heartbeat
from rb.core.config import DecodeConfig, TrainConfig
from rb.costs.random_models import SIZES, build_random, random_batch
from rb.model import compiling
from rb.model.compiling import check_can_compile, compile_parts
from rb.model.language import Generation
from rb.model.region_blip import RegionBLIP
from tests.support.remedies import Fault, Said, remedy

CPU, GPU = torch.device("cpu"), torch.device("cuda")
THREADS = "TORCHINDUCTOR_COMPILE_THREADS"


def of_step(model: RegionBLIP, name: str, modality: str, rows: int) -> dict[str, torch.Tensor]:
    """Losses and gradients."""
    losses = model(random_batch(SIZES[name], modality, rows, CPU))
    losses.total.backward()
    found = {name: p.grad for name, p in model.trainable_parameters().items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found | {name: value.detach() for name, value in losses.terms.items()}


class Graphs:
    """A backend that runs what the compiler took as it is, and counts."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # calls in each graph

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.sizes.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph


def compiled(name: str, cases: Sequence[tuple[str, int]], encoders_alone: bool = False) -> list[int]:
    """How many graphs there are after each case, (modality, rows), whose losses and gradients are those of the plain model."""
    torch.manual_seed(0)
    model = build_random(SIZES[name], CPU, torch.float32)
    names = list(model.state_dict())
    expected = [of_step(model, name, *case) for case in cases]
    graphs = Graphs()
    torch.compiler.reset()
    if encoders_alone:
        model.recompute_activations()
    model.compile_parts(graphs, encoders_alone)
    assert list(model.state_dict()) == names
    counts = []
    for case, wanted in zip(cases, expected, strict=True):
        found = of_step(model, name, *case)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)
        counts.append(len(graphs.sizes))
    assert min(graphs.sizes) > 10, "a part is not cut into pieces"
    return counts


def test_one_graph_of_a_part_serves_any_number() -> None:
    """The ViT, the Q-Former with texts, the LLM, and ITM's pass of the Q-Former."""
    assert compiled("small_opt", [("image_region", 5), ("image_region", 3)]) == [4, 4]


def test_points_of_an_encoder_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point encoder, the same two of the Q-Former, the LLM's encoder and decoder. While the compiler works, a watched rank counts as one that starts."""
    phases: list[str] = []
    monkeypatch.setattr(heartbeat, "current_phase", lambda: heartbeat.TRAINING)
    monkeypatch.setattr(heartbeat, "phase", phases.append)
    assert compiled("small_t5", [("point_cloud", 4), ("point_cloud", 2)]) == [5, 5]
    assert phases == [heartbeat.START, heartbeat.TRAINING] * 5


def test_encoders_alone_where_layers_are_recomputed() -> None:
    cases = [(modality, rows) for rows in (5, 3) for modality in ("image_region", "point_cloud", "point_cloud_region")]
    assert compiled("small_opt", cases, encoders_alone=True) == [1, 2, 2, 2, 2, 2]


def test_predictions_are_not_compiled() -> None:
    """Of what carries LoRA. So captions are those of plain transformers."""
    model = build_random(SIZES["small_opt"], CPU, torch.float32)
    batch = random_batch(SIZES["small_opt"], "point_cloud", 2, CPU)
    how = Generation(batch.prompt_ids, DecodeConfig(num_beams=2, max_new_tokens=4), end_token_id=2, pad_token_id=1)
    features = model.encode("point_cloud", batch.inputs)
    expected = model.generate_scored("point_cloud", features, None, how)
    graphs = Graphs()
    torch.compiler.reset()
    model.compile_parts(graphs)
    for found, wanted in zip(model.generate_scored("point_cloud", features, None, how), expected, strict=True):
        assert torch.equal(found, wanted)
    assert not graphs.sizes


@pytest.mark.parametrize(
    ("cores", "ranks", "share"), [(96, "8", "12"), (4, "8", "1"), (256, "1", "32"), (16, "", "16")]
)
def test_ranks_share_the_cores_that_compile(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: str, share: str
) -> None:
    monkeypatch.setenv(THREADS, "")  # so that what is set below ends with the test
    monkeypatch.delenv(THREADS)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_SIZE", ranks)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    compile_parts(nn.ModuleDict({"encoder": nn.Identity()}), None, (), Graphs())
    assert os.environ[THREADS] == share
    monkeypatch.setenv(THREADS, "3")  # a user's own number stays
    compile_parts(nn.ModuleDict({"encoder": nn.Identity()}), None, (), Graphs())
    assert os.environ[THREADS] == "3"


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
