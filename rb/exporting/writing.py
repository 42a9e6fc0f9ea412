"""Writes an export: one folder for each modality, whole or not at all. The layout is in `layout.py`.

The adapter is PEFT's own format; a merged folder is made by plain transformers and peft from the exported adapter, so it holds exactly
what others would get.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

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
    POINT_WEIGHTS,
    PROCESSOR_FILE,
    ExportError,
    is_export,
    split_names,
)
from rb.core.config import FoundationConfig, ModelConfig
from rb.core.files import whole_folder, write_json
from rb.core.library_folders import read_tokenizer
from rb.core.modality import modality_spec
from rb.core.run_file import to_tree
from rb.core.tensor_files import read_tensor_file
from rb.core.text import TextProcessor
from rb.exporting.card import modality_card, root_card, scores_of
from rb.inference.load import Loaded, build_trained, read_trained
from rb.model.point_encoder import to_original
from rb.model.region_blip import RegionBLIP
from rb.sources.table import source_of

HUB_OWNER = "Salesforce"
PUBLIC_BASES = ("blip2-opt-2.7b", "blip2-opt-6.7b", "blip2-flan-t5-xl", "blip2-flan-t5-xxl")


def export_run(
    run: Path,
    out: Path,
    base: str | None = None,
    merge: bool = False,
    foundation: Path | None = None,
    allow: Sequence[str] = (),
) -> list[str]:
    """Export the trained parameters of a run; returns the modalities.

    Args:
        run: run folder (its newest checkpoint), or in it ``checkpoints/best`` or ``checkpoints/step_*``.
        out: a folder that does not exist yet.
        base: hub id of the foundation's BLIP-2; by default inferred from the folder's name.
        merge: also write ``<modality>/merged/``, a whole BLIP-2 with LoRA, query tokens and language projection folded in.
        foundation: folder of the frozen weights, if the run's own paths do not lead to them.
        allow: "foundation" accepts frozen weights other than those of the training.

    Raises:
        ExportError: ``out`` exists, or ``merge`` of what has no plain BLIP-2.
        ValueError: no usable checkpoint or foundation.
    """
    out = out.resolve()
    if out.exists():
        raise ExportError(f"--out {out}: exists already; nothing is overwritten, name another folder")
    if is_export(run):
        raise ExportError(f"{run}: is an export already; name the run folder that it came from")
    trained = read_trained(run, foundation)
    assert trained.run_dir is not None
    if not trained.model.train_modalities:
        raise ExportError(f"{trained.run_dir}: the run has no trained modality, so there is nothing to export")
    if merge:
        _check_mergeable(trained.model)
    loaded = build_trained(trained, allow=allow)
    model = loaded.model
    common: dict[str, Any] = {
        "format": FORMAT,
        "run": trained.name,
        "step": trained.step,
        "base": base or base_id(trained.model.foundation),
        "foundation": trained.recorded,
    }
    if loaded.accepted:
        # The fingerprints above are those of the training; --merge folds into these files.
        common["allowed"] = loaded.accepted
        common["exported_with"] = {part: loaded.built.foundation[part] for part in loaded.built.files}
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as temporary:
        for modality in model.parts:
            settings = _write_modality(temporary / modality, modality, loaded, common)
            card = modality_card(settings, trained.meta, scores_of(trained.run_dir, modality, trained.step))
            (temporary / modality / CARD_FILE).write_text(card, encoding="utf-8")
        if any(source_of(modality).point_encoder for modality in model.parts):
            _write_point_encoder(temporary / POINT_FOLDER, model)
        modalities = list(model.parts)
        write_json(temporary / EXPORT_FILE, common | {"modalities": modalities})
        (temporary / CARD_FILE).write_text(root_card(common, modalities, merge), encoding="utf-8")
        config = trained.model
        del model, loaded, trained  # a merged model needs the memory
        for modality in modalities if merge else []:
            _write_merged(temporary / modality, config)
    return modalities


def base_id(foundation: FoundationConfig) -> str:
    """The hub id of a BLIP-2 folder with a public name; another folder's name as it is (then it is not on the hub)."""
    name = Path(foundation.blip2).name
    return f"{HUB_OWNER}/{name}" if name in PUBLIC_BASES else name


def _write_modality(folder: Path, modality: str, loaded: Loaded, common: Mapping[str, Any]) -> dict[str, Any]:
    """One modality's folder; returns what its ``modality.json`` holds."""
    folder.mkdir()
    model, config = loaded.model, loaded.built.config
    users, parameters = model.parameter_modalities(), model.trainable_parameters()
    adapter_name = model.adapters.names[modality]
    adapter, parts = split_names([name for name in parameters if modality in users[name]], modality, adapter_name)
    _save({adapter[name]: parameters[name] for name in adapter}, folder / ADAPTER_WEIGHTS)
    _save({parts[name]: parameters[name] for name in parts}, folder / PARTS_FILE)
    assert model.adapters.peft is not None
    settings = dataclasses.replace(
        model.adapters.peft.peft_config[adapter_name], base_model_name_or_path=str(common["base"]), inference_mode=True
    )
    settings.save_pretrained(str(folder))
    assert (folder / ADAPTER_CONFIG).is_file()
    shutil.copyfile(Path(config.foundation.blip2) / PROCESSOR_FILE, folder / PROCESSOR_FILE)
    described = to_tree(config)
    del (
        described["foundation"],
        described["train_modalities"],
    )  # a machine's folders; which of them are there says the export
    written = {
        **common,
        "modality": modality,
        "seed": loaded.seed,
        "num_parameters": sum(parameters[name].numel() for name in (*adapter, *parts)),
        "model": described,
        "decode": to_tree(loaded.generation),
        **_text_settings(loaded.text, modality),
        "box": source_of(modality).box_words(config) if modality_spec(modality).regional else None,
        "parameters": {theirs: ours for ours, theirs in parts.items()},
    }
    write_json(folder / MODALITY_FILE, written)
    return written


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
    _save(original, folder / POINT_WEIGHTS)
    write_json(folder / "config.json", dataclasses.asdict(model.point_encoder.config))


def _check_mergeable(config: ModelConfig) -> None:
    if config.numerics != "hf":
        raise ExportError(
            f"--merge: model.numerics is {config.numerics!r}, a plain BLIP-2 folder is always 'hf'; export without it"
        )
    if config.point_qformer != "shared":
        raise ExportError(
            "--merge: model.point_qformer is 'separate', a plain BLIP-2 has one Q-Former; export without it"
        )


@torch.no_grad()
def _write_merged(folder: Path, config: ModelConfig) -> None:
    """LoRA into the weights, the modality's query tokens and language projection in BLIP-2's places; PaFE stays outside."""
    base = config.foundation.blip2
    plain = Blip2ForConditionalGeneration.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    blip2 = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    parts = read_tensor_file(folder / PARTS_FILE)
    blip2.query_tokens.copy_(parts["query_tokens"])
    blip2.language_projection.weight.copy_(parts["language_projection.weight"])
    blip2.language_projection.bias.copy_(parts["language_projection.bias"])
    target = folder / MERGED_FOLDER
    blip2.save_pretrained(target)
    read_tokenizer(Path(base)).save_pretrained(target)
    shutil.copyfile(folder / PROCESSOR_FILE, target / PROCESSOR_FILE)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
