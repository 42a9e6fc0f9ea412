"""What the messages of `rb ablate` about a plan advise helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rb.ablate.runs import _check_same
from rb.core.config import RunConfig
from rb.core.run_file import dump_run
from rb.core.run_layout import RUN_CONFIG
from tests.ablate.test_reach import files, written  # noqa: F401 (a fixture)
from tests.support.remedies import Said, covers, helps

IMAGE = {"image": {"data": "x", "shuffle_boxes": True}}
REGION = {"image_region": {"data": "somewhere"}}
REACH = "add them to overrides, or leave reach out"
# (message, its way out) -> (fields of the plan before, fields that follow it).
PLANS: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("must name at least one modality, and seeds one seed; see docs/formats.md", "name"): (
        {"evaluate": {}},
        {"evaluate": REGION},
    ),
    ("this modality has no boxes; leave it out", "leave"): (
        {
            "evaluate": IMAGE | REGION,
            "overrides": [
                "train.max_steps=40",
                "validation.every=10",
                "model.train_modalities=[image, image_region]",
                "data.val.image=[{manifest: x}]",
            ],
        },
        {"evaluate": {"image": {"data": "x"}} | REGION},
    ),
    ("give train.max_steps, so that all variants are as long", "give"): (
        {"overrides": ["validation.every=10"], "variants": {"one": None}},
        {"overrides": ["validation.every=10", "train.max_steps=40"]},
    ),
    (REACH, "add"): (
        {"overrides": ["train.max_steps=40"]},
        {"overrides": ["train.max_steps=40", "validation.every=10"]},
    ),
    (REACH, "leave"): ({"overrides": ["train.max_steps=40"]}, {"reach": None}),
}
covers({says for says, _ in PLANS})


@pytest.mark.parametrize(("says", "way"), PLANS)
def test_a_plan(files: tuple[Path, dict], says: str, way: str) -> None:  # noqa: F811
    path, tree = files
    before, advised = PLANS[says, way]
    plan = tree | before
    helps(says, lambda: written(path, {k: v for k, v in plan.items() if v is not None}), lambda _: plan.update(advised))


OTHER = "holds a run of another configuration than the plan's; give a new --out, or remove that folder"


@pytest.mark.parametrize("way", ["give", "remove"])
@pytest.mark.parametrize("says", covers([OTHER]))
def test_a_run_of_another_configuration(tmp_path: Path, says: str, way: str) -> None:
    """What stands in the way is one folder's run file; where it is gone, or elsewhere, the training starts."""
    out = [tmp_path / "out"]
    out[0].mkdir()
    (out[0] / RUN_CONFIG).write_text(dump_run(RunConfig(seed=1)))

    def check() -> None:
        if (out[0] / RUN_CONFIG).is_file():  # as `rb ablate` asks first
            _check_same(out[0], RunConfig())

    def follow(said: Said) -> None:
        if way == "give":
            out[0] = tmp_path / "new"
        else:
            (Path(said.found(r"^(\S+): holds")) / RUN_CONFIG).unlink()

    helps(says, check, follow)
