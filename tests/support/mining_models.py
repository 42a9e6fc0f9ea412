"""The real classes of mining with random weights, from small configurations: SAM, SAM 2, BLIP-2 and CLIP's text tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamModel,
)

from rb.core.config import FoundationConfig


def write_sam(folder: Path, kind: str) -> Path:
    """``sam`` or ``sam2`` in ``folder``."""
    torch.manual_seed(0)
    model = SamModel if kind == "sam" else Sam2Model
    model(_sam_config(kind)).save_pretrained(folder)
    return folder


def write_clip(folder: Path, foundation: FoundationConfig) -> Path:
    """A text tower in ``folder``, with the tokenizer of a foundation's text branch."""
    tokenizer = AutoTokenizer.from_pretrained(foundation.text_branch)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    ends = {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **sizes, **ends)
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_blip2(folder: Path, foundation: FoundationConfig) -> Path:
    """The BLIP-2 of a foundation, whose last word becomes the place for an image."""
    shutil.copytree(foundation.blip2, folder)
    tree = json.loads((folder / "config.json").read_text())
    tree["image_token_index"] = tree["text_config"]["vocab_size"] - 1
    (folder / "config.json").write_text(json.dumps(tree))
    return folder


def _sam_config(kind: str) -> SamConfig | Sam2Config:
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    if kind == "sam":
        vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16, "output_channels": 16, "num_pos_feats": 8,
                  "mlp_dim": 16, "global_attn_indexes": [0], "window_size": 2}  # fmt: skip
        prompt = {
            "hidden_size": 16,
            "image_size": 64,
            "patch_size": 16,
            "image_embedding_size": 4,
            "mask_input_channels": 4,
        }
        return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    backbone = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64], "blocks_per_stage": [1, 2, 1, 1],
                "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 2, 2],
                "global_attention_blocks": [2]}  # fmt: skip
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
