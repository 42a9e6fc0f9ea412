"""Writes the toy foundation in the file formats of the public checkpoints, all fp16.

Hugging Face BLIP-2 (generation checkpoints: no text branch) with OPT and with T5, LAVIS's stage-1 names for the text branch, Point-BERT's
original names. A BLIP-2 is two shards: one for ViT, queries and Q-Former (T5's folder links to OPT's file), one for projection and LLM.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast

from rb.core.strict_json import read
from rb.core.tensor_files import read_tensor_file
from rb.model.point_encoder import to_original
from rb.toy.pretraining.bridge import Bridge, blip2_config
from rb.toy.pretraining.data import CLIP_MEAN, CLIP_STD
from rb.toy.pretraining.points import config_tree
from rb.toy.pretraining.t5 import t5_blip2
from rb.toy.pretraining.tokenizers import opt_tokenizer, qformer_tokenizer, t5_tokenizer
from rb.toy.world.scenes import IMAGE_SIZE

# The text feed-forward layers; their siblings for queries are intermediate_query and output_query.
_TEXT_FEED_FORWARD = re.compile(r"qformer\.(encoder\.layer\.\d+\.(?:intermediate|output)\..+)")


OPT_FOLDER, T5_FOLDER = "blip2-opt", "blip2-t5"
SEEING, SPEAKING = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
_INDEX = "model.safetensors.index.json"


def write_foundation(out: Path, bridge: Bridge, points: dict[str, Tensor], t5: dict[str, Tensor] | None = None) -> None:
    """The folders ``blip2-opt``, ``text_branch``, ``point_bert`` and, with T5's weights, ``blip2-t5`` in ``out``, each replaced as a whole."""
    for name in (OPT_FOLDER, "text_branch", "point_bert", *([T5_FOLDER] if t5 else [])):
        folder = out / f".{name}.new"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if name == OPT_FOLDER:
            _write_opt(folder, bridge)
        elif name == T5_FOLDER:
            assert t5 is not None
            _write_t5(folder, bridge, t5)
        elif name == "text_branch":
            save_file(_stage1(bridge), folder / "text_branch.safetensors")
            qformer_tokenizer().save_pretrained(folder)
        else:
            original = {f"transformer_q.{key}": _half(value) for key, value in to_original(points).items()}
            save_file(original, folder / "point_bert.safetensors")
            _write_json(folder / "config.json", config_tree())
        shutil.rmtree(out / name, ignore_errors=True)
        folder.replace(out / name)


def _write_opt(folder: Path, bridge: Bridge) -> None:
    tokenizer = opt_tokenizer()
    model = Blip2ForConditionalGeneration(blip2_config(text_input=False))
    own = {k: v for k, v in bridge.blip2.state_dict().items() if not _TEXT_FEED_FORWARD.fullmatch(k)}
    model.load_state_dict(own)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("\n"),
        max_new_tokens=24,
    )
    _write_blip2(folder, model, tokenizer)


def _write_t5(folder: Path, bridge: Bridge, weights: dict[str, Tensor]) -> None:
    tokenizer = t5_tokenizer()
    model = t5_blip2(bridge, weights)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=24,
    )
    _write_blip2(folder, model, tokenizer)
    (folder / SEEING).unlink()
    (folder / SEEING).symlink_to(Path("..") / OPT_FOLDER / SEEING)
    # As the hub's files say it: the library calls every T5 that it has built tied.
    tree = read(folder / "config.json")
    tree["text_config"] |= {"tie_word_embeddings": False}
    tree["text_config"].pop("scale_decoder_outputs", None)
    _write_json(folder / "config.json", tree)


def _write_blip2(folder: Path, model: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Settings, tokenizer, and the weights in two shards with transformers' index."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    whole = folder / "model.safetensors"
    tensors = read_tensor_file(whole)
    whole.unlink()
    shard_of = {name: SPEAKING if name.startswith("language_") else SEEING for name in sorted(tensors)}
    for shard in (SEEING, SPEAKING):
        save_file({k: v for k, v in tensors.items() if shard_of[k] == shard}, folder / shard, {"format": "pt"})
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    _write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": shard_of})
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "BlipImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
        },
    )


def _stage1(bridge: Bridge) -> dict[str, Tensor]:
    """What a generation checkpoint lacks, under LAVIS's names."""
    text = bridge.text_branch.state_dict()
    names = {
        "Qformer.bert.embeddings.word_embeddings.weight": text["embeddings.word_embeddings.weight"],
        "Qformer.bert.embeddings.position_embeddings.weight": text["embeddings.position_embeddings.weight"],
        "Qformer.cls.predictions.bias": text["bias"],
        "Qformer.cls.predictions.decoder.weight": text["embeddings.word_embeddings.weight"].clone(),
        "Qformer.cls.predictions.decoder.bias": text["bias"].clone(),
        "temp": bridge.temp.data.reshape(()),  # 0-dim there
    }
    names |= {f"Qformer.cls.predictions.{k}": v for k, v in text.items() if k.startswith("transform.")}
    for key, value in bridge.blip2.state_dict().items():
        match = _TEXT_FEED_FORWARD.fullmatch(key)
        if match:
            names[f"Qformer.bert.{match[1]}"] = value
    for head in ("vision_proj", "text_proj", "itm_head"):
        names |= {f"{head}.{kind}": getattr(bridge, head).state_dict()[kind] for kind in ("weight", "bias")}
    return {key: _half(value) for key, value in names.items()}


def _half(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float16 if tensor.is_floating_point() else tensor.dtype).contiguous()


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
