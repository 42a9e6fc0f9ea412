"""The table of loss terms; and what docs/extending.md says of a new one: two places, nothing else, and no existing run changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rb.core.config import FoundationConfig, ModelConfig, RunConfig, ValidationConfig
from rb.core.loss_terms import LOSS_TERMS, LossTerm
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.core.run_file import load_run, to_tree
from rb.model.encoded import Encoded
from rb.model.loss_terms import FUNCTIONS
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from rb.training.run_folder import check_same_run
from tests.support import tiny

RUN_FILES = sorted((Path(__file__).resolve().parents[2] / "launch" / "runs").glob("*.yaml"))
IDENTITIES = {"foundation": {"blip2": "f" * 64}, "data": {}}


def test_every_row_has_its_function() -> None:
    assert FUNCTIONS.keys() == LOSS_TERMS.keys()
    assert list(FUNCTIONS) == list(LOSS_TERMS)


def test_terms_of_a_modality() -> None:
    config = ModelConfig(itm_modalities=(POINT_CLOUD,), loss_weights={"itg": 0.0})
    assert config.terms_of(IMAGE_REGION) == ("itc", "llm", "reg")
    assert config.terms_of(POINT_CLOUD) == ("itc", "itm", "llm")


def test_a_modality_that_no_weighted_term_reaches_is_refused() -> None:
    only_reg = dict.fromkeys(LOSS_TERMS, 0.0) | {"reg": 1.0}
    with pytest.raises(ValueError, match=r"model\.loss_weights: .*\(reg\) applies to point_cloud; .*train_modalities"):
        ModelConfig(loss_weights=only_reg, train_modalities=(IMAGE_REGION, POINT_CLOUD))
    assert ModelConfig(loss_weights=only_reg, train_modalities=(IMAGE_REGION,)).terms_of(IMAGE_REGION) == ("reg",)


# -- a new term -------------------------------------------------------------------------------------------------------


def add_spread(patch: pytest.MonkeyPatch) -> None:
    """The two places of a new term: its row and its function."""

    def spread(encoded: Encoded) -> Tensor:
        """Mean cosine of different queries' outputs: low where the queries see different things."""
        queries = F.normalize(encoded.query_output.float(), dim=-1)  # [B, Q, D]
        cosines = queries @ queries.transpose(1, 2)  # [B, Q, Q]
        return (cosines.mean(dim=(1, 2)) - 1 / queries.shape[1]).mean()

    patch.setitem(LOSS_TERMS, "spread", LossTerm("spread", "queries that see different things", 0.0))
    patch.setitem(FUNCTIONS, "spread", spread)


def losses_of(model: RegionBLIP, config: ModelConfig) -> dict[str, Tensor]:
    found = model(tiny.make_batch(IMAGE_REGION, text_processor(config), range(4)))
    return {name: value.detach() for name, value in (found.terms | {"total": found.total}).items()}


def test_existing_run_files_and_runs_stay_as_they_are(
    foundation: FoundationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RB_WEIGHTS", "/nowhere")
    monkeypatch.setenv("RB_DATA", "/nowhere")

    def terms() -> list[tuple[str, ...]]:
        configs = [load_run(path).model for path in RUN_FILES]
        return [config.terms_of(modality) for config in configs for modality in config.train_modalities]

    before, config = terms(), tiny.model_config(foundation)
    run = RunConfig(model=config)
    meta, losses = {"config": to_tree(run), "identities": IDENTITIES}, losses_of(build_model(config, 0).model, config)
    add_spread(monkeypatch)
    assert len(before) > len(RUN_FILES)
    assert terms() == before
    config = tiny.model_config(foundation, loss_weights={"llm": 1.0})  # a file that lists weights, but not this one
    again = losses_of(build_model(config, 0).model, config)
    assert again.keys() == losses.keys()
    assert all(torch.equal(value, again[name]) for name, value in losses.items())
    check_same_run(meta, to_tree(RunConfig(model=config)), IDENTITIES)
    asked = RunConfig(model=tiny.model_config(foundation, loss_weights={"spread": 1.0}))
    with pytest.raises(ValueError, match=r"model\.loss_weights\.spread: 0\.0 -> 1\.0"):
        check_same_run(meta, to_tree(asked), IDENTITIES)


def test_a_new_term_trains_when_asked(foundation: FoundationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    add_spread(monkeypatch)
    config = tiny.model_config(foundation, loss_weights=dict.fromkeys(LOSS_TERMS, 0.0) | {"spread": 2.0})
    assert config.terms_of(POINT_CLOUD) == ("spread",)
    model, rows = build_model(config, 0).model, []
    batch = tiny.make_batch(IMAGE_REGION, text_processor(config), range(4))
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        found = model(batch)
        assert torch.equal(found.total, 2.0 * found.terms["spread"])
        found.total.backward()
        optimizer.step()
        rows.append(float(found.total.detach()))
    assert rows[-1] < rows[0] - 0.05
    ValidationConfig(every=1, keep_best=f"val/{IMAGE_REGION}/loss_spread").check_keep_best(config, (IMAGE_REGION,))
