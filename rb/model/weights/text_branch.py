"""Names of LAVIS's stage-1 checkpoint (``blip2_pretrained.pth``) that a generation checkpoint lacks, mapped to this model's.

Only these are taken from it: the rest of that file (queries, attention, ``ln_vision``) was trained further in stage 2, and the generation
checkpoint's own version is used (facts: LAVIS issues 128 and 344). The toy foundation's file has the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rb.model.weights.ledger import listing
from rb.model.weights.readers import CheckpointError

_EMBEDDINGS = {
    "Qformer.bert.embeddings.word_embeddings.weight": "text_branch.embeddings.word_embeddings.weight",
    "Qformer.bert.embeddings.position_embeddings.weight": "text_branch.embeddings.position_embeddings.weight",
}
_HEAD = {
    "Qformer.cls.predictions.transform.dense.weight": "text_branch.transform.dense.weight",
    "Qformer.cls.predictions.transform.dense.bias": "text_branch.transform.dense.bias",
    "Qformer.cls.predictions.transform.LayerNorm.weight": "text_branch.transform.LayerNorm.weight",
    "Qformer.cls.predictions.transform.LayerNorm.bias": "text_branch.transform.LayerNorm.bias",
    "Qformer.cls.predictions.bias": "text_branch.bias",
}
_FEED_FORWARD = ("intermediate.dense", "output.dense", "output.LayerNorm")
STAGE2_PROJECTIONS = ("opt_proj.weight", "t5_proj.weight")  # only stage-2 files have one
# Heads that every trained modality gets a copy of (``init.heads: source``): source name -> name inside ModalityParts.
HEADS = {
    "vision_proj.weight": "vision_proj.weight",
    "vision_proj.bias": "vision_proj.bias",
    "text_proj.weight": "text_proj.weight",
    "text_proj.bias": "text_proj.bias",
    "itm_head.weight": "itm_head.weight",
    "itm_head.bias": "itm_head.bias",
    "temp": "temperature",
}
# Tied to what is read above, so it must agree with it.
_TIED = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}
_REPLACED = re.compile(
    r"query_tokens$|ln_vision\.|visual_encoder\.|Qformer\.bert\.embeddings\.(LayerNorm\.|position_ids)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(attention|crossattention|intermediate_query|output_query)\."
)


def stage1_names(num_layers: int) -> dict[str, str]:
    """Source key -> target name of the frozen text branch (heads not counted), for a Q-Former of ``num_layers`` layers."""
    names = dict(_EMBEDDINGS) | _HEAD
    for i in range(num_layers):
        for piece in _FEED_FORWARD:
            for kind in ("weight", "bias"):
                names[f"Qformer.bert.encoder.layer.{i}.{piece}.{kind}"] = (
                    f"blip2.qformer.encoder.layer.{i}.{piece}.{kind}"
                )
    return names


def check_stage1(tensors: Mapping[str, Tensor], names: Mapping[str, str], path: Path) -> list[str]:
    """The keys that are left out on purpose; every key of the file must be known, and every needed one there.

    Raises:
        CheckpointError: keys missing (a stage-2 file lacks the whole text branch), unknown, or tied weights that disagree.
    """
    missing = sorted((set(names) | set(HEADS)) - set(tensors))
    if missing:
        stage2 = [key for key in STAGE2_PROJECTIONS if key in tensors]
        what = f"it is a stage-2 file ({stage2[0]} is in it), which has no text branch; " if stage2 else ""
        raise CheckpointError(
            f"{path} lacks {len(missing)} weights of the text branch: {listing(missing)}; {what}"
            "it must be a stage-1 checkpoint (blip2_pretrained.pth; stage-2 and generation checkpoints have no text branch), "
            "or choose another recipe by model.text_branch: hub-itm or bert"
        )
    rest = set(tensors) - set(names) - set(HEADS)
    unknown = sorted(key for key in rest if key not in _TIED and not _REPLACED.match(key))
    if unknown:
        raise CheckpointError(f"{path} has {len(unknown)} weights that this model has no place for: {listing(unknown)}")
    for key, twin in _TIED.items():
        if key in tensors and not tensors[key].is_meta and not tensors[key].equal(tensors[twin]):
            raise CheckpointError(f"{path}: {key} differs from {twin}, but this model ties them")
    return sorted(rest)
