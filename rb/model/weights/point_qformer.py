"""Where the second Q-Former of ``model.point_qformer: separate`` starts: a copy of BLIP-2's, text branch included.

Used by ``build.py``; what the second Q-Former is used for is in ``rb/model/region_blip.py``.
"""

from __future__ import annotations

from torch import Tensor

from rb.model.region_blip import RegionBLIP
from rb.model.weights.ledger import plain_name


def point_qformer_start(model: RegionBLIP) -> dict[str, tuple[Tensor, str]]:
    """Target name -> (tensor, origin) of every weight of the second Q-Former but its LoRA; empty where there is none."""
    start: dict[str, tuple[Tensor, str]] = {}
    if model.point_qformer is None:
        return start
    for branch, source in (("point_qformer", model.blip2.qformer), ("point_text_branch", model.text_branch)):
        for name, tensor in source.state_dict().items():
            if "lora_" not in name:
                start[f"{branch}.{plain_name(name)}"] = (tensor, f"blip2 copy : {plain_name(name)}")
    return start
