"""The paper's models in full size with random weights made on the device, and batches for them. No files, no tokenizers, no host copies.

Used by the check's other files. Random weights cannot caption, but they cost the same memory and time as real ones. Never zeros:
multiplying zeros draws less power and runs faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, OPTConfig, T5Config

from rb.core.batch import Batch
from rb.core.config import ModelConfig
from rb.core.modality import IMAGE_REGION, MODALITIES, POINT_CLOUD, POINT_CLOUD_REGION, modality_spec
from rb.core.seeding import generator, hash_key
from rb.model.blip2_config import llm_config_of, qformer_config_of
from rb.model.point_encoder import PointBert, PointBertConfig
from rb.model.qformer import TextBranch
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import settle_dtypes
from rb.sources.source import EncoderSettings
from rb.sources.table import source_of

SPREAD = 0.02  # standard deviation of every random matrix
# Mean tokens of a caption, start and end included: RefCOCO, Cap3D, ScanRefer.
CAPTION_TOKENS = {IMAGE_REGION: 7, POINT_CLOUD: 20, POINT_CLOUD_REGION: 24}
PROMPT_TOKENS = {"decoder": 1, "encoder_decoder": 5}  # OPT's start token; "a point cloud of" and T5's end token


@dataclass(frozen=True)
class Size:
    """One model: its LLM, and the sizes around it."""

    llm: dict[str, object]
    vision: dict[str, object]
    qformer: dict[str, object]
    points: PointBertConfig
    num_queries: int = 32
    itc_width: int = 256
    vocabulary: int = 30523
    cloud_points: int = 8192
    scene_points: int = 40_000


def _opt(width: int, ffn: int, layers: int = 32, heads: int = 32, **more: Any) -> dict[str, object]:
    sizes: dict[str, Any] = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": ffn}
    return OPTConfig(num_hidden_layers=layers, num_attention_heads=heads, **sizes, **more).to_dict()


def _t5(width: int, heads: int, ffn: int, layers: int = 24, **more: Any) -> dict[str, object]:
    sizes: dict[str, Any] = {"d_model": width, "d_ff": ffn, "num_layers": layers, "num_heads": heads, "d_kv": 64}
    # As the hub's FlanT5: its own head, gated GELU (not gelu_new) as BLIP-2 trained it.
    flan = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}
    flan |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5Config(**(sizes | flan | more)).to_dict() | {"tie_word_embeddings": False}


def _full(llm: dict[str, object]) -> Size:
    return Size(llm, {}, {}, PointBertConfig())  # the defaults of transformers are EVA-CLIP-g and BLIP-2's Q-Former


def _small(llm: dict[str, object]) -> Size:
    heads: dict[str, object] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 48, "image_size": 28, "patch_size": 14} | heads
    qformer = {"hidden_size": 16, "intermediate_size": 24, "encoder_hidden_size": 32} | heads
    points = PointBertConfig(trans_dim=12, depth=1, num_heads=2, group_size=4, num_group=6, encoder_dims=8)
    return Size(llm, vision, qformer, points, 4, 8, vocabulary=200, cloud_points=64, scene_points=96)


def _medium(llm: dict[str, object]) -> Size:
    """For seconds on a CPU core, with the paper's numbers of patches, groups and queries."""
    vision: dict[str, object] = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    }
    qformer: dict[str, object] = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    }
    points = PointBertConfig(trans_dim=192, depth=4, num_heads=3)
    return Size(llm, vision, qformer | {"encoder_hidden_size": 512}, points, vocabulary=4096)


def _narrow(llm: dict[str, object]) -> Size:
    """As many layers as full size, and so about as many launches, with next to no arithmetic: what a step costs the host."""
    small = _small(llm)
    vision, qformer = small.vision | {"num_hidden_layers": 39}, small.qformer | {"num_hidden_layers": 12}
    return replace(small, vision=vision, qformer=qformer, points=replace(small.points, depth=12))


SIZES: dict[str, Size] = {
    "opt_2.7b": _full(_opt(2560, 10240)),
    "opt_6.7b": _full(_opt(4096, 16384)),
    "flant5_xl": _full(_t5(2048, 32, 5120)),
    "flant5_xxl": _full(_t5(4096, 64, 10240)),
    "medium_opt": _medium(_opt(512, 2048, layers=8, heads=8, vocab_size=4096)),
    "medium_t5": _medium(_t5(512, 8, 1024, layers=6, vocab_size=4096)),
    "narrow_opt": _narrow(_opt(20, 24, heads=2, vocab_size=100, max_position_embeddings=128)),
    "small_opt": _small(_opt(20, 24, layers=2, heads=2, vocab_size=100, max_position_embeddings=128)),
    "small_t5": _small(_t5(20, 2, 24, layers=2, d_kv=10, vocab_size=100)),
}


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_random(size: Size, device: torch.device, dtype: torch.dtype, config: ModelConfig | None = None) -> RegionBLIP:
    """The model on ``device``, in the types of a run whose ``frozen_dtype`` is ``dtype``.

    ``config`` is a run's, of which the foundation is not read; none: the default.

    FlanT5's head is its own matrix, as the hub's is: the library ties the two whenever it builds from a config.
    """
    if config is None:
        trained = tuple(name for name, spec in MODALITIES.items() if spec.trains_by_default)
        config = ModelConfig(train_modalities=trained)
    hub = Blip2Config(
        vision_config=size.vision,
        qformer_config={"use_qformer_text_input": True, **size.qformer},
        text_config=size.llm,
        num_query_tokens=size.num_queries,
        image_text_hidden_size=size.itc_width,
        image_token_index=None,
    )
    with torch.device(device):
        with _default_dtype(dtype):
            blip2 = Blip2ForConditionalGeneration(hub)
            if llm_config_of(hub).is_encoder_decoder:
                own = torch.empty(llm_config_of(hub).vocab_size, llm_config_of(hub).d_model)
                blip2.language_model.lm_head.weight = nn.Parameter(own)
        qformer = Blip2QFormerConfig(**{**qformer_config_of(hub).to_dict(), "vocab_size": size.vocabulary})
        text_branch = TextBranch(qformer, size.vocabulary - 1)
        point_encoder = PointBert(size.points)
    draws = None if device.type == "meta" else torch.Generator(device).manual_seed(0)  # meta: names and shapes only
    for module in (blip2, text_branch):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, SPREAD, generator=draws)
    # Made on the host: the few millions that train, keyed as always.
    model = RegionBLIP(blip2, text_branch, point_encoder, config, size.itc_width)
    for name, parameter in model.trainable_parameters().items():
        if name.endswith(".query_tokens"):
            nn.init.normal_(parameter, 0.0, SPREAD)
    settle_dtypes(model, dtype)
    return model.to(device)


def random_batch(size: Size, modality: str, rows: int, device: torch.device, seed: int = 0) -> Batch:
    """A micro-batch of ``rows`` captions with the lengths of the modality's real ones; made on the device but for the token ids."""
    spec = modality_spec(modality)
    rng = generator("gpu check", modality, rows, seed)
    draws = torch.Generator(device).manual_seed(hash_key(modality, rows, seed) & 0x7FFF_FFFF)
    kind = "encoder_decoder" if size.llm.get("is_encoder_decoder") else "decoder"
    source = source_of(modality)
    side = int(size.vision.get("image_size", 224))  # type: ignore[call-overload]
    settings = EncoderSettings(side, size.points.in_channels)
    config = ModelConfig(num_points=size.cloud_points, num_scene_points=size.scene_points)
    inputs = source.random_inputs(source.transform(config, settings), rows, spec.regional, device, draws)
    low = torch.rand(rows, max(spec.box_dim, 2) // 2, device=device, generator=draws) * 0.5
    lengths = torch.from_numpy(rng.poisson(CAPTION_TOKENS.get(modality, 12), rows).clip(4, 32))
    width = int(lengths.max())

    def tokens(vocabulary: int, columns: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(4, vocabulary, (rows, columns)))

    def mask(columns: int) -> torch.Tensor:
        return (torch.arange(columns) < lengths[:, None]).long()

    return Batch(
        modality=modality,
        ids=[f"{modality}-{row}" for row in range(rows)],
        inputs=inputs,
        boxes=torch.cat([low, low + 0.3], dim=1) if spec.regional else None,
        text_ids=tokens(size.vocabulary - 1, 32),
        text_mask=mask(32),
        llm_ids=tokens(int(size.llm["vocab_size"]), width),  # type: ignore[call-overload]
        llm_mask=mask(width),
        prompt_ids=torch.full((1, PROMPT_TOKENS[kind]), 2),
        object_keys=torch.arange(rows),
        caption_keys=torch.arange(rows),
        itm_uniforms=torch.from_numpy(rng.random((rows, 2))).float(),
        positions=list(range(rows)),
    ).to(device)
