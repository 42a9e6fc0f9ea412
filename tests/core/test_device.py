"""A wish for a device becomes a device that is there, or one line that says what to do, before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from rb.cli import main as rb
from rb.core import dist
from rb.core.device import usable_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Makes torch see so many GPUs; only their number is asked for here."""

    def see(count: int, version: str | None = "12.9") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.version, "cuda", version)

    return see


def test_wishes_that_can_be_met(gpus) -> None:
    gpus(0)
    assert usable_device("auto") == usable_device("cpu") == torch.device("cpu")
    gpus(2)
    assert usable_device("auto") == usable_device("cuda") == torch.device("cuda", 0)
    assert usable_device(torch.device("cuda:1")) == torch.device("cuda", 1)
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "version", "wish", "words"),
    [
        (
            0,
            None,
            "cuda",
            r"'cuda': this torch \(.*\) was built without CUDA: install a build .*, or use the device cpu",
        ),
        (0, "12.9", "cuda:1", "'cuda:1': torch sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use"),
        (2, "12.9", "cuda:2", "'cuda:2': torch sees 2 GPUs here, cuda:0 to cuda:1"),
        (1, "12.9", "cuda:-1", "'cuda:-1': must be auto, cpu, cuda or cuda:N"),
        (1, "12.9", "gpu", "'gpu': must be auto, cpu, cuda or cuda:N"),
        (1, "12.9", "meta", "'meta': must be auto"),
        (1, "12.9", "cuda:٣", "must be auto"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(gpus, count: int, version: str | None, wish: str, words: str) -> None:
    gpus(count, version)
    with pytest.raises(ValueError, match=words):
        usable_device(wish)


def test_a_rank_without_a_gpu_says_so(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match=r"LOCAL_RANK=3: .*torch sees 1 GPU here, cuda:0; start as many ranks"):
        dist.device()


@pytest.mark.parametrize(
    "command",
    [
        ["caption", "no.jpg", "--checkpoint", "no"],
        ["bench", "captions", "--run", "no.yaml"],
        ["bench", "generate", "--run", "no.yaml"],
    ],
)
def test_commands_say_it_before_they_look_at_anything_else(gpus, command: list[str], capsys) -> None:
    gpus(0, None)
    assert rb([*command, "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert "was built without CUDA" in error
    assert error.count("\n") == 1
