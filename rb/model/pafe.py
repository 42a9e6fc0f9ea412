"""What a region adds to the Q-Former: the position-assisted feature of its box going in, the box regression coming out.

PaFE is the paper's (section 3.1): the box's feature is added to every query token. Both run in float32 outside
autocast: a coordinate in bfloat16 is off by up to 0.002, half a pixel of 224. Shape letters: B micro-batch, Q query
tokens, D Q-Former width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITS = ("default", "zero")


class PaFE(nn.Module):
    """Box [B, box_dim] -> feature [B, 1, D], to be added to the query tokens.

    Args:
        box_dim: 4 for images, 6 for clouds, all in [0, 1]; 24 in metres as the released code.
        width: D.
        hidden: between the two layers.
        init: "default", or "zero" for a last layer of zeros: training then starts with queries that ignore the box.

    Raises:
        ValueError: unknown `init`.
    """

    def __init__(self, box_dim: int, width: int, hidden: int = 128, init: str = "default") -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init.pafe is {init!r}; use one of {', '.join(INITS)}")
        self.fc1 = nn.Linear(box_dim, hidden)
        self.fc2 = nn.Linear(hidden, width)
        if init == "zero":
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.fc2.bias)

    def forward(self, boxes: Tensor) -> Tensor:
        """Boxes [B, box_dim] -> [B, 1, D] float32."""
        with torch.autocast(boxes.device.type, enabled=False):
            return self.fc2(F.gelu(self.fc1(boxes.float()))).unsqueeze(1)


class BoxHead(nn.Module):
    """Query output [B, Q, D] -> box [B, box_dim]: one Linear on the mean over queries."""

    def __init__(self, width: int, box_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, box_dim)

    def forward(self, query_output: Tensor) -> Tensor:
        """Query output [B, Q, D] -> [B, box_dim] float32, in the numbers of the boxes that it is trained on, not clamped."""
        with torch.autocast(query_output.device.type, enabled=False):
            return self.fc(query_output.float().mean(dim=1))
