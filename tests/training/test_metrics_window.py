"""Training metrics stay on the device between two log points and are fetched in one piece."""

from __future__ import annotations

import pytest
import torch

from rb.training.metrics import Window
from tests.support.host_waits import host_waits


def test_adding_waits_for_nothing_and_values_fetch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(global_batch_size=8, device=torch.device("cpu"))
    losses = [{"itc": torch.tensor(float(k)), "total": torch.tensor(2.0 * k)} for k in range(4)]

    def add() -> None:
        for k, terms in enumerate(losses):
            window.add("image_region" if k % 2 else "point_cloud", terms, torch.tensor(0.5))

    assert host_waits(add) == []
    assert host_waits(lambda: float(losses[0]["itc"])) != []  # the detector can see a fetch
    fetched: list[int] = []
    fetch = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (fetched.append(self.numel()), fetch(self))[1])
    values = window.values()
    assert fetched == [5]  # the norm and four sums, together
    assert values["train/image_region/loss_itc"] == pytest.approx(2.0)  # mean of steps 1 and 3
    assert values["train/point_cloud/loss_total"] == pytest.approx(2.0)  # 2 x mean of steps 0 and 2
    assert values["train/grad_norm"] == pytest.approx(0.5)
    assert "train/image_region/loss_itc" not in window.values()  # a new window is empty
