"""What the messages about released checkpoints advise helps: the settings of their run file, the LLM that they were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from rb.core.config import ModelConfig
from rb.model.weights.build import build_model
from rb.model.weights.released import import_released
from tests.support import tiny
from tests.support.remedies import Said, covers, helps, remedy
from tests.training.test_import_released import (  # noqa: F401 (fixtures)
    SETTINGS,
    config,
    foundation,
    plain,
    tensors,
    text,
)

# Message -> the setting in which the model differs from the run file's.
VARIANTS = {
    "{} has {} weights that have no place here: {}; {}": {"point_qformer": "shared"},
    "{} gives nothing for {} trained parameters: {}; {}": {
        "train_modalities": ("image", *SETTINGS["train_modalities"])
    },
    "{} has {} weights of another shape: {}; {}": {"box3d": "min_max"},
}


@pytest.fixture(scope="module")
def llm() -> str:
    return "opt"


@pytest.mark.parametrize(
    "says", covers(VARIANTS, also=["start from launch/runs/released_opt_2.7b.yaml and name the LLM's folder"])
)
def test_settings_of_the_released_run_file(tensors: dict[str, Tensor], config: ModelConfig, says: str) -> None:  # noqa: F811
    """``SETTINGS`` are those of launch/runs/released_opt_2.7b.yaml, in small."""
    settings = [SETTINGS | VARIANTS[says]]

    def load() -> None:
        model = build_model(tiny.model_config(config.foundation, **settings[0]), seed=0).model
        import_released(model, dict(tensors), "x.pth")

    def follow(said: Said) -> None:
        assert "start from launch/runs/released_opt_2.7b.yaml" in said
        settings[0] = SETTINGS

    helps(says, load, follow)


@remedy("differs from the one in {}; name the checkpoint that it was trained on there")
def test_another_llm_than_it_was_trained_on(tensors: dict[str, Tensor], config: ModelConfig, tmp_path: Path):  # noqa: F811
    named = [tiny.write_foundation(tmp_path, seed=5)]

    def load() -> None:
        import_released(build_model(tiny.model_config(named[0], **SETTINGS), seed=0).model, dict(tensors), "x.pth")

    def follow(said: Said) -> None:
        assert said.found(r"the one in (model\.foundation\.\w+); name")
        named[0] = config.foundation

    return load, follow
