"""Reads the released RegionBLIP checkpoints (``regionblip_opt-2.7b.pth`` and its siblings) into a model with the released variants.

Those files hold what was trained, and with it buffers and tied copies of frozen weights; BLIP-2, the LLM and Point-BERT come from the
foundation. Every key has a place in this model or a reason to be left out; copies of frozen weights are compared with the foundation.
Who uses it: ``rb/training/import_released.py``, which writes the result as a run folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.model.region_blip import RegionBLIP
from rb.model.weights.ledger import listing, plain_name
from rb.model.weights.readers import CheckpointError
from rb.model.weights.recipes import DEC_ROW, LM_BIAS

MODALITY = {"img": IMAGE, "img_region": IMAGE_REGION, "pc": POINT_CLOUD, "pc_region": POINT_CLOUD_REGION}
REMEDY = (
    "a released checkpoint needs model.point_qformer: separate, model.shared_heads: true, model.box3d: metres_corners, all three "
    "modalities and its own LLM: start from launch/runs/released_opt_2.7b.yaml and name the LLM's folder in model.foundation.blip2"
)
_M = r"(?P<m>img_region|img|pc_region|pc)"
_KIND = r"(?P<kind>weight|bias)"
_LORA = rf"lora_(?P<ab>[AB])_{_M}"
_LAYER = r"encoder\.layer\.(?P<layer>\d+)\.(?P<attention>attention|crossattention)"
# Released key -> name in this model; {M} is the modality's name here. The order does not matter: no key matches two rows.
_PLACES: tuple[tuple[str, str], ...] = (
    (rf"query_tokens_{_M}", "parts.{M}.query_tokens"),
    (rf"(opt|t5)_proj_{_M}\.{_KIND}", "parts.{M}.language_projection.{kind}"),
    (rf"stage1_proj_{_M}\.{_KIND}", "parts.{M}.vision_proj.{kind}"),
    (rf"stage1_proj_text\.{_KIND}", "shared_heads.text_proj.{kind}"),
    (rf"img_itm_head\.{_KIND}", "shared_heads.itm_head.{kind}"),
    (r"temp", "shared_heads.temperature"),
    (rf"{_M}_posembed\.0\.{_KIND}", "parts.{M}.pafe.fc1.{kind}"),
    (rf"{_M}_posembed\.2\.{_KIND}", "parts.{M}.pafe.fc2.{kind}"),
    (rf"reg_{_M}\.{_KIND}", "parts.{M}.box_head.fc.{kind}"),
    (rf"pc_adapter\.{_KIND}", "point_projection.{kind}"),
    (
        rf"Qformer\.bert\.{_LAYER}\.self\.(?P<of>query|value)\.{_LORA}",
        "blip2.qformer.encoder.layer.{layer}.{attention}.attention.{of}.lora_{ab}.{M}.weight",
    ),
    (
        rf"Qformer_pc\.bert\.{_LAYER}\.self\.(?P<of>query|value)\.{_LORA}",
        "point_qformer.encoder.layer.{layer}.{attention}.attention.{of}.lora_{ab}.{M}.weight",
    ),
    (rf"(opt|t5)_model\.(?P<path>.+)\.{_LORA}", "blip2.language_model.{path}.lora_{ab}.{M}.weight"),
    (
        rf"Qformer_pc\.bert\.{_LAYER}\.self\.(?P<of>query|key|value)\.{_KIND}",
        "point_qformer.encoder.layer.{layer}.{attention}.attention.{of}.{kind}",
    ),
    (
        r"Qformer_pc\.bert\.(?P<path>encoder\.layer\.\d+\.((cross)?attention\.output|intermediate(_query)?|output(_query)?)\..+)",
        "point_qformer.{path}",
    ),
    (rf"Qformer_pc\.bert\.embeddings\.LayerNorm\.{_KIND}", "point_qformer.layernorm.{kind}"),
    (r"Qformer_pc\.bert\.(?P<path>embeddings\.(word|position)_embeddings\.weight)", "point_text_branch.{path}"),
    (r"Qformer_pc\.cls\.predictions\.(?P<path>transform\..+|bias)", "point_text_branch.{path}"),
)
# Copies of weights that another key of the file holds: they must agree.
_TIED = {
    "Qformer_pc.cls.predictions.decoder.weight": "Qformer_pc.bert.embeddings.word_embeddings.weight",
    "Qformer_pc.cls.predictions.decoder.bias": "Qformer_pc.cls.predictions.bias",
}
_NO_WEIGHT = re.compile(r"Qformer(_pc)?\.bert\.embeddings\.position_ids|point_encoder\..*\.num_batches_tracked")
# Frozen Q-Former's own word table and LM bias, saved as tied copies: BERT's (or a merged file's), not always the foundation's. The row of
# [DEC] and the bias are nowhere else: ``text_head`` takes them.
_TABLE, _BIAS = "Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias"
_FROZEN_TEXT = {
    _TABLE: lambda model: model.text_branch.embeddings.word_embeddings.weight,
    _BIAS: lambda model: model.text_branch.bias,
}
# Copies of frozen weights -> the foundation's own, which they must equal.
_FROZEN: tuple[tuple[str, str, Callable[[RegionBLIP], Tensor]], ...] = (
    (
        r"opt_model\.lm_head\.weight",
        "model.foundation.blip2",
        lambda model: model.blip2.language_model.get_output_embeddings().weight,
    ),
    (
        r"t5_model\.(encoder|decoder)\.embed_tokens\.weight",
        "model.foundation.blip2",
        lambda model: model.blip2.language_model.get_input_embeddings().weight,
    ),
    *(
        (
            rf"point_encoder\.encoder\.{conv}\.1\.{what}",
            "model.foundation.point_encoder",
            lambda model, name=f"patch_embed.{norm}.{what}": model.point_encoder.get_buffer(name),
        )
        for conv, norm in (("first_conv", "bn1"), ("second_conv", "bn2"))
        for what in ("running_mean", "running_var")
    ),
)
NOT_TRAINED_HERE = "of a modality that this model does not train"
WAY_NOT_TAKEN = "LoRA of a way that no input takes: points go through Qformer_pc only, images through Qformer only"


@dataclass
class Account:
    """What became of every key of a released file.

    Attributes:
        origins: trained parameter of this model -> the key it was read from.
        left_out: key -> why it is not used.
    """

    origins: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def text_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``model.foundation.text_head`` holds, from a released file; empty where the file lacks it.

    It is [DEC]'s row (the last one) of the frozen Q-Former's word table, and the bias of its LM head.
    """
    if _TABLE not in tensors or _BIAS not in tensors:
        return {}
    return {DEC_ROW: tensors[_TABLE][-1].float().clone(), LM_BIAS: tensors[_BIAS].float().clone()}


@torch.no_grad()
def import_released(model: RegionBLIP, tensors: Mapping[str, Tensor], source: str) -> Account:
    """Put a released checkpoint's tensors into the model; all of its trained parameters are assigned, each from one key.

    Args:
        model: built with the released variants (see ``launch/runs/released_opt_2.7b.yaml``).
        tensors: of the file, by the released names.
        source: the file, for messages.

    Raises:
        CheckpointError: keys without a place, parameters without a key, shapes or tied or frozen copies that differ; nothing was changed.
    """
    parameters = {plain_name(name): parameter for name, parameter in model.trainable_parameters().items()}
    account, unknown = Account(), []
    for key, tensor in tensors.items():
        reason = _reason(model, tensors, key, tensor, source)
        target = None if reason else place_of(key)
        if reason:
            account.left_out[key] = reason
        elif target in parameters:
            account.origins[target] = key
        elif target is not None and _idle(model, key):
            account.left_out[key] = _idle(model, key)
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{source} has {len(unknown)} weights that have no place here: {listing(unknown)}; {REMEDY}"
        )
    missing = sorted(set(parameters) - set(account.origins))
    if missing:
        raise CheckpointError(
            f"{source} gives nothing for {len(missing)} trained parameters: {listing(missing)}; {REMEDY}"
        )
    shapes = [
        f"{key} {list(tensors[key].shape)}, here {list(parameters[target].shape)}"
        for target, key in account.origins.items()
        if tensors[key].numel() != parameters[target].numel()
        or (tensors[key].ndim and tensors[key].shape != parameters[target].shape)
    ]
    if shapes:
        raise CheckpointError(f"{source} has {len(shapes)} weights of another shape: {listing(shapes)}; {REMEDY}")
    for target, key in account.origins.items():  # the temperature is 0-dim there, [1] here
        parameters[target].data.copy_(tensors[key].reshape(parameters[target].shape))
    return account


def place_of(key: str) -> str | None:
    """The name here of a released key, none where the released model has no such trained weight."""
    for pattern, place in _PLACES:
        found = re.fullmatch(pattern, key)
        if found:
            groups = found.groupdict()
            return place.format(M=MODALITY.get(groups.get("m", ""), ""), **groups)
    return None


def _idle(model: RegionBLIP, key: str) -> str:
    """Why a known weight has no place in this model, empty if there is no good reason."""
    found = re.search(rf"_{_M}(\.(weight|bias))?$", key)
    modality = MODALITY[found["m"]] if found else ""
    of_images = modality in (IMAGE, IMAGE_REGION)
    if key.startswith("Qformer") and "lora_" in key and key.startswith("Qformer_pc.") == of_images:
        return WAY_NOT_TAKEN
    return NOT_TRAINED_HERE if modality == IMAGE and modality not in model.parts else ""


def _reason(model: RegionBLIP, tensors: Mapping[str, Tensor], key: str, tensor: Tensor, source: str) -> str:
    """Why a key is a copy that need not be read, empty where it is none; copies that differ are an error."""
    if _NO_WEIGHT.fullmatch(key):
        return "a counter, not a weight"
    if key in _TIED:
        twin = _TIED[key]
        if twin not in tensors or not _close(tensor, tensors[twin]):
            raise CheckpointError(f"{source}: {key} differs from {twin}, but the model ties them; the file is damaged")
        return f"tied to {twin}"
    if key in _FROZEN_TEXT:
        same = _close(tensor, _FROZEN_TEXT[key](model))
        if same:
            return "copy of a frozen weight, equal to the model's ([DEC]'s row and the bias are taken from this file)"
        return "copy of a frozen weight, not the foundation's text branch: captions do not read it, ITC and ITG of images do"
    for pattern, option, ours in _FROZEN:
        if re.fullmatch(pattern, key):
            if not _close(tensor, ours(model)):
                raise CheckpointError(
                    f"{source}: its copy of the frozen weight {key} differs from the one in {option}; "
                    "name the checkpoint that it was trained on there"
                )
            return f"copy of a frozen weight, equal to the one in {option}"
    return ""


def _close(theirs: Tensor, ours: Tensor) -> bool:
    """Equal up to the rounding of fp16 and bf16; of word tables the rows that both have (padding rows differ in number)."""
    if theirs.shape[1:] != ours.shape[1:] or theirs.ndim != ours.ndim:
        return False
    rows = min(theirs.shape[0], ours.shape[0])
    return torch.allclose(theirs[:rows].to(ours), ours[:rows], rtol=1e-2, atol=1e-3)
