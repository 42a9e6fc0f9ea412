"""Figures that may fall and not rise: those of ``rb bench step --counters`` beside what is kept."""

from __future__ import annotations

from collections.abc import Mapping

KEYS = ("executed_gflop", "launches", "collectives", "received_mb")
ROUNDING = 1e-5  # relative


def rises(found: Mapping[str, Mapping[str, float]], kept: Mapping[str, tuple[float, ...]]) -> list[str]:
    """What rose, one line each. Every modality that is kept must be found."""
    assert found.keys() == kept.keys()
    return [
        f"{modality} {key}: {found[modality][key]:,} instead of {most:,}; all now: {[found[modality][key] for key in KEYS]}"
        for modality, figures in kept.items()
        for key, most in zip(KEYS, figures, strict=True)
        if found[modality][key] > most * (1 + ROUNDING)
    ]
