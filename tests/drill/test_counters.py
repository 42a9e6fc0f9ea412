"""The counters at full size: what a step of OPT-6.7B executes may fall and not rise. Without weights, data or a GPU."""

from __future__ import annotations

import json

from tests.support.processes import finish, start
from tests.support.ratchet import rises
from tests.support.trials import Figures

# Executed GFLOP of a sample; launches, collectives and MB received of a step of 16 samples on a rank of 32. Lower them where they fell.
KEPT = {
    "image_region": (1610.15, 3978, 10, 141.97),
    "point_cloud": (1526.7, 3779, 10, 141.97),
    "point_cloud_region": (1689, 3822, 10, 143.19),
}


def test_a_step_of_opt_6_7b(figures: Figures) -> None:
    output = finish(start("rb.cli", "bench", "step", "--run", "opt_6.7b", "--counters", "--json"), timeout=600)
    found = json.loads(output[output.index("{\n") :])["modalities"]
    for modality, counts in found.items():
        figures[f"{modality}: needed share"] = round(counts["needed_gflop"] / counts["executed_gflop"], 3)
        figures[f"{modality}: launches"] = counts["launches"]
        figures[f"{modality}: MB received"] = round(counts["received_mb"])
    assert rises(found, KEPT) == []
