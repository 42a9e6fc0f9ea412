"""A prediction that has made everything and ends before it writes its file."""

from __future__ import annotations

import pytest

from rb.cli import main
from rb.inference import predicting


def predict_without_writing(*words: str) -> None:
    """``rb predict``, refused where its file would be written: its chunks stay."""

    def stopped(*_: object) -> None:
        raise ValueError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "write_predictions", stopped)
        assert main(["predict", *words]) == 2
