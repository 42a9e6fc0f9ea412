"""The report: one page that loads nothing, shows what the run folder holds, and says what is missing."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report import main
from rb.data.formats import Prediction, write_predictions
from rb.data.index import ManifestReader
from rb.drawing.curves import Series, chart, label, smooth, thin, ticks
from rb.drawing.page import esc, json_script, page
from rb.drawing.pictures import MAX_CLOUD_POINTS, cloud_canvas, image_with_box
from rb.evaluation.scoring import score_file
from rb.pages.report import build_report
from rb.pages.report_scores import _full_table
from rb.tracking import Tracker
from rb.tracking.bad_steps import BadStep, RankLosses
from tests.support import small_data
from tests.support.page_rules import check_page

TERMS = ("itc", "itm", "itg", "llm", "total")
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and (not kind or kind in (a.get("class") or "").split())]


def predict(run_dir: Path, name: str, shards: Path, caption: str | None = None, **meta: object) -> Path:
    """Predictions on all examples of a manifest: each its first reference, or ``caption``."""
    reader = ManifestReader(shards)
    examples = [reader.example(i) for i in range(reader.num_examples)]
    modality = reader.manifest.modality
    rows = [
        Prediction(
            id=e.id,
            source_id=e.record.source_id,
            object_id=e.item.object_id if e.item else None,
            modality=modality,
            dataset=reader.manifest.name,
            split=reader.manifest.split,
            prediction=e.references[0] if caption is None else caption,
            references=list(e.references),
            box=e.item.box if e.item else None,
        )
        for e in examples
    ]
    path = run_dir / "predictions" / f"{name}.jsonl"
    made = {"data": str(reader.path), "manifest_digest": reader.digest, "modality": modality, "variant": "checkpoint"}
    decoding = {"num_beams": 5, "min_new_tokens": 1, "max_new_tokens": 30}
    checkpoint = {"run": str(run_dir), "name": "step_0000100", "step": 100}
    policy = {"reference_policy": "all sentences", "decoding": decoding, "checkpoint": checkpoint}
    write_predictions(path, rows, {**made, **policy, **meta})
    return path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every modality predicted and scored; read-only for tests."""
    root = tmp_path_factory.mktemp("report")
    run_dir = root / "runs" / "small"
    with Tracker(run_dir, mlflow=False) as tracker:
        tracker.params({"train": {"schedule": "weighted_round_robin", "global_batch_size": 32}})
        tracker.tags({"git_commit": "c" * 40, "config_digest": "d" * 64, "trainable_parameters.image_region": 5585799})
        tracker.tags({"foundation.blip2": "e" * 64})
        tracker.inputs([("small", "f" * 64, "/data/small/manifest.json")])
        for step in range(10, 1010, 10):
            values = {
                f"train/{m}/loss_{t}": 3 / step + i
                for m in ("image_region", "point_cloud")
                for i, t in enumerate(TERMS)
            }
            tracker.metrics(
                step, values | {"train/image_region/loss_reg": 1 / step, "train/lr": 1e-4, "train/grad_norm": math.nan}
            )
    (run_dir / "config.yaml").write_text("name: small\nnote: <b>& tea</b>\n")
    for modality in ("image", "image_region", "point_cloud", "point_cloud_region"):
        small_data.write_set(root / modality, modality, 5, split="val")
        predict(run_dir, modality, root / modality)
    predict(
        run_dir, "crops", root / "image_region", "green <script>alert(1)</script>", variant="crops", checkpoint=None
    )
    for path in sorted((run_dir / "predictions").glob("*.jsonl")):
        score_file(path, use_java=False, use_mlflow=False, metrics=("CIDEr", "SPICE", "BLEU-4", "ROUGE_L"))
    build_report(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Page:
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def test_page_loads_nothing_and_runs_no_text_of_others(run_dir: Path, report: Page) -> None:
    for tag, attributes in report.tags:
        assert tag not in ("link", "iframe", "img", "object", "base"), tag
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<b>& tea</b>" not in text
    assert "green <script>alert(1)</script>" in report.text  # shown as what it is: text
    assert len(text) < 10_000_000


def test_the_report_keeps_the_rules_of_pages(run_dir: Path, report: Page) -> None:
    check_page((run_dir / "report.html").read_text(encoding="utf-8"))
    assert "SPICE" not in [text.strip() for text in report.words]  # skipped everywhere: no column of dashes
    assert report.text.count("step") > len(report.all("figure"))


def test_controls_stand_below_the_model_and_only_the_better_one_is_marked() -> None:
    whole = {
        "modality": "image_region",
        "dataset": "toy",
        "split": "test",
        "variant": "checkpoint",
        "checkpoint": {"run": "r", "name": "step_0000001", "step": 1},
        "scores": {"CIDEr": 0.5, "BLEU-4": 0.2},
        "num_examples": 10,
        "set_sha256": "b" * 64,
        "tokeniser": "ptb",
        "decoding": {"num_beams": 5},
    }
    control = {"variant": "shuffled", "num_examples": 9, "set_sha256": "a" * 64, "left_out": {"no other box": 1}}
    html = _full_table([whole | control | {"scores": {"CIDEr": 0.1, "BLEU-4": 0.2}}, whole])
    assert html.index("RegionBLIP</span>") < html.index("RegionBLIP, boxes shuffled</span>")
    assert "step 1; 9 captions" in html
    assert html.count('class="set"') == 1
    assert html.count('class="n best"') == 1
    assert '<td class="n best">50.0</td>' in html


def test_identity_and_scores(run_dir: Path, report: Page) -> None:
    for fact in (
        "small",
        "finished",
        "weighted_round_robin",
        "5,585,799",
        "cccccccccccc",
        "dddddddddddd",
        "ffffffffffff",
    ):
        assert fact in report.text
    metrics = json.loads((run_dir / "metrics" / "image_region.json").read_text())
    for name in ("CIDEr", "BLEU-4", "ROUGE_L"):
        assert f"{100 * metrics['scores'][name]:.1f}" in report.text
    for part in ("beam 5, 1-30 tokens", "reference policy: all sentences", "RegionBLIP", "base on crops", "step 100"):
        assert part in report.text
    assert "skipped SPICE" in report.text


def test_a_panel_per_term_and_a_curve_per_modality(report: Page, run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    panels = dict(re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", text, re.DOTALL))
    assert {f"loss {t}" for t in (*TERMS, "reg")} | {"learning rate", "gradient norm"} == set(panels)
    data = {name: re.search(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) for name, html in panels.items()}
    itc = json.loads(data["loss itc"][1])  # type: ignore[index]
    assert [s["name"] for s in itc["series"]] == ["image region", "point cloud"]
    assert [len(s["points"]) for s in itc["series"]] == [100, 100]
    assert itc["x"] == [10, 1000]
    assert panels["loss itc"].count("<polyline") == 4  # values and their smoothed line
    assert [s["name"] for s in json.loads(data["loss reg"][1])["series"]] == ["image region"]  # type: ignore[index]
    assert "no finite values" in panels["gradient norm"]


def test_gallery_shows_boxes_clouds_and_all_predictions(report: Page) -> None:
    # 5 images, 7 regions of 5 images, 5 clouds, 7 regions of clouds
    assert len(report.all("article", "card")) == 24
    images = [a["href"] or "" for a in report.all("image")]
    assert len(images) == 12
    assert all(base64.b64decode(a.split(",", 1)[1]).startswith(b"\xff\xd8") for a in images)
    boxes = report.all("rect", "over")
    assert len(boxes) == 7
    places = {(b["x"], b["y"], b["width"], b["height"]) for b in boxes}
    assert places == {("2", "1", "7.5", "7"), ("3", "2", "7.5", "7")}
    clouds = report.all("canvas", "cloud")
    assert [a["data-up"] for a in clouds] == ["y"] * 5 + ["z"] * 7
    assert [a.get("data-box") is not None for a in clouds] == [False] * 5 + [True] * 7
    assert report.text.count("RegionBLIP, step 100") == 24
    assert "red cube 0 0" in report.text
    assert "image_region/0.x#o0" in report.text


def test_cloud_keeps_its_shape() -> None:
    points = small_data.cloud(0, 5000)
    box = [*points[:, :3].min(0).tolist(), *points[:, :3].max(0).tolist()]
    page_ = Page(cloud_canvas(points, box))
    (canvas,) = page_.all("canvas")
    drawn = np.frombuffer(base64.b64decode(canvas["data-points"] or ""), "<i2").reshape(-1, 3) / 32767
    assert len(drawn) == MAX_CLOUD_POINTS
    ends = np.array(json.loads(canvas["data-box"] or ""))
    # Up to a shift and one scale the same points: the first and last are always drawn, the box in the same frame.
    scale = np.linalg.norm(drawn[-1] - drawn[0]) / np.linalg.norm(points[-1] - points[0])
    np.testing.assert_allclose(drawn[-1] - drawn[0], (points[-1] - points[0]) * scale, atol=1e-3)
    np.testing.assert_allclose(ends[:3] - drawn[0], (np.array(box[:3]) - points[0]) * scale, atol=1e-3)
    assert "data-colours" not in canvas
    (coloured,) = Page(cloud_canvas(np.c_[points[:2], [[0.0, 0.5, 1.0]] * 2])).all("canvas")
    assert list(base64.b64decode(coloured["data-colours"] or ""))[:3] == [0, 127, 255]


def test_large_images_shrink_and_boxes_stay_in_place() -> None:
    (drawing,) = Page(image_with_box(Image.new("RGB", (1600, 1200)), [100, 200, 300, 500])).all("svg")
    assert drawing["viewbox"] == "0 0 1600 1200"
    html = image_with_box(Image.new("RGB", (1600, 1200)), [100, 200, 300, 500])
    assert 'x="100" y="200" width="200" height="300"' in html
    assert len(html) < 20_000


def test_missing_or_changed_data_is_said(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    small_data.write_set(tmp_path / "set", "image", 5, split="val")
    predict(other, "gone", tmp_path / "set", data=str(tmp_path / "nowhere" / "manifest.json"))
    text = Page(build_report(other).read_text(encoding="utf-8")).text
    assert text.count("no picture available") == 5
    assert "The pictures cannot be read" in text
    predict(other, "gone", tmp_path / "set", manifest_digest="0" * 64)
    assert "is not what it was" in build_report(other).read_text(encoding="utf-8")
    with (other / "predictions" / "gone.jsonl").open("a") as file:
        file.write("not json\n")
    text = Page(build_report(other).read_text(encoding="utf-8")).text
    assert "gone.jsonl is left out" in text
    assert "no metrics" in text


def test_files_in_another_order_find_their_pictures(tmp_path: Path) -> None:
    small_data.write_set(tmp_path / "set", "image_region", 5, split="val")
    path = predict(tmp_path / "run", "mixed", tmp_path / "set")
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    meta = path.with_suffix(".meta.json")
    meta.write_text(json.dumps({k: v for k, v in json.loads(meta.read_text()).items() if k != "file_sha256"}))
    page_ = Page(build_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert len(page_.all("image")) == len(page_.all("article", "card")) == 7


def test_broken_scores_and_journal_are_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Tracker(run, mlflow=False) as tracker:
        tracker.metrics(1, {"train/image_region/loss_itc": 1.0})
        tracker.bad_step(
            BadStep(
                2, "image_region", (RankLosses({"llm": 1.0}, ["a"], [0]), RankLosses({"llm": math.nan}, ["b"], [1]))
            )
        )
    with (run / "journal.jsonl").open("a") as file:
        file.write("garbage\n")
    (run / "metrics").mkdir()
    (run / "metrics" / "x.json").write_text("{}")
    text = Page(build_report(run).read_text(encoding="utf-8")).text
    assert "not a journal row" in text
    assert "x.json" in text
    assert "loss itc" in text
    assert "2 image region llm 1 2" in text  # the skipped step: its term, the rank, the samples


def test_command_line(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "give a run folder" in capsys.readouterr().err
    assert main([str(run_dir), "--examples", "2"]) == 0
    cards = Page((run_dir / "report.html").read_text(encoding="utf-8")).all("article", "card")
    assert [len([c for c in cards if f"data-{view}" in c]) for view in ("random", "best", "worst")] == [8, 8, 8]
    assert all(("hidden" in c) == ("data-random" not in c) for c in cards)
    assert main([str(run_dir)]) == 0


def test_curves() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3.0, 3.0) == [3.0]
    assert [label(v) for v in (0, 0.25, 1500, 20000, 2e6, 3e-5)] == ["0", "0.25", "1500", "20k", "2e6", "3e-5"]
    long = [(float(i), float(i % 7)) for i in range(100_000)]
    assert len(thin(long)) == 300
    assert thin([(1.0, math.nan), (2.0, 5.0)]) == [(2.0, 5.0)]
    assert [y for _, y in smooth([(float(i), 4.0) for i in range(50)])] == pytest.approx([4.0] * 50)
    noisy = [(float(i), float((-1) ** i)) for i in range(200)]
    assert max(abs(y) for _, y in smooth(noisy)[10:-10]) < 0.5
    assert len(chart("long", "loss", [Series("a", "c0", [(i, 1.0 * i) for i in range(100_000)])])) < 20_000
    Page(chart("one point <", "<", [Series("a", "c0", [(5, 2.0)])]))
    Page(chart("nothing", "loss", []))


def test_texts_cannot_leave_their_place() -> None:
    nasty = "</script><script>alert('x')</script>\"'&"
    Page(page(nasty, esc(nasty) + json_script({"a": nasty})))
    assert "<script>alert" not in page(nasty, esc(nasty) + json_script({"a": nasty}))


def test_a_run_whose_process_died_is_shown_as_killed_and_a_live_one_as_running(tmp_path: Path) -> None:
    with Tracker(tmp_path / "alive", mlflow=False) as tracker:
        tracker.metrics(1, {"train/lr": 1e-4})
        (tmp_path / "dead").mkdir()
        (tmp_path / "dead" / "journal.jsonl").write_bytes((tmp_path / "alive" / "journal.jsonl").read_bytes())
        for name, status in (("alive", "running"), ("dead", "killed")):
            assert re.search(rf'class="pill[^>]*>{status}<', build_report(tmp_path / name).read_text())
