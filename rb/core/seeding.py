"""Randomness as a function: every draw is keyed by what it is for, never by who asks or when.

So a draw is the same on any number of ranks and workers and after any resume. Used by the data order, augmentation, ITM negatives and
parameter initialisation.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _digest(parts: tuple[object, ...]) -> bytes:
    # The length prefix keeps ("ab", "c") and ("a", "bc") apart.
    text = "".join(f"{len(str(part))}:{part};" for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def hash_key(*parts: object) -> int:
    """A stable 64-bit key of ``parts``, as a signed integer that fits an int64 tensor."""
    return int.from_bytes(_digest(parts)[:8], "little", signed=True)


def uniform(*parts: object) -> float:
    """One draw from [0, 1), a pure function of ``parts``; exactly representable in float32 and always below 1 there."""
    return (int.from_bytes(_digest(parts)[:4], "little") >> 8) * 2.0**-24


def generator(*parts: object) -> np.random.Generator:
    """A NumPy generator (Philox) seeded by ``parts``."""
    return np.random.Generator(np.random.Philox(int.from_bytes(_digest(parts), "little")))


def torch_generator(*parts: object) -> torch.Generator:
    """A CPU torch generator seeded by ``parts``."""
    import torch  # here: commands that only parse need not wait for it

    return torch.Generator().manual_seed(hash_key(*parts) & 0x7FFF_FFFF_FFFF_FFFF)
