"""The report and the comparison in a real headless browser: opened, clicked, dragged; no error, no request, under 10 MB."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eval import compare as compare_command
from rb.data.formats import ObjectAnnotation, Prediction, Record, write_predictions
from rb.data.index import ManifestReader
from rb.data.shard_writer import ShardWriter
from rb.evaluation.scoring import score_file
from rb.pages.report import build_report
from rb.pages.show_data import show_data
from rb.sources.points import encode_points
from rb.tracking import Tracker
from tests.support.browser import browser, console, open_page

SOURCES = 16
WORDS = ("red cube", "blue ball", "green cone", "small ring")
MOST_BYTES = 10_000_000


def photo(seed: int) -> bytes:
    """An image as large and as rough as a photograph, so that the page's size says something."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    image = Image.blend(coarse, fine, 0.15)
    ImageDraw.Draw(image).ellipse([200, 150, 330, 280], fill=(200, 30, 30))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def room(seed: int) -> np.ndarray:
    """A floor of 4 m and a block on it, 20,000 points."""
    rng = np.random.default_rng(seed)
    floor = np.c_[rng.uniform(-2, 2, (10_000, 2)), np.zeros(10_000)]
    block = rng.uniform([0.2, 0.2, 0.0], [1.0, 1.0, 0.8], (10_000, 3))
    return rng.permutation(np.r_[floor, block]).astype(np.float32)


def write_set(folder: Path, modality: str) -> None:
    image, regional = modality.startswith("image"), modality.endswith("region")
    box = [200.0, 150.0, 330.0, 280.0] if image else [0.203125, 0.203125, -0.001953, 1.015625, 1.015625, 0.806641]
    with ShardWriter(folder, "small", modality, "test") as writer:
        for i in range(SOURCES):
            said = [WORDS[i % len(WORDS)], f"a {WORDS[i % len(WORDS)]}"]
            objects = [ObjectAnnotation("o", box, said)] if regional else []
            size = (640, 480) if image else (0, 0)
            record = Record(f"{modality}/{i}", "small", "test", *size, [] if regional else said, objects)
            writer.write(record, *((photo(i), "jpg") if image else (encode_points(room(i)), "points.npy")))


def predict(run: Path, name: str, data: Path, right: Callable[[int], bool], **meta: object) -> None:
    reader = ManifestReader(data)
    examples = [reader.example(n) for n in range(reader.num_examples)]
    rows = [
        Prediction(
            loaded.id,
            loaded.record.source_id,
            loaded.item.object_id if loaded.item else None,
            reader.manifest.modality,
            loaded.record.dataset,
            loaded.record.split,
            loaded.references[0] if right(n) else "no idea",
            list(loaded.references),
            list(loaded.item.box) if loaded.item else None,
        )
        for n, loaded in enumerate(examples)
    ]
    made = {"variant": "checkpoint", "checkpoint": {"run": str(run), "name": "step_0000100", "step": 100}}
    made |= {
        "data": str(data),
        "manifest_digest": reader.digest,
        "decoding": {"num_beams": 5},
        "reference_policy": "all",
    }
    write_predictions(run / "predictions" / f"{name}.jsonl", rows, made | meta)
    score_file(run / "predictions" / f"{name}.jsonl", use_java=False, use_mlflow=False, metrics=("CIDEr",))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    run = root / "runs" / "small"
    with Tracker(run, mlflow=False) as tracker:
        for step in range(10, 2000, 10):
            tracker.metrics(step, {"train/image_region/loss_itc": 5 / step, "train/lr": 1e-4})
            if step % 100 == 0:
                tracker.metrics(step, {"val/image_region/loss_itc": 6 / step, "val/image_region/CIDEr": step / 500})
    for modality in ("image", "image_region", "point_cloud", "point_cloud_region"):
        write_set(root / modality, modality)
        predict(run, modality, root / modality, lambda n: n % 2 == 0)
    predict(run, "base", root / "image_region", lambda n: n == 0, variant="base", checkpoint=None)
    return run


@pytest.fixture(scope="module")
def driver() -> Iterator:
    with browser() as one:
        yield one


def shown_ids(group) -> list[str]:
    return [
        card.find_element("css selector", ".id").text
        for card in group.find_elements("css selector", ".card:not([hidden])")
    ]


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def click(driver, element) -> None:
    """A real click, away from the navigation that stays at the top."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def ink(driver, canvas) -> bytes:
    """The canvas's pixels, once it was drawn."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    assert until(lambda: "drawn" in (canvas.get_attribute("class") or "")), "the cloud was not drawn"
    return driver.execute_script("return arguments[0].toDataURL()", canvas).encode()


def groups_of(driver) -> dict[str, object]:
    found = driver.find_elements("css selector", ".group")
    return {group.find_element("css selector", "h3").text.split(" · ")[0]: group for group in found}


def test_the_report_is_clicked_and_turned(run_dir: Path, driver) -> None:
    from selenium.webdriver import ActionChains

    page = build_report(run_dir)
    assert page.stat().st_size < MOST_BYTES
    open_page(driver, page)
    groups = groups_of(driver)
    assert list(groups) == ["image", "image region", "point cloud", "point cloud region"]

    # A cloud with its box: drawn, turned by the mouse, turned back by a double click, its box hidden and shown.
    canvas = groups["point cloud region"].find_element("css selector", "canvas")
    first = ink(driver, canvas)
    ActionChains(driver).drag_and_drop_by_offset(canvas, 60, 25).perform()
    turned = ink(driver, canvas)
    assert turned != first
    ActionChains(driver).move_to_element(canvas).move_by_offset(5, 5).perform()
    assert ink(driver, canvas) == turned, "a cloud that is not held must not turn"

    def turned_back() -> bool:
        # On a busy machine two clicks may come too slowly to be a double one; alone they change nothing.
        ActionChains(driver).double_click(canvas).perform()
        return ink(driver, canvas) == first

    assert until(turned_back)
    boxes = groups["point cloud region"].find_element("css selector", ".boxes input")
    click(driver, boxes)
    without = ink(driver, canvas)
    assert without != first
    click(driver, boxes)
    assert ink(driver, canvas) == first

    # An image's box lies over it and can be hidden.
    rectangle = groups["image region"].find_element("css selector", "rect.over")
    assert rectangle.is_displayed()
    click(driver, groups["image region"].find_element("css selector", ".boxes input"))
    assert not rectangle.is_displayed()
    assert not groups["image"].find_elements("css selector", "rect, .boxes")

    # A curve tells its values.
    chart = driver.find_element("css selector", ".chart svg")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(driver).move_to_element(chart).perform()
    assert "step" in driver.find_element("css selector", ".tip").text
    assert console(driver) == []
    assert (
        driver.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        )
        == 0
    )


def test_the_switch_shows_best_worst_and_random_ones(run_dir: Path, driver) -> None:
    open_page(driver, build_report(run_dir, examples=6))
    group = groups_of(driver)["image region"]
    random = shown_ids(group)
    assert len(random) == 6
    texts = {}
    for name in ("Best", "Worst", "Random"):
        click(driver, group.find_element("xpath", f".//button[.='{name}']"))
        texts[name] = (shown_ids(group), group.find_element("css selector", ".which").text)
        assert [b.text for b in group.find_elements("css selector", "[aria-pressed=true]")] == [name]
    number = {view: [int(i.split("/")[1].split("#")[0]) for i in ids] for view, (ids, _) in texts.items()}
    assert len(number["Best"]) == len(number["Worst"]) == 6
    assert all(n % 2 == 0 for n in number["Best"])  # those that were said right
    assert all(n % 2 == 1 for n in number["Worst"])
    assert texts["Random"][0] == random
    assert "best by the CIDEr of RegionBLIP, step 100" in texts["Best"][1].replace("the best", "best")
    # After and before training stand on one card.
    card = group.find_element("css selector", ".card:not([hidden])").text
    assert "after · RegionBLIP, step 100" in card
    assert "before · base" in card
    assert "no predictions of the untrained model" in groups_of(driver)["point cloud region"].text
    assert console(driver) == []


def test_the_comparison_is_clicked_and_turned(run_dir: Path, driver) -> None:
    from selenium.webdriver import ActionChains

    other, page = run_dir.with_name("other"), run_dir.with_name("compared") / "page.html"
    for modality in ("image_region", "point_cloud_region"):
        predict(other, modality, run_dir.parents[1] / modality, lambda n: n % 4 < 2)
    arguments = [str(run_dir), str(other), "--no-java", "--paper", "--html", str(page)]
    assert compare_command.main(arguments) == 0
    assert page.stat().st_size < MOST_BYTES
    open_page(driver, page)
    regions, rooms = driver.find_elements("css selector", ".group")
    gained = shown_ids(regions)
    click(driver, regions.find_element("xpath", ".//button[.='Lost']"))
    lost = shown_ids(regions)
    assert {int(i.split("/")[1].split("#")[0]) % 4 for i in gained} == {1}  # wrong in the first, right in the other
    assert {int(i.split("/")[1].split("#")[0]) % 4 for i in lost} == {2}
    assert len(regions.find_elements("css selector", ".card:not([hidden]) rect.over")) == len(lost)
    canvas = rooms.find_element("css selector", ".card:not([hidden]) canvas")
    first = ink(driver, canvas)
    ActionChains(driver).drag_and_drop_by_offset(canvas, -50, 10).perform()
    assert ink(driver, canvas) != first
    papers = [cell.text for cell in driver.find_elements("css selector", "td.paper")]
    assert "63.5" in papers
    assert "57.0" in papers
    assert console(driver) == []


def test_on_a_phone_pages_are_short_and_no_word_is_broken(run_dir: Path, driver) -> None:
    page, data = build_report(run_dir), run_dir / "data.html"
    show_data(run_dir.parents[1] / "point_cloud_region", data)
    for width, longest in ((390, 9_000), (1280, 14_000)):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            for one in (page, data):
                open_page(driver, one)
                wide, high = (
                    driver.execute_script(f"return document.documentElement.scroll{d}") for d in ("Width", "Height")
                )
                assert wide <= width
                assert high < longest
                assert driver.execute_script(BROKEN_WORDS) == []
        finally:
            driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert console(driver) == []


# Words in the small lines of cards that stand on more than one line.
BROKEN_WORDS = """
const broken = [];
for (const line of document.querySelectorAll(".card:not([hidden]) .who span")) {
  const text = line.firstChild;
  if (!text) continue;
  for (const found of text.data.matchAll(/\\S+/g)) {
    const range = document.createRange();
    range.setStart(text, found.index); range.setEnd(text, found.index + found[0].length);
    if (range.getClientRects().length > 1) broken.push(found[0]);
  }
}
return broken;
"""
