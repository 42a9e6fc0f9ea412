"""Point-BERT in every container it is published in: the same tokens as the golden; sizes that differ are told apart."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rb.core.config import FoundationConfig
from rb.core.modality import POINT_CLOUD
from rb.model.point_encoder import PointBert, PointBertConfig, to_original
from rb.model.weights.build import build_model
from tests.support import tiny
from tests.support.numbers import close
from tests.support.weights_files import (
    build,
    golden,
)


def containers(tensors: dict[str, Tensor]) -> dict[str, object]:
    """As the publishers' training scripts saved them, options and numpy scores included."""
    extra, options = torch.zeros(1), argparse.Namespace(lr=3e-3, gpu=None, nested=argparse.Namespace(a=1))
    encoder = {k: v for k, v in tensors.items() if not k.startswith("cls_head_finetune")}
    return {
        "Point-BERT.pth": {
            "base_model": {f"module.transformer_q.{k}": v for k, v in encoder.items()}
            | {
                "module.transformer_q.mask_token": extra,
                "module.transformer_k.norm.bias": extra,
                "module.dvae.x": extra,
                "module.queue": extra,
            },
            "optimizer": {"state": {0: {"exp_avg": extra}}},
            "metrics": {"acc": np.float64(91.5)},
            "epoch": 300,
        },
        "fine-tuned.pth": {
            "base_model": {f"module.{k}": v for k, v in tensors.items()},
            "metrics": {"acc": np.float32(93.0)},
        },
        "ULIP.pt": {
            "state_dict": {f"module.point_encoder.{k}": v for k, v in encoder.items()}
            | {"module.pc_projection": extra, "module.logit_scale": extra},
            "args": options,
            "best_acc1": np.float64(60.0),
        },
        "point_bert_v1.2.pt": {"state_dict": {f"module.point_encoder.{k}": v for k, v in encoder.items()}},
    }


@torch.no_grad()
@pytest.mark.parametrize("file", ["Point-BERT.pth", "fine-tuned.pth", "ULIP.pt", "point_bert_v1.2.pt"])
@pytest.mark.parametrize("old_format", [False, True])
def test_point_bert_in_its_containers_reproduces_the_golden(
    foundation: FoundationConfig, tmp_path: Path, file: str, old_format: bool
) -> None:
    data, weights, sizes = golden("point_bert")
    torch.save(containers(weights)[file], tmp_path / file, _use_new_zipfile_serialization=not old_format)
    names = ("trans_dim", "depth", "num_heads", "group_size", "num_group", "encoder_dims")
    (tmp_path / "config.json").write_text(json.dumps({n: sizes[n] for n in names} | {"skip_near_origin": True}))
    built = build(dataclasses.replace(foundation, point_encoder=str(tmp_path / file)))
    close(built.model.encode(POINT_CLOUD, data["points"]), data["tokens"], 1e-5)
    dropped = built.ledger.unused.get(f"point_encoder/{file}", {})
    assert bool(dropped) == (file != "point_bert_v1.2.pt")


@torch.no_grad()
@pytest.mark.parametrize(("depth", "channels"), [(12, 3), (18, 6), (12, 6)])
def test_public_point_encoders_by_their_shapes(
    foundation: FoundationConfig, tmp_path: Path, depth: int, channels: int
) -> None:
    """ULIP-2 xyz and coloured, PointLLM: without a config, sizes follow from the file."""
    original = PointBert(PointBertConfig(depth=depth, in_channels=channels))
    state = {f"module.point_encoder.{k}": v for k, v in to_original(original.state_dict()).items()}
    torch.save({"state_dict": state, "args": argparse.Namespace(model="ULIP2")}, tmp_path / "ulip2.pt")
    config = tiny.model_config(dataclasses.replace(foundation, point_encoder=str(tmp_path / "ulip2.pt")))
    encoder = build_model(config, seed=0).model.point_encoder
    assert encoder is not None
    assert encoder.config == original.config
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in encoder.state_dict().items())
