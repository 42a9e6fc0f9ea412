"""The point encoder from a file: Point-BERT's own containers, ULIP and ULIP-2 (xyz or coloured), PointLLM. Used by ``build.py``.

The tensors' names are in ``rb/model/point_encoder.py``. Here: files, sizes that cannot be seen in shapes, and the ledger.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rb.core.config import ModelConfig
from rb.model.point_encoder import PointBert, PointBertConfig, from_original, infer_config, original_names
from rb.model.weights.ledger import FROM, Ledger
from rb.model.weights.readers import CheckpointError, Reader, read_json, weights_file
from rb.sources.table import source_of

OPTION = "model.foundation.point_encoder"
ROLE = "point_encoder"
NAMES = ("point_bert", "model", "point_bert_pretrained", "Point-BERT", "point_bert_v1.2", "ULIP-2-PointBERT")
# Width -> (num_group, group_size, num_heads) of the public networks: RegionBLIP, ULIP, ULIP-2, PointLLM v1.2; PointLLM v1.1.
_PUBLIC = {384: (512, 32, 6), 1152: (512, 48, 12)}


def load_points(
    config: ModelConfig, ledger: Ledger, reader: Reader, device: str
) -> tuple[PointBert | None, list[Path]]:
    """The encoder and its files; none where no point modality is trained.

    Raises:
        CheckpointError: no file, or not a complete Point-BERT; names file, keys and what to do.
    """
    points = [name for name in config.train_modalities if source_of(name).point_encoder]
    if not points:
        return None, []
    if not config.foundation.point_encoder:
        raise CheckpointError(
            f"{OPTION} is not set, but {', '.join(points)} in model.train_modalities needs it; "
            "name a Point-BERT folder, or leave the point modalities out"
        )
    path = weights_file(config.foundation.point_encoder, OPTION, *NAMES)
    config_path = path.with_name(
        "config.json"
    )  # the original files carry none: then the public sizes and the shapes decide
    tensors = reader(path)
    try:
        given = PointBertConfig(**read_json(config_path)) if config_path.is_file() else None
        own = from_original(tensors, given)
    except TypeError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}; give Point-BERT's own file, ULIP's or PointLLM's as published, and its config.json if it is another size"
        ) from error
    with torch.device(device):
        encoder = PointBert(given or infer_config(own, _PUBLIC.get(own["cls_token"].shape[-1])))
    encoder.load_state_dict({name: tensor.to(device) for name, tensor in own.items()})
    kept, dropped = original_names(tensors)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    given_counters = sum(name.endswith("num_batches_tracked") for name in kept)
    for name in encoder.state_dict():
        absent = name in counters and not given_counters
        ledger.assign(f"{ROLE}.{name}", f"init{FROM}zero" if absent else f"{ROLE}/{path.name}{FROM}as {name}")
    ledger.leave_out(
        f"{ROLE}/{path.name}", dropped, "beside the encoder: heads, momentum copy, tokenizer, other towers"
    )
    return encoder, [path, *([config_path] if given else [])]
