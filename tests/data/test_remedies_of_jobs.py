"""What the messages about predictions and loader processes advise helps."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from torch.utils.data import get_worker_info

from rb.data import loading
from rb.data.loading import Batches
from rb.data.predictions import predictions_meta_path, read_predictions, write_predictions
from tests.data import test_loading
from tests.data.test_formats import rows
from tests.support.remedies import Said, covers, helps, remedy


def edited(lines: list[str], number: int, **values: object) -> list[str]:
    return [json.dumps({**json.loads(line), **values}) if i == number else line for i, line in enumerate(lines)]


AGAIN, LINE, ONE, META = "predict again", "repair the line", "remove one", "delete the meta file"
# Message -> (what is done to the lines, the ways out that it names; "predict again": what prediction wrote is written again).
PREDICTIONS = {
    "{}; predict again, or repair the line": (lambda x: edited(x, 1, references="a"), (AGAIN, LINE)),
    "does not belong to its source and object ({}); repair the line": (lambda x: edited(x, 2, id="s2"), (LINE,)),
    "every example has one row: remove one, or predict again": (lambda x: [*x, x[1]], (ONE, AGAIN)),
    "ids are missing or were added; {}": (lambda x: x[:-1], (AGAIN,)),
    "(one is missing, another was added); {}": (lambda x: edited(x, 1, id="z#o", source_id="z"), (AGAIN,)),
    "was changed after its meta file was written; {}, or delete the meta file": (
        lambda x: edited(x, 1, prediction="better"),
        (AGAIN, META),
    ),
}
covers(PREDICTIONS, also=["predict again (a partial or mixed file gives wrong scores)"])


@pytest.mark.parametrize(("says", "way"), [(says, way) for says, (_, ways) in PREDICTIONS.items() for way in ways])
def test_predictions_are_mended_as_it_is_said(tmp_path: Path, says: str, way: str) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, rows(), {})
    whole = path.read_text().splitlines()
    path.write_text("\n".join(PREDICTIONS[says][0](whole)) + "\n")

    def follow(said: Said) -> None:
        assert way in said
        if way == AGAIN:
            write_predictions(path, rows(), {})
        elif way == META:
            predictions_meta_path(path).unlink()
        else:  # the line that the message names
            number = int(said.found(r"line (\d+)"))
            lines = path.read_text().splitlines()
            lines[number - 1 : number] = whole[number - 1 : number]
            path.write_text("\n".join(lines) + "\n")

    helps(says, lambda: read_predictions(path), follow)


@remedy("must be a JSON object; predict again, or delete it to score the rows without it")
def test_a_meta_file_of_something_else(tmp_path: Path):
    write_predictions(tmp_path / "a.jsonl", rows(), {})
    predictions_meta_path(tmp_path / "a.jsonl").write_text("[]")
    return lambda: read_predictions(tmp_path / "a.jsonl"), lambda _: predictions_meta_path(
        tmp_path / "a.jsonl"
    ).unlink()


class Items(test_loading.Items):
    """Its fault is that of a loader process: this one reads well, and a patient one too."""

    def __getitem__(self, item: int) -> object:
        inside = get_worker_info() is not None and item == 1
        if inside and self.fault == "slow":
            time.sleep(1.5)
        if inside and self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return test_loading.Item(*vars(test_loading.Items.__getitem__(test_loading.Items(), item)).values())


LOADER = {
    "a loader process ended ({})": ("dies", r"\((data.num_workers), --workers\)", {"workers": 0}),
    "reading is too slow, or a process is stuck": ("slow", r"raise (train.timeout_s)", {"timeout": 60}),
}


@pytest.mark.parametrize("says", covers(LOADER))
def test_loader_processes_that_die_or_are_slow(says: str) -> None:
    fault, option, advised = LOADER[says]
    settings = {"workers": 1, "timeout": 1}

    def read() -> None:
        list(
            Batches(Items(fault), range(3), settings["workers"], False, settings["timeout"] if fault == "slow" else 60)
        )

    helps(says, read, lambda said: said.found(option) and settings.update(advised))


@remedy("give the container more (docker run --shm-size=8g, or --ipc=host)")
def test_little_shared_memory(monkeypatch):
    monkeypatch.setattr(loading, "size", lambda: (3_000_000, 3_000_000))
    workers = [2]
    read = lambda: list(Batches(test_loading.Items(), range(2), workers[0], False))  # noqa: E731
    return read, lambda said: workers.append(workers.pop() and 1) if "use fewer loader processes" in said else None
