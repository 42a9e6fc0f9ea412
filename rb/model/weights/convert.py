"""``rb weights convert``: a LAVIS set (stage-2 ``.pth``, ``eva_vit_g.pth``, a folder with the LLM) becomes a Hugging Face BLIP-2 folder.

Once, before training: afterwards only that folder is read. Every key of every file is renamed, dropped for a named reason, or an error.
Written shard by shard into a temporary folder that is renamed at the end. Stage-1 files need no conversion: they are read as they are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, Blip2Config, Blip2ForConditionalGeneration

from rb.core import progress
from rb.core.files import whole_folder
from rb.core.library_folders import reading
from rb.model.blip2_config import llm_config_of, vision_config_of
from rb.model.weights.hub_folder import open_folder
from rb.model.weights.ledger import listing
from rb.model.weights.readers import CheckpointError, read_headers, read_json, read_tensors
from rb.model.weights.text_branch import STAGE2_PROJECTIONS

_VISION_FRONT = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
_VISION_BLOCK = (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.projection"))
# EVA-CLIP's own end: BLIP-2 reads the last block but one, so its blocks beyond the config's number are dropped too.
_VISION_OTHER = re.compile(r"(norm|fc_norm|head)\.(weight|bias)$|mask_token$|lm_head\.")
_STAGE1_ONLY = re.compile(r"Qformer\.cls\.|vision_proj\.|text_proj\.|itm_head\.|temp$")
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LLM_OTHER = re.compile(r"(^|\.)position_ids$|rotary_emb\.inv_freq$")
_TIED_TO = {  # stored copies of what the model ties; (copy, what it must equal)
    "opt": {"language_model.lm_head.weight": "language_model.model.decoder.embed_tokens.weight"},
    "t5": {
        "language_model.encoder.embed_tokens.weight": "language_model.shared.weight",
        "language_model.decoder.embed_tokens.weight": "language_model.shared.weight",
    },
}


@dataclass
class Written:
    """What was written: shard names, weight -> shard, bytes, and dropped keys by file."""

    weight_map: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Tensor] = field(default_factory=dict)
    size: int = 0
    shards: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def convert(stage2: Path, vit: Path | None, llm: Path, out: Path, config: Path | None = None) -> list[str]:
    """Write the folder ``out``; lines that say what went where.

    Args:
        stage2: ``blip2_pretrained_opt2.7b.pth`` or one of its siblings.
        vit: ``eva_vit_g.pth``; none if ``stage2`` holds a ViT.
        llm: the Hugging Face folder of the LLM (``facebook/opt-2.7b``, ``google/flan-t5-xl``), tokenizer included.
        config: a BLIP-2 ``config.json`` to use instead of the public sizes.

    Raises:
        CheckpointError: files that do not belong together; names file, keys and what to do.
    """
    if out.exists():
        raise CheckpointError(f"--out {out} exists already; name a new folder")
    settings = _settings(llm, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as temporary:
        written = Written()
        bridge = read_tensors(stage2)
        vision = {k: v for k, v in bridge.items() if k.startswith("visual_encoder.")}
        if not vision and vit is None:
            raise CheckpointError(f"{stage2} holds no ViT; give eva_vit_g.pth with --vit")
        source = stage2 if vision else vit
        assert source is not None
        found = _vision(vision or read_tensors(source), vision_config_of(settings).num_hidden_layers, source, written)
        _write(temporary, found, written)
        _write(temporary, _bridge(bridge, settings, stage2, written), written)
        del bridge, vision, found
        _language(llm, settings, temporary, written)
        _compare(settings, written, f"{stage2}, {source} and {llm}")
        _finish(temporary, settings, llm, written)
    lines = [f"{out}: {len(written.weight_map)} weights, {written.size / 1e9:.2f} GB in {written.shards} shards"]
    lines += [f"dropped: {count} {what}" for what, count in written.dropped.items()]
    return [
        *lines,
        "text branch: none in these files; name LAVIS's blip2_pretrained.pth in model.foundation.text_branch",
    ]


def _settings(llm: Path, config: Path | None) -> Blip2Config:
    if config is not None:
        with reading(config, "give the config.json of a BLIP-2", CheckpointError):
            settings = Blip2Config.from_dict(read_json(config))
    else:
        open_folder(llm, "--llm")
        tree = read_json(llm / "config.json")  # as it is: the library would rewrite FlanT5's tie_word_embeddings
        with reading(llm / "config.json", "download it again", CheckpointError):
            settings = Blip2Config(text_config=tree)
    kind = read_json(llm / "config.json").get("model_type")
    if kind not in _TIED_TO or llm_config_of(settings).model_type != kind:
        raise CheckpointError(
            f"--llm {llm} holds a {kind!r} model; LAVIS's BLIP-2 has OPT or T5"
            + (f", and {config} describes a {llm_config_of(settings).model_type!r} one" if config else "")
        )
    return settings


def _vision(tensors: Mapping[str, Tensor], depth: int, path: Path, written: Written) -> dict[str, Tensor]:
    """LAVIS's ViT under transformers' names; the query and value biases become one, the key's is zero by construction."""
    out: dict[str, Tensor] = {}
    unknown = []
    biases: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("visual_encoder.")
        block = re.match(r"blocks\.(\d+)\.(.+)", name)
        if name in _VISION_FRONT:
            out[f"vision_model.{_VISION_FRONT[name]}"] = tensor
        elif _VISION_OTHER.match(name) or (block and int(block[1]) >= depth):
            written.dropped[f"of {path.name} (EVA-CLIP's end, which BLIP-2 does not read)"] += 1
        elif block and block[2] in ("attn.q_bias", "attn.v_bias"):
            biases.setdefault(block[1], {})[block[2][5]] = tensor
        elif block:
            rest = block[2]
            for theirs, ours in _VISION_BLOCK:
                rest = re.sub(rf"^{re.escape(theirs)}\.", f"{ours}.", rest)
            out[
                f"vision_model.encoder.layers.{block[1]}.{rest.replace('attn.qkv', 'self_attn.qkv', 1) if rest.startswith('attn.') else rest}"
            ] = tensor
        else:
            unknown.append(key)
    halves = [f"blocks.{i}.attn" for i, pair in biases.items() if set(pair) != {"q", "v"}]
    if unknown or halves or not out:
        raise CheckpointError(
            f"{path} is no ViT of LAVIS's: unknown {listing(unknown) or 'none'}; without q_bias or v_bias {listing(halves) or 'none'}; "
            "give eva_vit_g.pth"
        )
    for i, pair in biases.items():
        out[f"vision_model.encoder.layers.{i}.self_attn.qkv.bias"] = torch.cat(
            [pair["q"], torch.zeros_like(pair["v"]), pair["v"]]
        )
    return out


def _bridge(tensors: Mapping[str, Tensor], settings: Blip2Config, path: Path, written: Written) -> dict[str, Tensor]:
    """Query tokens, ``ln_vision``, the Q-Former's query path and the projection to the LLM of a stage-2 file."""
    kind = llm_config_of(settings).model_type
    present = [key.split(".")[0] for key in STAGE2_PROJECTIONS if key in tensors]
    if not present:
        stage1 = [key for key in tensors if _STAGE1_ONLY.match(key)]
        what = (
            "it is a stage-1 file, which is read as it is: name it in model.foundation.text_branch"
            if stage1
            else "give a stage-2 file"
        )
        raise CheckpointError(f"{path} has neither opt_proj nor t5_proj; {what}")
    if present != [f"{kind}_proj"]:
        raise CheckpointError(
            f"{path} has {present[0]}, but --llm holds a {kind} model; give the LLM that belongs to the file"
        )
    out: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        name = re.sub(rf"^{kind}_proj\.", "language_projection.", key)
        name = re.sub(r"^ln_vision\.", "vision_model.post_layernorm.", name)
        name = re.sub(r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm.", name)
        name = re.sub(r"^Qformer\.bert\.encoder\.", "qformer.encoder.", name).replace(".self.", ".attention.")
        if key.startswith("visual_encoder."):
            continue
        if key == "Qformer.bert.embeddings.position_ids":
            written.dropped[f"of {path.name} (a buffer)"] += 1
        elif (
            name.startswith(("language_projection.", "vision_model.post_layernorm.", "qformer."))
            or name == "query_tokens"
        ):
            out[name] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"{path} has {len(unknown)} weights that no stage-2 file has: {listing(unknown)}")
    return out


def _language(llm: Path, settings: Blip2Config, folder: Path, written: Written) -> None:
    """The LLM's shards, renamed; stored copies of tied weights must be equal and are written once."""
    kind = llm_config_of(settings).model_type
    hub = open_folder(llm, "--llm")
    tied = _TIED_TO[kind]
    kept: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    for _, tensors in progress.bar(hub.read(read_tensors), total=len(hub.shards), desc="LLM", unit="shard"):
        out = {}
        for key, tensor in tensors.items():
            name = f"language_model.{'model.' if key.startswith('decoder.') and kind == 'opt' else ''}{key}"
            if _LLM_OTHER.search(key):
                written.dropped[f"of {llm.name} (buffers)"] += 1
            elif name in tied:
                copies[name] = tensor
            else:
                out[name] = tensor
                if name in tied.values():
                    kept[name] = tensor
        _write(folder, out, written)
    for name, tensor in copies.items():
        if tied[name] not in kept:
            raise CheckpointError(f"{llm} lacks {tied[name].removeprefix('language_model.')}")
        if not tensor.equal(kept[tied[name]]):
            raise CheckpointError(f"{llm}: {name} differs from {tied[name]}, but BLIP-2 ties them")
        written.dropped[f"of {llm.name} (equal to what they are tied to)"] += 1


def _write(folder: Path, tensors: dict[str, Tensor], written: Written) -> None:
    if not tensors:
        return
    written.shards += 1
    name = f"model-{written.shards:05d}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})
    written.shapes |= read_headers(folder / name)
    written.size += (folder / name).stat().st_size
    written.weight_map |= dict.fromkeys(tensors, name)


def _compare(settings: Blip2Config, written: Written, where: str) -> None:
    """Names and shapes against the model's."""
    with torch.device("meta"):
        places = Blip2ForConditionalGeneration(settings).state_dict()
    tied = _TIED_TO[llm_config_of(settings).model_type]
    missing = sorted(set(places) - set(tied) - set(written.shapes))
    unexpected = sorted(set(written.shapes) - set(places))
    shapes = [
        f"{name} {list(found.shape)} instead of {list(places[name].shape)}"
        for name, found in written.shapes.items()
        if name in places and places[name].shape != found.shape
    ]
    problems = {"lack": missing, "have too much": unexpected, "have in another shape": shapes}
    found = [f"{what} {len(keys)}: {listing(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{where} together {'; '.join(found)}; take files of one model, or give its sizes with --config"
        )


def _finish(folder: Path, settings: Blip2Config, llm: Path, written: Written) -> None:
    """Index with the usual shard names, config, image settings, tokenizer."""
    names = {
        f"model-{i:05d}.safetensors": f"model-{i:05d}-of-{written.shards:05d}.safetensors"
        for i in range(1, written.shards + 1)
    }
    for old, new in names.items():
        (folder / old).replace(folder / new)
    index = {
        "metadata": {"total_size": written.size},
        "weight_map": {k: names[v] for k, v in sorted(written.weight_map.items())},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    tree: dict[str, Any] = settings.to_dict() | {
        "model_type": "blip-2",
        "architectures": ["Blip2ForConditionalGeneration"],
    }
    if (
        llm_config_of(settings).model_type == "t5"
    ):  # its own head: as the hub's files say it, the library would write true
        tree["text_config"]["tie_word_embeddings"] = bool(llm_config_of(settings).scale_decoder_outputs)
        tree["text_config"].pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(tree, indent=1, default=str))
    side = vision_config_of(settings).image_size
    processor = {
        "image_processor_type": "BlipImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | _CLIP, indent=1))
    copied = {path for pattern in _TOKENIZER_FILES for path in llm.glob(pattern)}
    if not copied:
        raise CheckpointError(f"--llm {llm} holds no tokenizer; download it with the weights")
    for path in copied:
        shutil.copyfile(path, folder / path.name)
    AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # what was written can be read
