"""A run folder with random trained parameters, as training leaves it, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rb.checkpoints import checkpoint
from rb.core.config import DataConfig, DataSource, DecodeConfig, FoundationConfig, RunConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_file import dump_run, to_tree
from rb.core.run_layout import RUN_CONFIG
from rb.model.weights.build import build_model
from tests.support import tiny

MODALITIES = (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)
STEP = 7


def make_run(folder: Path, foundation: FoundationConfig, seed: int = 0, **changes: object) -> Path:
    """A run of the tiny model at step 7 with a score of its checkpoint and one of another; ``seed`` draws other parameters."""
    model = tiny.model_config(foundation, train_modalities=MODALITIES, **changes)
    data = DataConfig(train={IMAGE_REGION: (DataSource("/somewhere/private/refcoco_train/manifest.json", 2),)})
    decode = DecodeConfig(num_beams=2, max_new_tokens=6)
    config = RunConfig(name="tiny", model=model, data=data, decode=decode, output_dir=str(folder))
    run = folder / "tiny"
    (run / "metrics").mkdir(parents=True)
    (run / RUN_CONFIG).write_text(dump_run(config))
    built = build_model(model, config.seed)
    state = checkpoint.TrainState()
    for index, (name, value) in enumerate(built.model.trainable_parameters().items()):
        draw = torch.randn(value.shape, generator=torch.Generator().manual_seed(index + 1000 * seed))
        state.tensors["parameter"][name] = value.detach() + 0.3 * draw
        state.tensors["exp_avg"][name] = torch.zeros(value.shape)
        state.tensors["exp_avg_sq"][name] = torch.zeros(value.shape)
        state.tensors["updates"][name] = torch.tensor([STEP])
    meta = {
        "config": to_tree(config),
        "identities": {"foundation": built.foundation, "data": {IMAGE_REGION: ["d1ce5"]}},
    }
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.save(run, STEP, state, meta | {"versions": {"torch": "2"}}, keep=1)
    score = {
        "modality": IMAGE_REGION,
        "dataset": "refcoco_google",
        "split": "test",
        "variant": "checkpoint",
        "checkpoint": {"step": STEP},
        "scores": {"CIDEr": 0.5678, "SPICE": None, "ROUGE_L": 0.4321},
        "num_examples": 9,
        "reference_policy": "all sentences of a source or box",
        "tokeniser": "ptb",
        "decoding": {"num_beams": 2},
    }
    other = score | {"checkpoint": {"step": 3}, "scores": {"CIDEr": 0.1111}}
    for name, content in {"now": score, "before": other}.items():
        (run / "metrics" / f"{name}.json").write_text(json.dumps(content))
    return run
