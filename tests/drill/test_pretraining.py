"""The toy foundation's pre-training: every stage for two steps, export and scores, in the files that the package ships."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

import rb.toy
from rb.toy.pretraining import __main__ as pretrain
from rb.toy.pretraining.export import SPEAKING

SHIPPED = Path(rb.toy.__file__).parent / "foundation"


def test_every_stage_and_the_export(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pretrain, "STAGES", dict.fromkeys(pretrain.STAGES, (2, 130)))
    for stage in ("vision", "language", "points", "t5_language", "bridge", "settle", "speech", "t5_settle"):
        pretrain.run_stage(stage, tmp_path, 1.0)
    out = tmp_path / "out"
    tree = pretrain.finish(out, tmp_path, num_scenes=4)
    shipped = {path.relative_to(SHIPPED) for path in SHIPPED.rglob("*") if path.is_file() and path.name != "README.md"}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == shipped
    assert 0 <= tree["scores"]["true_whole"] <= 1
    assert 0 <= tree["t5_scores"]["true_whole"] <= 1
    trained = load_file(tmp_path / "t5_settle.safetensors")
    written = load_file(out / "blip2-t5" / SPEAKING)
    for name in ("language_model.lm_head.weight", "language_model.shared.weight", "language_projection.weight"):
        assert (written[name] == trained[name].half()).all(), name
