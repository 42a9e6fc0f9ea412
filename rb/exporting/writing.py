"""Writes an export: one folder for each modality, whole or not at all. The layout is in `layout.py`.

The adapter is PEFT's own format; a merged folder is made by plain transformers and peft from the exported adapter, so it holds exactly
what others would get.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

from rb.checkpoints.checkpoint import check_names, copy_parameters, load_parameters, require
from rb.checkpoints.export_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD_FILE,
    EXPORT_FILE,
    FORMAT,
    MERGED_FOLDER,
    MODALITY_FILE,
    PARTS_FILE,
    POINT_FOLDER,
    PROCESSOR_FILE,
    ExportError,
    split_names,
)
from rb.core.config import FoundationConfig, RunConfig
from rb.core.files import whole_folder, write_json
from rb.core.modality import modality_spec
from rb.core.run_file import load_run, to_tree
from rb.core.run_layout import RUN_CONFIG
from rb.core.text import TextProcessor
from rb.exporting.card import modality_card, root_card, scores_of
from rb.model.point_encoder import to_original
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from rb.sources.table import source_of

HUB_OWNER = "Salesforce"
PUBLIC_BASES = ("blip2-opt-2.7b", "blip2-opt-6.7b", "blip2-flan-t5-xl", "blip2-flan-t5-xxl")


def export_run(run: Path, out: Path, base: str | None = None, merge: bool = False) -> list[str]:
    """Export the trained parameters of a run; returns the modalities.

    Args:
        run: run folder (its newest checkpoint), or in it ``checkpoints/best`` or ``checkpoints/step_*``.
        out: a folder that does not exist yet.
        base: hub id of the foundation's BLIP-2; by default inferred from the folder's name.
        merge: also write ``<modality>/merged/``, a whole BLIP-2 with LoRA, query tokens and language projection folded in.

    Raises:
        ExportError: ``out`` exists, or ``merge`` of what has no plain BLIP-2.
        ValueError: no usable checkpoint or foundation.
    """
    out = out.resolve()
    if out.exists():
        raise ExportError(f"--out {out}: exists already; nothing is overwritten, name another folder")
    checkpoint = require(run)
    run_dir = checkpoint.path.parents[1]
    config = load_run(run_dir / RUN_CONFIG)
    if not config.model.train_modalities:
        raise ExportError(f"{run_dir}: the run has no trained modality, so there is nothing to export")
    if merge:
        _check_mergeable(config)
    model = build_model(config.model, config.seed).model
    values, parameters = load_parameters(checkpoint.path), model.trainable_parameters()
    check_names(str(checkpoint.path), values, parameters)
    copy_parameters(str(checkpoint.path), parameters, values)
    foundation = {k: str(v) for k, v in checkpoint.meta["identities"]["foundation"].items()}
    common = {
        "format": FORMAT,
        "run": config.name,
        "step": checkpoint.step,
        "base": base or base_id(config.model.foundation),
        "foundation": foundation,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as temporary:
        for modality in model.parts:
            _write_modality(temporary / modality, modality, model, config, common)
            settings = json.loads((temporary / modality / MODALITY_FILE).read_text(encoding="utf-8"))
            card = modality_card(settings, checkpoint.meta, scores_of(run_dir, modality, checkpoint.step))
            (temporary / modality / CARD_FILE).write_text(card, encoding="utf-8")
        if any(source_of(modality).point_encoder for modality in model.parts):
            _write_point_encoder(temporary / POINT_FOLDER, model)
        modalities = list(model.parts)
        write_json(temporary / EXPORT_FILE, common | {"modalities": modalities})
        (temporary / CARD_FILE).write_text(root_card(common, modalities, merge), encoding="utf-8")
        del model
        for modality in modalities if merge else []:
            _write_merged(temporary / modality, config)
    return modalities


def base_id(foundation: FoundationConfig) -> str:
    """The hub id of a BLIP-2 folder with a public name; another folder's name as it is (then it is not on the hub)."""
    name = Path(foundation.blip2).name
    return f"{HUB_OWNER}/{name}" if name in PUBLIC_BASES else name


def _write_modality(
    folder: Path, modality: str, model: RegionBLIP, config: RunConfig, common: Mapping[str, Any]
) -> None:
    folder.mkdir()
    users, parameters = model.parameter_modalities(), model.trainable_parameters()
    adapter_name = model.adapters.names[modality]
    adapter, parts = split_names([name for name in parameters if modality in users[name]], modality, adapter_name)
    _save({adapter[name]: parameters[name] for name in adapter}, folder / ADAPTER_WEIGHTS)
    _save({parts[name]: parameters[name] for name in parts}, folder / PARTS_FILE)
    assert model.adapters.peft is not None
    settings = dataclasses.replace(
        model.adapters.peft.peft_config[adapter_name], base_model_name_or_path=str(common["base"]), inference_mode=True
    )
    settings.save_pretrained(folder)
    assert (folder / ADAPTER_CONFIG).is_file()
    shutil.copyfile(Path(config.model.foundation.blip2) / PROCESSOR_FILE, folder / PROCESSOR_FILE)
    described = to_tree(config.model)
    del (
        described["foundation"],
        described["train_modalities"],
    )  # a machine's folders; which of them are there says the export
    text = text_processor(config.model)
    write_json(
        folder / MODALITY_FILE,
        {
            **common,
            "modality": modality,
            "seed": config.seed,
            "num_parameters": sum(parameters[name].numel() for name in (*adapter, *parts)),
            "model": described,
            "decode": to_tree(config.decode),
            **_text_settings(text, modality),
            "box": source_of(modality).box_words(config.model) if modality_spec(modality).regional else None,
            "parameters": {theirs: ours for ours, theirs in parts.items()},
        },
    )


def _text_settings(text: TextProcessor, modality: str) -> dict[str, Any]:
    return {
        "llm_kind": text.llm_kind,
        "prompt_ids": text.encode_prompt(modality)[0].tolist(),
        "end_token_id": text.end_token_id,
        "pad_token_id": text.pad_token_id,
    }


def _write_point_encoder(folder: Path, model: RegionBLIP) -> None:
    assert model.point_encoder is not None
    folder.mkdir()
    original = to_original(model.point_encoder.state_dict())
    _save(original, folder / "point_bert.safetensors")
    write_json(folder / "config.json", dataclasses.asdict(model.point_encoder.config))


def _check_mergeable(config: RunConfig) -> None:
    if config.model.numerics != "hf":
        raise ExportError(
            f"--merge: model.numerics is {config.model.numerics!r}, a plain BLIP-2 folder is always 'hf'; export without it"
        )
    if config.model.point_qformer != "shared":
        raise ExportError(
            "--merge: model.point_qformer is 'separate', a plain BLIP-2 has one Q-Former; export without it"
        )


@torch.no_grad()
def _write_merged(folder: Path, config: RunConfig) -> None:
    """LoRA into the weights, the modality's query tokens and language projection in BLIP-2's places; PaFE stays outside."""
    base = config.model.foundation.blip2
    plain = Blip2ForConditionalGeneration.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    blip2 = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    parts = load_file(folder / PARTS_FILE)
    blip2.query_tokens.copy_(parts["query_tokens"])
    blip2.language_projection.weight.copy_(parts["language_projection.weight"])
    blip2.language_projection.bias.copy_(parts["language_projection.bias"])
    target = folder / MERGED_FOLDER
    blip2.save_pretrained(target)
    AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(target)
    shutil.copyfile(folder / PROCESSOR_FILE, target / PROCESSOR_FILE)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
