"""What the messages of the model's parts advise helps: clouds, widths, lengths, LoRA's layers. Those of its files: weights/test_remedies.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import Blip2QFormerConfig

from rb.core.modality import IMAGE_REGION
from rb.model.adapters import llm_targets
from rb.model.grouping import farthest_point_sample, knn_group
from rb.model.pafe import PaFE
from rb.model.point_encoder import PointBert, from_original, infer_config, to_original
from rb.model.qformer import TextBranch
from rb.model.weights.build import build_model
from tests.support import tiny
from tests.support.remedies import Said, covers, helps, remedy

CLOUDS = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(0))
COLOURED = torch.cat([CLOUDS, CLOUDS], dim=-1)


def point_bert() -> PointBert:
    return PointBert(tiny.POINT_CONFIG)


def branch(**changes: int) -> TextBranch:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    config = Blip2QFormerConfig(vocab_size=20, max_position_embeddings=16, use_qformer_text_input=True, **sizes)
    return TextBranch(config, **{"dec_token_id": 19, **changes})


# Message -> (call, arguments that it refuses, arguments as it says).
CALLS = {
    "points must be [B, N, 3] coordinates, got {}; pass x y z alone": (
        farthest_point_sample,
        (COLOURED, 4),
        (COLOURED[..., :3], 4),
    ),
    "cannot sample {} of {} points; give clouds of at least {} points": (
        farthest_point_sample,
        (CLOUDS[:, :5], 6),
        (CLOUDS[:, :6], 6),
    ),
    "cannot be used here; use one of {}": (
        lambda backend: farthest_point_sample(CLOUDS, 4, True, backend),
        ("torch_quickfps",),
        ("torch",),
    ),
    "cannot group {} of {} points; give clouds of at least {} points": (
        lambda points: knn_group(points, CLOUDS[:, :2], 6),
        (CLOUDS[:, :5],),
        (CLOUDS[:, :6],),
    ),
    "init.pafe is {}; use one of {}": (lambda init: PaFE(4, 8, init=init), ("ones",), ("zero",)),
    "check in_channels and whether the clouds carry colour": (
        lambda points: point_bert().group(points),
        (COLOURED,),
        (COLOURED[..., :3],),
    ),
    "of a width of {} are unknown; give its config": (
        lambda sizes: infer_config(point_bert().state_dict(), sizes),
        (None,),
        ((6, 4, 2),),
    ),
    "set the point encoder's config so": (
        lambda config: from_original(to_original(point_bert().state_dict()), config),
        (replace(tiny.POINT_CONFIG, depth=2),),
        (tiny.POINT_CONFIG,),
    ),
    "add [DEC] to the tokenizer and set vocab_size to the tokenizer's length": (
        lambda token: branch(dec_token_id=token),
        (20,),
        (19,),
    ),
    "is longer than the Q-Former's {} positions; lower max_text_tokens": (
        lambda length: branch()(torch.zeros(1, length, dtype=torch.int64)),
        (17,),
        (16,),
    ),
}


@pytest.mark.parametrize("says", covers(CALLS))
def test_a_call_is_corrected_as_it_is_said(says: str) -> None:
    call, before, after = CALLS[says]
    given = [before]

    def follow(said: Said) -> None:
        for value in after:  # what the message names is what is given
            assert not isinstance(value, str) or value in said
        given[0] = after

    helps(says, lambda: bool(call(*given[0]) is None), follow)


@pytest.mark.parametrize("way", ["name", "leave"])
@pytest.mark.parametrize("says", covers(["name a Point-BERT folder, or leave the point modalities out"]))
def test_points_without_their_encoder(foundation, says: str, way: str) -> None:
    given = [tiny.model_config(replace(foundation, point_encoder=""))]

    def follow(_: Said) -> None:
        more = {} if way == "name" else {"train_modalities": (IMAGE_REGION,)}
        given[0] = tiny.model_config(foundation if way == "name" else given[0].foundation, **more)

    helps(says, lambda: bool(build_model(given[0], 0, device="meta") is None), follow)


class Unusual(nn.Module):
    """An LLM whose query and value have names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Linear(4, 4) for _ in range(3))


@remedy("name the query and value projections among them, e.g. model.lora.targets=[q_proj,v_proj]")
def test_a_family_without_known_targets():
    names: list[str] = []

    def follow(said: Said) -> None:
        names.extend(name for name in said.found("linear layers are (.*?);").split(", ") if name in ("wq", "wv"))

    return lambda: bool(llm_targets(Unusual(), tuple(names)) is None), follow
