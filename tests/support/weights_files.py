"""Checkpoint files in every public layout, made from a tiny random foundation: LAVIS sets, matching and BERT folders, shards, ``.bin``.

The renaming here is written from the publishers' side and by hand, so that it does not repeat the loader's own tables.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
)

from rb.core.config import FoundationConfig
from rb.model.weights.build import Built, build_model
from tests.support import tiny

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, object]]:
    """(inputs and outputs, state dict, sizes) of a golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    return {k: v for k, v in tensors.items() if not k.startswith("state_dict.")}, state, sizes


def build(foundation: FoundationConfig, **changes: object) -> Built:
    """By numbers and by headers: both must say the same of every weight."""
    config = tiny.model_config(foundation, **changes)
    built, checked = build_model(config, seed=0), build_model(config, seed=0, device="meta")
    assert checked.ledger.report(checked.model) == built.ledger.report(built.model)
    assert checked.foundation == built.foundation
    assert all(parameter.is_meta for parameter in checked.model.parameters())
    return built


def in_layout(source: Path, target: Path, layout: str) -> Path:
    """A BLIP-2 folder with its weights as ``single``, ``sharded`` (safetensors), ``bin`` or ``bin-sharded`` (tied copies stored too)."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
    model = Blip2ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    if layout == "single":
        shutil.copyfile(source / "model.safetensors", target / "model.safetensors")
    elif layout == "sharded":
        config = (target / "config.json").read_text()
        model.save_pretrained(target, max_shard_size="30KB")
        (target / "config.json").write_text(config)
    elif layout == "bin":
        torch.save(model.state_dict(), target / "pytorch_model.bin")
    else:
        names = list(model.state_dict())
        half = {name: f"pytorch_model-0000{1 + (i >= len(names) // 2)}-of-00002.bin" for i, name in enumerate(names)}
        for file in sorted(set(half.values())):
            torch.save({n: t.clone() for n, t in model.state_dict().items() if half[n] == file}, target / file)
        index = {"metadata": {}, "weight_map": half}
        (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return target


def lavis_vit(state: dict[str, Tensor], extra_blocks: int = 1) -> dict[str, Tensor]:
    """``eva_vit_g.pth`` from a BLIP-2 state dict: the biases apart, a block and a norm more than BLIP-2 reads."""
    out = {}
    depth = 1 + max(int(k.split(".")[3]) for k in state if k.startswith("vision_model.encoder.layers."))
    for key, tensor in state.items():
        if not key.startswith("vision_model.") or "post_layernorm" in key:
            continue
        name = key.removeprefix("vision_model.")
        for ours, theirs in (
            ("embeddings.class_embedding", "cls_token"),
            ("embeddings.position_embedding", "pos_embed"),
            ("embeddings.patch_embedding", "patch_embed.proj"),
            ("encoder.layers.", "blocks."),
            ("layer_norm", "norm"),
            ("self_attn.projection", "attn.proj"),
            ("self_attn.qkv", "attn.qkv"),
        ):
            name = name.replace(ours, theirs)
        if name.endswith("attn.qkv.bias"):
            query, key_bias, value = tensor.chunk(3)
            assert not key_bias.any()
            out |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        else:
            out[name] = tensor
    for i in range(extra_blocks):
        out |= {k.replace("blocks.0.", f"blocks.{depth + i}."): v for k, v in out.items() if k.startswith("blocks.0.")}
    return {k: v.clone() for k, v in out.items()} | {"norm.weight": torch.ones(2), "head.bias": torch.zeros(2)}


def lavis_stage2(state: dict[str, Tensor], projection: str) -> dict[str, Tensor]:
    """``blip2_pretrained_*.pth`` from a BLIP-2 state dict; ``projection`` is ``opt_proj`` or ``t5_proj``."""
    out = {"query_tokens": state["query_tokens"], "Qformer.bert.embeddings.position_ids": torch.arange(32)[None]}
    for key, tensor in state.items():
        if key.startswith("language_projection."):
            out[key.replace("language_projection", projection)] = tensor
        elif key.startswith("vision_model.post_layernorm."):
            out[key.replace("vision_model.post_layernorm", "ln_vision")] = tensor
        elif key.startswith("qformer.layernorm."):
            out[key.replace("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")] = tensor
        elif key.startswith("qformer."):
            name = key.replace("qformer.", "Qformer.bert.").replace("attention.attention.", "attention.self.")
            out[name] = tensor
    return {k: v.clone() for k, v in out.items()}


def llm_folder(source: Path, target: Path, prefix: str = "") -> Path:
    """The LLM of a BLIP-2 folder as its own hub folder, tokenizer and tied copies included."""
    target.mkdir(parents=True)
    model = Blip2ForConditionalGeneration.from_pretrained(source, dtype=torch.float32).language_model
    torch.save({prefix + name: t for name, t in model.state_dict().items()}, target / "pytorch_model.bin")
    tree = json.loads((source / "config.json").read_text())["text_config"]
    (target / "config.json").write_text(json.dumps(tree))
    for file in source.glob("tokenizer*"):
        shutil.copyfile(file, target / file.name)
    return target


def no_key_bias(folder: Path) -> None:
    """LAVIS's ViT has no key bias; the random tiny one has."""
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("self_attn.qkv.bias"):
            third = len(tensors[name]) // 3
            tensors[name][third : 2 * third] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def itm_folder(blip2: Path, tokenizer: Path, target: Path, vocabulary: int) -> Blip2ForImageTextRetrieval:
    """``blip2-itm-vit-g`` with random weights in the sizes of a BLIP-2 folder."""
    config = Blip2Config.from_pretrained(blip2)
    config.qformer_config.use_qformer_text_input = True
    config.qformer_config.vocab_size = vocabulary
    model = Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(target)
    _copy_tokenizer(tokenizer, target)
    return model


def bert_folder(tokenizer: Path, target: Path, sizes: dict[str, int], vocabulary: int) -> BertForPreTraining:
    """``bert-base-uncased`` with random weights; norms under their old names, as the hub's file has them."""
    model = BertForPreTraining(BertConfig(vocab_size=vocabulary, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    target.mkdir(parents=True)
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in model.state_dict().items()
        if not k.startswith("cls.predictions.decoder")
    }
    save_file({k: v.clone() for k, v in old.items()}, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(model.config.to_dict()))
    words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS]) + "\n"
    (target / "vocab.txt").write_text(words)
    shutil.copyfile(tokenizer / "tokenizer_config.json", target / "tokenizer_config.json")
    tree = json.loads((target / "tokenizer_config.json").read_text())
    tree.pop("bos_token", None)
    tree.pop("added_tokens_decoder", None)
    (target / "tokenizer_config.json").write_text(json.dumps(tree))
    return model


def _copy_tokenizer(source: Path, target: Path) -> None:
    for file in (*source.glob("tokenizer*"), *source.glob("vocab*")):
        shutil.copyfile(file, target / file.name)
