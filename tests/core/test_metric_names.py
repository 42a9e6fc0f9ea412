"""Names of metrics: what is built is read back, and no other file builds or takes apart a name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rb.core.metric_names import (
    EVAL,
    SPEED,
    TRAIN,
    VAL,
    MetricName,
    evaluation_name,
    loss_name,
    parse_name,
    shown_values,
    value_name,
)

ROOT = Path(__file__).resolve().parents[2]
BUILT = {
    "train/lr": (value_name(TRAIN, "lr"), MetricName(TRAIN, "lr")),
    "train/image_region/loss_itc": (
        loss_name(TRAIN, "image_region", "itc"),
        MetricName(TRAIN, "loss_itc", "image_region"),
    ),
    "train/point_cloud/samples_per_s": (
        value_name(TRAIN, SPEED, "point_cloud"),
        MetricName(TRAIN, SPEED, "point_cloud"),
    ),
    "val/point_cloud/CIDEr": (value_name(VAL, "CIDEr", "point_cloud"), MetricName(VAL, "CIDEr", "point_cloud")),
    "eval/refcoco+/val/BLEU-4": (
        evaluation_name("refcoco+", "val", "BLEU-4"),
        MetricName(EVAL, "BLEU-4", "refcoco+/val"),
    ),
    "eval/refcoco/test/crops/CIDEr": (
        evaluation_name("refcoco", "test", "crops/CIDEr"),
        MetricName(EVAL, "CIDEr", "refcoco/test/crops"),
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_name_is_built_and_read_back(name: str) -> None:
    built, parts = BUILT[name]
    assert built == name == str(parts)
    assert parse_name(name) == parts


def test_a_loss_term_is_known_by_its_name() -> None:
    terms = {name: parts.term for name, (_, parts) in BUILT.items()}
    assert {name: term for name, term in terms.items() if term} == {"train/image_region/loss_itc": "itc"}
    assert MetricName(EVAL, "loss_itc", "refcoco/test").term is None


@pytest.mark.parametrize(
    "name", ["lr", "train", "train/", "val/CIDEr", "train/a/b/c", "eval/CIDEr", "eval/a/CIDEr", "bad/nan", ""]
)
def test_names_of_another_form_are_nothing(name: str) -> None:
    assert parse_name(name) is None


def test_a_log_line_leaves_out_the_stage() -> None:
    assert shown_values({"train/lr": 1e-4, "train/image/loss_itc": 2.0}) == "lr=0.0001 image/loss_itc=2"


def test_one_file_knows_how_names_are_made() -> None:
    made = re.compile(r"""["'](train|val|eval)/(\{|[a-z_]+["'/])""")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "rb").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if made.search(line) and path.name != "metric_names.py"
    ]
    assert not found, f"build these names in rb/core/metric_names.py: {found}"
