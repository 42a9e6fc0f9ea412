"""Where the second Q-Former of ``model.point_qformer: separate`` starts (``model.init.point_qformer``): BLIP-2's copy, or BERT.

Used by ``build.py``; what the second Q-Former is used for is in ``rb/model/region_blip.py``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rb.core.config import ModelConfig
from rb.core.seeding import torch_generator
from rb.model.blip2_config import qformer_config_of
from rb.model.region_blip import RegionBLIP
from rb.model.weights.hub_folder import HubFolder, open_folder
from rb.model.weights.ledger import FROM, Ledger, listing, plain_name
from rb.model.weights.readers import CheckpointError, Reader
from rb.model.weights.recipes import BERT_OPTION, Weights
from rb.model.weights.text_branch import stage1_names

ROLE = "point_qformer"
NEW_STD = 0.02  # BERT's own initializer_range: cross-attention, the queries' feed-forward layers and [DEC] have no BERT weights


def point_qformer_start(model: RegionBLIP, config: ModelConfig, seed: int, ledger: Ledger, reader: Reader) -> Weights:
    """Target name -> (tensor, origin) of every weight of the second Q-Former but its LoRA; empty if there is none.

    Raises:
        CheckpointError: no BERT where one is asked for, or one without these weights.
    """
    if model.point_qformer is None:
        return {}
    copies: Weights = {}
    for branch, source in (("point_qformer", model.blip2.qformer), ("point_text_branch", model.text_branch)):
        for name, tensor in source.state_dict().items():
            if "lora_" not in name:
                copies[f"{branch}.{plain_name(name)}"] = (tensor, f"blip2 copy{FROM}{plain_name(name)}")
    if config.init.point_qformer == "blip2":
        return copies
    found = _from_bert(bert_folder(config), qformer_config_of(model.blip2.config).num_hidden_layers, ledger, reader)
    return {
        name: _with_dec(*found[name], len(tensor), seed) if name in found else _new(name, tensor, seed)
        for name, (tensor, _) in copies.items()
    }


def bert_folder(config: ModelConfig) -> HubFolder:
    """The BERT that ``model.init.point_qformer: bert`` reads: ``foundation.bert``, or the text branch's where that is one."""
    folder = config.foundation.bert or (config.foundation.text_branch if config.text_branch == "bert" else "")
    if not folder:
        raise CheckpointError(
            f"{BERT_OPTION} is not set; model.init.point_qformer: bert needs a bert-base-uncased folder there"
        )
    return open_folder(Path(folder), BERT_OPTION)


def bert_names(num_layers: int) -> dict[str, str]:
    """BERT's key, without ``bert.`` in front -> name in the second Q-Former."""
    names = {
        key.removeprefix("Qformer.").removeprefix("bert."): target.replace(
            "text_branch.", "point_text_branch."
        ).replace("blip2.qformer.", "point_qformer.")
        for key, target in stage1_names(num_layers).items()
    }
    for kind in ("weight", "bias"):
        names[f"embeddings.LayerNorm.{kind}"] = f"point_qformer.layernorm.{kind}"
        for i in range(num_layers):
            layer, here = f"encoder.layer.{i}.attention", f"point_qformer.encoder.layer.{i}.attention"
            names |= {f"{layer}.self.{of}.{kind}": f"{here}.attention.{of}.{kind}" for of in ("query", "key", "value")}
            names |= {f"{layer}.output.{of}.{kind}": f"{here}.output.{of}.{kind}" for of in ("dense", "LayerNorm")}
    return names


def _from_bert(folder: HubFolder, num_layers: int, ledger: Ledger, reader: Reader) -> Weights:
    names, found = bert_names(num_layers), Weights()
    for shard, tensors in folder.read(reader):
        source = f"{ROLE}/{shard.name}"
        for key, tensor in tensors.items():
            plain = key.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
            plain = plain.replace("LayerNorm.beta", "LayerNorm.bias")
            if plain in names:
                found[names[plain]] = (tensor, f"{source}{FROM}{key}")
            else:
                ledger.leave_out(source, [key], "no part of a Q-Former, or tied")
    missing = sorted(set(names.values()) - set(found))
    if missing:
        raise CheckpointError(
            f"{folder.path} lacks {len(missing)} weights: {listing(missing)}; it must be a bert-base-uncased with its LM head"
        )
    return found


def _with_dec(tensor: Tensor, origin: str, rows: int, seed: int) -> tuple[Tensor, str]:
    """A table with the row of [DEC] behind BERT's own, where the model has one more."""
    if tensor.shape[0] != rows - 1:
        return tensor, origin
    row = torch.zeros(1) if tensor.ndim == 1 else _draw("[DEC]", torch.Size((1, *tensor.shape[1:])), seed)
    return torch.cat(
        [tensor, row.to(tensor)]
    ), f"{origin}; row of [DEC]: {'zero' if tensor.ndim == 1 else 'N(0, 0.02)'}"


def _new(name: str, like: Tensor, seed: int) -> tuple[Tensor, str]:
    """The start of a weight that BERT lacks: its own rule for new layers."""
    if name.endswith("LayerNorm.weight"):
        return torch.ones(like.shape), "init : one"
    if name.endswith(".bias"):
        return torch.zeros(like.shape), "init : zero"
    return _draw(name, like.shape, seed), "init : N(0, 0.02)"


def _draw(name: str, shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, name)) * NEW_STD
