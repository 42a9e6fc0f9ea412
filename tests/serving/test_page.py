"""The page of `rb demo` in a headless Chromium: boxes drawn by mouse arrive within 1 px, a session by keyboard, nothing leaves the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from rb.api import RegionBLIP
from rb.serving.adapters import Adapter
from tests.serving.conftest import picture
from tests.serving.served import Served
from tests.support.browser import browser, console


@pytest.fixture(scope="module")
def served(models: dict[str, Adapter]) -> Iterator[Served]:
    made = Served(models)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A landscape, a portrait, and a landscape that EXIF turns into a portrait."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in {"landscape": (640, 420), "portrait": (420, 640), "turned": (640, 420)}.items():
        exif = Image.Exif()
        if name == "turned":
            exif[0x0112] = 6
        picture(1, (64, 42)).resize(size).save(folder / f"{name}.jpg", exif=exif)
    return {path.stem: path for path in folder.iterdir()}


def opened(driver, served: Served, photo: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    driver.get(served.url + "/")
    wait = WebDriverWait(driver, 60)
    wait.until(lambda d: d.find_elements("css selector", "#models input"))
    driver.find_element("id", "file").send_keys(str(photo))
    wait.until(lambda d: "pixels" in d.find_element("id", "status").text)


def drawn(driver) -> list[list[float]]:
    words = driver.execute_script("return location.hash").removeprefix("#boxes=").split("&")[0]
    return [[float(v) for v in row.split(",")] for row in words.split(";") if row]


def drag(driver, box: list[float], size: tuple[int, int]) -> None:
    """Draw a box of photo pixels with the mouse."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    driver.execute_script("document.getElementById('boxes').scrollIntoView({block: 'center'})")
    place = driver.execute_script(
        "const r = document.getElementById('photo').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
    )
    at = [place[i % 2] + v * place[2 + i % 2] / size[i % 2] for i, v in enumerate(box)]
    chain = ActionChains(driver, duration=0)
    builder: ActionBuilder = chain.w3c_actions
    mouse = builder.pointer_action
    mouse.move_to_location(round(at[0]), round(at[1]))
    mouse.pointer_down()
    mouse.move_to_location(round((at[0] + at[2]) / 2), round((at[1] + at[3]) / 2))
    mouse.move_to_location(round(at[2]), round(at[3]))
    mouse.pointer_up()
    chain.perform()


CASES = [
    ("landscape", (1280, 1000), 1),
    ("portrait", (1000, 700), 2),
    ("turned", (1280, 1000), 1),
    ("turned", (390, 844), 2),
]


def test_boxes_by_mouse(served: Served, photos: dict[str, Path], plain: RegionBLIP) -> None:
    with browser() as driver:
        for name, (width, height), ratio in CASES:
            metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            opened(driver, served, photos[name])
            size = (640, 420) if name == "landscape" else (420, 640)
            wanted = [[40, 50, 200, 220], [230, 240, 390, 400]]
            for box in wanted:
                drag(driver, box, size)
            unit = driver.execute_script(
                "const p = document.getElementById('photo'); return p.naturalWidth / p.getBoundingClientRect().width"
            )
            found = drawn(driver)
            assert len(found) == 2, (name, width, found)
            for box, got in zip(wanted, found, strict=True):
                # The mouse stops at whole pixels of the page, which are `unit` pixels of the photo.
                assert max(abs(a - b) for a, b in zip(box, got, strict=True)) <= max(1, 0.51 * unit + 0.1), (
                    name,
                    width,
                    got,
                )
            driver.find_element("id", "ask").click()
            from selenium.webdriver.support.wait import WebDriverWait

            WebDriverWait(driver, 120).until(lambda d: "captioned" in d.find_element("id", "status").text)
            cells = [row.text for row in driver.find_elements("css selector", "#rows tr td:nth-child(2)")]
            expected = plain.caption(photos[name], found, box_format="pixels")
            assert [cell.split("\n")[0].split() for cell in cells] == [caption.split() for caption in expected]
            if folder := os.environ.get("RB_SCREENSHOTS"):
                driver.save_screenshot(f"{folder}/{name}_{width}_{ratio}.png")
        loaded = driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        hosts = {urlsplit(url).netloc for url in loaded if url.startswith("http")}
        assert hosts == {urlsplit(served.url).netloc}
        assert console(driver) == []


def test_a_session_by_keyboard(served: Served, photos: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    with browser() as driver:
        opened(driver, served, photos["landscape"])
        driver.find_element("id", "add").send_keys(Keys.ENTER)
        before = drawn(driver)[0]
        driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        driver.switch_to.active_element.send_keys(Keys.SHIFT + Keys.ARROW_DOWN + Keys.NULL)
        after = drawn(driver)[0]
        assert [round(b - a) for a, b in zip(before, after, strict=True)] == [6, 0, 6, 6]
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        WebDriverWait(driver, 120).until(lambda d: "captioned" in d.find_element("id", "status").text)
        driver.switch_to.active_element.send_keys(Keys.DELETE)
        assert drawn(driver) == []
        assert driver.execute_script("return document.activeElement.id") == "add"
        assert console(driver) == []
