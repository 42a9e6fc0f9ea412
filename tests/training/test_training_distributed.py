"""The engine under the real DeepSpeed ZeRO-2 on 1 and 2 ranks, and its settings. Each launch checks many things."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rb.checkpoints import checkpoint
from rb.core.config import OptimConfig, TrainConfig
from rb.training.engine import choose_kernel, ds_settings
from tests.support.processes import finish, start_ranks

ROOT = Path(__file__).resolve().parents[2]
CPU = "ds_configs/zero2_cpu.json"


def run_ranks(number: int, *arguments: object) -> None:
    """The worker in `number` processes, each seeing the others; their output is shown where one fails."""
    no_compiler = f"{Path(sys.executable).parent}:/nowhere"  # training on a CPU does not need a C++ compiler
    finish(*start_ranks(number, "tests.support.training_worker", *arguments, PATH=no_compiler))


@pytest.mark.dist
def test_engine_on_one_and_two_ranks(tmp_path: Path) -> None:
    two, one, moved = tmp_path / "two", tmp_path / "one", tmp_path / "moved"
    for folder in (two, one, moved):
        folder.mkdir()
    run_ranks(2, two)
    run_ranks(1, one)
    run_ranks(1, moved, two / "at4")  # from two ranks to one, in the middle

    seen = json.loads((two / "seen.json").read_text())
    counts = {"image_region": 2, "point_cloud": 1, "point_cloud_region": 1}
    expected = {f"parts.{m}.{kind}": n for m, n in counts.items() for kind in ("weight", "bias")}
    assert seen["updates"] == expected | {"points": 2, "temperature": 4}
    assert seen["groups"] > 1  # DeepSpeed made one of its own
    assert seen["timeouts"] == [77]

    states = {
        name: checkpoint.load_state(checkpoint.require(path))
        for name, path in {"two": two / "at8", "one": one / "at8", "moved": moved / "at8"}.items()
    }
    for name in ("one", "moved"):
        for kind in checkpoint.KINDS:
            for parameter, value in states["two"].tensors[kind].items():
                torch.testing.assert_close(states[name].tensors[kind][parameter], value, rtol=2e-5, atol=1e-7)


def test_batch_sizes_that_do_not_divide_name_the_three_numbers() -> None:
    train = TrainConfig(global_batch_size=10, micro_batch_size=4, ds_config=CPU)
    with pytest.raises(ValueError, match=r"global_batch_size 10 .*micro_batch_size 4 x 2 ranks"):
        ds_settings(train, OptimConfig(), 2)


def test_settings_are_filled_from_the_run_and_contradictions_are_named(tmp_path: Path) -> None:
    train = TrainConfig(global_batch_size=16, micro_batch_size=4, ds_config=CPU)
    settings = ds_settings(train, OptimConfig(grad_clip=1.5), 2)
    assert settings["train_batch_size"] == 16
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["gradient_clipping"] == 1.5
    for file in ("zero2.json", "zero2_cpu.json"):
        assert json.loads((ROOT / "ds_configs" / file).read_text())["zero_optimization"]["stage"] == 2

    def error(content: str) -> str:
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError) as raised:
            ds_settings(
                TrainConfig(global_batch_size=16, micro_batch_size=4, ds_config=str(tmp_path / "x.json")),
                OptimConfig(),
                2,
            )
        return str(raised.value)

    stage = '"zero_optimization": {"stage": 2}'
    assert "not valid JSON" in error("{")
    assert "'bf16' is not supported" in error('{"bf16": {"enabled": true}, ' + stage + "}")
    assert "must be stage 2" in error('{"zero_optimization": {"stage": 3}}')
    assert "without offload" in error('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}')
    assert "train_batch_size is 32, the run says 16" in error('{"train_batch_size": 32, ' + stage + "}")
    with pytest.raises(ValueError, match=r"nowhere.json does not exist"):
        ds_settings(TrainConfig(ds_config="nowhere.json"), OptimConfig(), 1)


def test_a_kernel_that_must_be_compiled_asks_for_its_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_kernel("auto", torch.device("cpu")) == "torch"
    assert choose_kernel("auto", torch.device("cuda")) == "torch_fused"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"deepspeed_fused .* needs g\+\+, ninja, not found"):
        choose_kernel("deepspeed_fused", torch.device("cpu"))
