"""The numbers behind ``rb plan`` that are not counted: cards, and what share of them a step gets. One table, each with its source.

Nothing here was measured on the card that a plan is for: a plan gives ranges, and ``launch/gpu_check.sh`` on the real card says which end is right.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        gigabytes: of memory, 10^9 bytes as torch reports it, about.
        teraflops: of dense bf16 products of matrices.
        bandwidth: of its memory, GB/s.
        source: of the numbers.
    """

    gigabytes: float
    teraflops: float
    bandwidth: float
    source: str


CARDS = {
    "a100-40": Card(42.3, 312, 1555, "NVIDIA's data sheet"),
    "a100-80": Card(85.0, 312, 2039, "NVIDIA's data sheet"),
    "h100": Card(85.0, 790, 3350, "NVIDIA's data sheet; rate: that of the H200, whose cores are the same"),
    "h200": Card(150.1, 790, 4300, "rate and bandwidth measured on one; the data sheet says 989 and 4,800"),
    "l40s": Card(47.7, 362, 864, "NVIDIA's data sheet"),
    "a6000": Card(51.0, 155, 768, "NVIDIA's data sheet"),
    "rtx4090": Card(25.3, 165, 1008, "NVIDIA's data sheet"),
}


@dataclass(frozen=True)
class Factor:
    """A number with its range: the favourable end, the other end, and where they are from."""

    good: float
    bad: float
    unit: str
    source: str


FACTORS = {
    "utilisation": Factor(
        0.55,
        0.35,
        "of the card's rate",
        "public training of frozen and LoRA models on A100: 0.30 to 0.50; the largest with large batches",
    ),
    "launch": Factor(
        7.2,
        10.0,
        "us",
        "time of the CPU for one kernel of eager torch, measured on servers; sets the pace of small batches",
    ),
    "engine_launches": Factor(
        1383, 1383, "launches a step", "DeepSpeed's optimizer step, counted on a CPU; a fused optimizer has fewer"
    ),
    "network": Factor(22.0, 22.0, "GB/s", "what one 200 Gb/s adapter of a node gives (--network-gbs)"),
    "nvlink": Factor(230.0, 230.0, "GB/s", "bus rate of collectives inside a node with NVLink, assumed"),
    "image": Factor(132, 132, "sources/s of one core", "measured: docs/performance.md, Reading, images of 640 x 480"),
    "object": Factor(
        934, 934, "sources/s of one core", "measured: docs/performance.md, Reading, clouds of 8,192 points"
    ),
    "scene": Factor(
        150, 207, "sources/s of one core", "measured: docs/performance.md, Reading, scenes of 40,000 points"
    ),
    "copy": Factor(0.82, 0.82, "GB/s", "measured: docs/results.md, What a step waits for a save; one busy core"),
}
GPUS_OF_A_NODE = 8
