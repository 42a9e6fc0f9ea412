"""``rb bench step``: the baseline computes the losses and gradients of ours with more work, and the report adds up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rb.bench import step_counters, step_speed
from rb.bench.commands import run_step
from rb.bench.everything import table_of
from rb.bench.lavis_step import LavisStep
from rb.bench.step_speed import measure_all
from rb.bench.ways import ALSO, COMPILED, FEATURES, NO_ITM, OURS, Clock, ways_of
from rb.costs.random_models import SIZES, build_random
from rb.costs.real_step import with_numbers
from rb.costs.typical_batch import typical_batches
from rb.model.region_blip import RegionBLIP
from tests.support.raw_data import cli_run
from tests.support.remedies import Fault, Said, remedy

CPU = torch.device("cpu")


def models(name: str) -> tuple[RegionBLIP, LavisStep]:
    torch.manual_seed(0)
    ours, plain = (build_random(SIZES[name], CPU, torch.float32) for _ in range(2))
    for path, parameter in ours.trainable_parameters().items():
        if "lora_B" in path:  # zero at the start of a training: then LoRA would add nothing
            torch.nn.init.normal_(parameter, 0, 0.02)
    return ours, LavisStep(plain, ours)


@pytest.mark.parametrize("name", ["small_opt", "small_t5"])
def test_the_baseline_computes_what_ours_does(name: str) -> None:
    """Without it the comparison would mean nothing. Groups of 4: images, subjects and boxes are shared."""
    ours, baseline = models(name)
    for modality in ours.parts:
        for group in (1, 4):
            batch = with_numbers(next(typical_batches(ours, modality, 8, group)), ours)
            found, expected = ours(batch), baseline(batch)
            assert found.terms.keys() == expected.terms.keys()
            for term, value in expected.terms.items():
                torch.testing.assert_close(found.terms[term], value, rtol=1e-5, atol=1e-6)
            found.total.backward()
            expected.total.backward()
            theirs = baseline.model.trainable_parameters()
            for path, parameter in ours.trainable_parameters().items():
                if parameter.grad is None:
                    assert theirs[path].grad is None, path
                else:
                    torch.testing.assert_close(parameter.grad, theirs[path].grad, rtol=1e-3, atol=1e-6)
            ours.zero_grad()
            baseline.model.zero_grad()


def test_the_report_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--size", "small_opt", "--baseline", "--rounds", "1", "--group-by-source", "4", "--device", "cpu")
    words = (*words, "--also", "features", "no_itm")
    assert cli_run("bench", "step", *words, "--modality", "image_region", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    one = found["modalities"]["image_region"]
    assert (found["micro_batch"], found["group_by_source"], one["samples"]) == (8, 4, 8)
    assert one["sources"] < 8
    assert sum(part["executed_gflop"] for part in one["parts"].values()) == pytest.approx(one["executed_gflop"])
    assert sum(part["needed_gflop"] for part in one["parts"].values()) == pytest.approx(one["needed_gflop"])
    assert sum(part["launches"] for part in one["parts"].values()) == one["launches"]
    assert sum(part["ms"] for part in one["parts"].values()) == pytest.approx(one["ms"])  # one round
    assert {"encoder", "qformer", "itm", "llm", "backward", "optimizer"} <= one["parts"].keys()
    assert one["needed_gflop"] < one["executed_gflop"] < one["baseline"]["executed_gflop"]
    assert one["saved_mb"] < one["baseline"]["saved_mb"]
    assert one["host_waits"] == 0
    ratios = one["ratios"]
    assert ratios["executed_to_needed"] == pytest.approx(one["baseline"]["executed_gflop"] / one["needed_gflop"])
    assert ratios["time"] == pytest.approx(one["baseline"]["ms"] / one["ms"])
    assert one["samples_per_s"] == pytest.approx(8e3 / one["ms"])
    assert all(one[way]["needed_gflop"] < one["needed_gflop"] for way in ("features", "no_itm"))
    assert one["baseline"]["mfu"] == pytest.approx(one["mfu"] * one["ms"] / one["baseline"]["ms"])  # one round
    table = table_of({"step": {"found": found}})
    ways = ["ours", "from stored features", "without ITM", "LAVIS's"]
    assert [next(way for way in ways if way in line) for line in table[1:]] == ways
    assert cli_run("bench", "step", *words, "--modality", "point_cloud") == 0
    printed = capsys.readouterr().out
    assert "\n  features " in printed
    assert "\n  no_itm " in printed
    assert "baseline to ours: FLOPs" in printed
    assert "fps" in printed
    assert "\n  neighbours" in printed


@pytest.mark.parametrize("modality", ["image_region", "point_cloud_region"])
def test_from_features_and_without_itm(modality: str) -> None:
    """The same losses without the encoder's work; and all losses but ITM, without ITM's work."""
    model = build_random(SIZES["small_opt"], CPU, torch.float32)
    ways = ways_of(model, (FEATURES, NO_ITM))
    batch = with_numbers(next(typical_batches(model, modality, 4, 2)), model)
    batches = {name: way.batch_of(batch) for name, way in ways.items()}
    needs = {name: way.needed(batches[name]) for name, way in ways.items()}
    counts = {name: way.count(batches[name]) for name, way in ways.items()}
    assert needs[FEATURES] == needs[OURS] | {"encoder": 0.0}
    assert needs[NO_ITM] == {part: flops for part, flops in needs[OURS].items() if part != "itm"}
    assert counts[OURS]["encoder"].flops > 0
    assert "encoder" not in {part for part, one in counts[FEATURES].items() if one.flops}
    assert counts[FEATURES]["itm"].flops == counts[OURS]["itm"].flops > 0
    assert "itm" not in counts[NO_ITM]
    whole = model(batch)
    torch.testing.assert_close(model(batches[FEATURES]).total, whole.total)
    ways[NO_ITM].gradients(batch)
    assert model.parts[modality].itm_head.weight.grad is None
    assert "itm" in whole.terms, "the configuration is as before"


def test_a_compiled_step_beside_ours() -> None:
    """Graphs run in its turns alone, and what is counted is counted without them."""
    model = build_random(SIZES["small_opt"], CPU, torch.float32)
    batch = with_numbers(next(typical_batches(model, "image_region", 4, 1)), model)
    ran: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            ran.append(turn)
            return graph(*args)

        return run

    torch.compiler.reset()
    model.compile_parts(backend)
    ways = ways_of(model, (COMPILED,))
    assert list(ways) == [OURS, COMPILED]
    for turn in (COMPILED, OURS, COMPILED):
        ways[turn].take_turn(batch)
    assert ran == 2 * [COMPILED] * 4
    assert ways[COMPILED].count(batch) == ways[OURS].count(batch)
    assert ways[OURS].saved(batch) > 0
    assert ran == 2 * [COMPILED] * 4
    assert all(way.graphs for way in ways_of(model, ALSO, compiled=True).values())


def test_activation_checkpointing_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline keeps what LAVIS keeps. Points: of ITM neither copies nor keeps the keys and values of its positives again."""
    args: Any = SimpleNamespace(
        run_file=None, size="small_opt", modality=["point_cloud"], rounds=1, micro_batch=4, group_by_source=0
    )
    vars(args).update(device="cpu", baseline=True, also=[])
    off = measure_all(args)["json"]["modalities"]["point_cloud"]
    given = step_speed.build(args, CPU)
    train = replace(given[2], activation_checkpointing=True)
    monkeypatch.setattr(step_speed, "build", lambda *_: (*given[:2], train, *given[3:]))
    on = measure_all(args)["json"]["modalities"]["point_cloud"]
    assert on["saved_mb"] < off["saved_mb"] < 0.8 * off["baseline"]["saved_mb"]
    assert on["baseline"]["saved_mb"] == off["baseline"]["saved_mb"]


def test_a_clock_counts_inner_parts_once() -> None:
    clock = Clock(CPU)
    with clock.part("outer"):
        with clock.part("inner"):
            torch.randn(200, 200) @ torch.randn(200, 200)
        torch.randn(200, 200) @ torch.randn(200, 200)
    seconds = clock.seconds()
    assert set(seconds) == {"outer", "inner"}
    assert min(seconds.values()) >= 0


@remedy("counts the model of a run; give --run FILE")
def test_counters_need_a_run(monkeypatch: pytest.MonkeyPatch) -> tuple[Fault, Callable[[Said], object]]:
    args: Any = SimpleNamespace(counters=True, run_file=None)
    monkeypatch.setattr(step_counters, "run", lambda _: 0)
    return lambda: run_step(args), lambda _: vars(args).update(run_file="toy_opt")


@remedy("the model trains {}; name one of these")
def test_a_modality_that_the_model_does_not_train() -> tuple[Fault, Callable[[Said], object]]:
    args: Any = SimpleNamespace(
        run_file=None,
        size="small_opt",
        modality=["image"],
        rounds=1,
        micro_batch=2,
        group_by_source=0,
        device="cpu",
        baseline=False,
        also=[],
    )
    return lambda: measure_all(args), lambda said: vars(args).update(modality=[said.found("trains ([a-z_]+),")])
