"""What the messages of `rb evaluate` and `rb reproduce` advise helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rb.core.config import RunConfig
from rb.core.run_file import dump_run
from rb.core.run_layout import RUN_CONFIG, RUN_END
from rb.jobs.plan import read_plan
from rb.jobs.reproduce import judge
from rb.jobs.results import Results
from rb.jobs.table import SCORED, Entry
from tests.support.remedies import Said, covers, helps, ran, remedy, typed

MODEL = {"base": "toy_opt"}
TASK = {"data": "somewhere", "modality": "image", "variants": ["base"]}
# (message, its way out) -> (fields of the plan before, fields that follow it).
PLANS: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("tasks: must name at least one; see docs/formats.md", "name"): ({"tasks": {}}, {"tasks": {"t": TASK}}),
    ("give either checkpoint, a trained model, or base, a run file", "base"): (
        {"models": {"a": {}}},
        {"models": {"a": MODEL}},
    ),
    ("give either checkpoint, a trained model, or base, a run file", "checkpoint"): (
        {"models": {"a": {}}},
        {"models": {"a": {"checkpoint": "run"}}},
    ),
    ("goes with checkpoint; give settings: [model.foundation.blip2=FOLDER]", "give"): (
        {"models": {"a": MODEL | {"foundation": "x"}}},
        {"models": {"a": MODEL | {"settings": ["model.foundation.blip2=x"]}}},
    ),
    ("is no model of the paper; give one of {}", "give"): (
        {"models": {"a": MODEL | {"paper": "OPT"}}},
        {"models": {"a": MODEL | {"paper": "OPT-2.7B"}}},
    ),
    ("metrics: {} is unknown; choose from {}", "choose"): ({"metrics": ["CIDer"]}, {"metrics": ["CIDEr"]}),
    ("two names give the same file name, or none ({}); rename one", "rename"): (
        {"models": {"a": MODEL, "A": MODEL}},
        {"models": {"a": MODEL, "b": MODEL}},
    ),
    ("{}.variants: {}; choose from {}", "choose"): (
        {"tasks": {"t": TASK | {"variants": ["mine"]}}},
        {"tasks": {"t": TASK | {"variants": ["ours"]}}},
    ),
    ("has no boxes to shuffle; leave {} out", "leave"): (
        {"tasks": {"t": TASK | {"variants": ["base", "shuffled"]}}},
        {"tasks": {"t": TASK}},
    ),
    ("{}.decoding: {}; choose {} or {}", "choose"): (
        {"tasks": {"t": TASK | {"decoding": "theirs"}}},
        {"tasks": {"t": TASK | {"decoding": "released"}}},
    ),
    ("{}.task: {}; choose from {}", "choose"): (
        {"tasks": {"t": TASK | {"task": "captions"}}},
        {"tasks": {"t": TASK | {"task": "caption"}}},
    ),
    ("{}.decoding: {} is of captions, not of {}; leave it out", "leave"): (
        {"tasks": {"t": TASK | {"task": "vqa", "decoding": "released"}}},
        {"tasks": {"t": TASK | {"task": "vqa"}}},
    ),
    ("needs trained heads; leave {} out", "leave"): (
        {"tasks": {"t": TASK | {"task": "retrieval", "variants": ["ours", "base"]}}},
        {"tasks": {"t": TASK | {"task": "retrieval", "variants": ["ours"]}}},
    ),
    ("classes and templates go with task: {}, not with {}; leave them out", "leave"): (
        {"tasks": {"t": TASK | {"templates": ["a {}"]}}},
        {"tasks": {"t": TASK}},
    ),
    ("goes with task: {}, and is at least 0; leave it out", "leave"): (
        {"tasks": {"t": TASK | {"top_k": 3}}},
        {"tasks": {"t": TASK}},
    ),
}
covers({says for says, _ in PLANS})


def written(folder: Path, **fields: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"models": {"a": MODEL}, "tasks": {"t": TASK}} | fields))
    return path


@pytest.mark.parametrize(("says", "way"), PLANS)
def test_a_plan(tmp_path: Path, says: str, way: str) -> None:
    before, advised = PLANS[says, way]
    plan = dict(before)
    helps(says, lambda: read_plan(written(tmp_path, **plan)), lambda _: plan.update(advised))


@remedy("has no cell {}; `rb evaluate --plan {} --list` shows its {}")
def test_a_cell_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan, only = read_plan(written(tmp_path)), ["b"]

    def follow(said: Said) -> None:
        ran(said.commands[0])
        only[0] = capsys.readouterr().out.split()[-1]

    return lambda: plan.chosen(only), follow


# Message -> options before, options that follow it; of a run that has ended without a checkpoint.
WATCHED = {
    "takes checkpoint after checkpoint; leave --only, --list and --jobs out": (
        ["--watch", "{}", "--out", "{}/out", "--jobs", "2"],
        ["--watch", "{}", "--out", "{}/out"],
    ),
    "none that a task's variants ask for; give one, or use --watch RUN_DIR": (
        ["--out", "{}/out"],
        ["--watch", "{}", "--out", "{}/out"],
    ),
    "--out: name the folder for predictions, scores and the table": (
        ["--watch", "{}"],
        ["--watch", "{}", "--out", "{}/out"],
    ),
    "no run folder; give one that rb train writes": (
        ["--watch", "{}/none", "--out", "{}/out"],
        ["--watch", "{}", "--out", "{}/out"],
    ),
}


@pytest.mark.parametrize("says", covers(WATCHED))
def test_options(tmp_path: Path, says: str) -> None:
    (tmp_path / RUN_CONFIG).write_text(dump_run(RunConfig()))
    (tmp_path / RUN_END).write_text("{}")
    plan = written(tmp_path, models={})
    before, after = ([word.format(tmp_path) for word in words] for words in WATCHED[says])
    options = [before]
    helps(says, lambda: _evaluate(plan, options[0]), lambda _: options.insert(0, after))


def _evaluate(plan: Path, options: list[str]) -> None:
    said = typed("evaluate", "--plan", plan, "--no-mlflow", *options)
    if "rb evaluate: error:" in said:
        raise ValueError(said)


@pytest.mark.parametrize("way", [{"expect": {"base": {"CIDEr": 50.0}}, "tolerance": {"CIDEr": 1.0}}, {"paper": "COCO"}])
@pytest.mark.parametrize("says", covers(["the plan expects nothing of this cell: give expect, or paper"]))
def test_nothing_is_expected(tmp_path: Path, says: str, way: dict[str, Any]) -> None:
    task = dict(TASK)

    def fault() -> str:
        plan = read_plan(written(tmp_path, tasks={"t": task}))
        found = {"scores": {"CIDEr": 0.5}, "num_examples": 3, "split": "test"}
        paper = {"CIDEr": 50.0} if "paper" in task else {}
        return "; ".join(judge(Results(plan, tmp_path), Entry(plan.cells[0], SCORED, "", found, paper), []).lines)

    helps(says, fault, lambda _: task.update(way))
