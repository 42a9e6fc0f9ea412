"""The contrastive batch is part of a run: a resume keeps it, on other ranks and micro-batches too, and runs of before have theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rb.core.config import RunConfig
from rb.core.run_file import load_run, to_tree
from rb.core.run_layout import RUN_CONFIG, RUN_ENVIRONMENT
from rb.training.run_folder import check_same_run

IDENTITIES = {"foundation": {"blip2": "f" * 64}, "data": {}}


def run_folder(folder: Path, environment: object, **train: object) -> Path:
    """A run of 16 samples a step in micro-batches of 4, as a version without the field wrote it, or with it where it is given."""
    tree = to_tree(RunConfig())
    tree["train"] |= {"global_batch_size": 16, "micro_batch_size": 4}
    del tree["train"]["contrastive_batch_size"]
    tree["train"] |= train
    (folder / RUN_CONFIG).write_text(yaml.safe_dump(tree))
    if environment is not None:
        (folder / RUN_ENVIRONMENT).write_text(environment if isinstance(environment, str) else json.dumps(environment))
    return folder


def meta_of(folder: Path, ranks: int) -> dict[str, object]:
    """The record of its checkpoint."""
    config = yaml.safe_load((folder / RUN_CONFIG).read_text())
    return {"config": config, "identities": IDENTITIES, "num_ranks": ranks}


def resumed(folder: Path, *overrides: str) -> RunConfig:
    return load_run(folder / RUN_CONFIG, overrides)


def pool(config: RunConfig, ranks: int) -> int:
    return config.train.layout(ranks).pool_size


def test_a_run_of_before_has_the_pool_of_its_ranks_and_keeps_it_on_others(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"ranks": 2})
    for ranks, micro in ((1, 4), (2, 4), (4, 4), (8, 2), (1, 8)):
        config = resumed(folder, f"train.micro_batch_size={micro}")
        assert pool(config, ranks) == 8
        check_same_run(meta_of(folder, ranks=2), to_tree(config), IDENTITIES)


def test_what_a_later_resume_recorded_counts_more_than_its_ranks(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"ranks": 4, "contrastive_batch_size": 8})
    assert pool(resumed(folder), 4) == 8
    assert pool(load_run(folder / RUN_CONFIG, ["train.contrastive_batch_size=4"]), 1) == 4


@pytest.mark.parametrize("environment", [None, "{", "[]", '{"ranks": "two"}', '{"ranks": 0}'])
def test_without_a_record_of_ranks_the_field_has_its_default(tmp_path: Path, environment: str | None) -> None:
    assert pool(resumed(run_folder(tmp_path, environment)), 1) == 16


def test_a_field_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    assert pool(resumed(run_folder(tmp_path, {"ranks": 1}, contrastive_batch_size=None)), 1) == 16
    assert pool(resumed(run_folder(tmp_path, {"ranks": 2}, contrastive_batch_size=4)), 1) == 4


def test_a_resume_that_would_change_the_pool_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"ranks": 2})
    said = r"train\.contrastive_batch_size: 8 -> 16.*Undo the change, or start a new run with init_from"
    for asked in ("16", "null"):
        with pytest.raises(ValueError, match=said):
            changed = resumed(folder, f"train.contrastive_batch_size={asked}")
            check_same_run(meta_of(folder, ranks=2), to_tree(changed), IDENTITIES)
    # The remedy: what was there, said by name.
    check_same_run(meta_of(folder, 2), to_tree(resumed(folder, "train.contrastive_batch_size=8")), IDENTITIES)


def test_the_default_and_the_global_batch_are_one_pool(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"ranks": 1}, contrastive_batch_size=None)
    check_same_run(meta_of(folder, 1), to_tree(resumed(folder, "train.contrastive_batch_size=16")), IDENTITIES)
    with pytest.raises(ValueError, match=r"contrastive_batch_size: 16 -> 8"):
        check_same_run(meta_of(folder, 1), to_tree(resumed(folder, "train.contrastive_batch_size=8")), IDENTITIES)


def test_negatives_of_the_own_micro_batch_bind_the_micro_batch(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"ranks": 2})
    local = meta_of(folder, 2)
    local["config"]["model"]["itm_negatives"] = "local"  # type: ignore[index]
    with pytest.raises(ValueError, match=r"train\.micro_batch_size: 4 -> 2"):
        changed = resumed(folder, "train.micro_batch_size=2", "model.itm_negatives=local")
        check_same_run(local, to_tree(changed), IDENTITIES)
