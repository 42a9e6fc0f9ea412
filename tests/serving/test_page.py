"""The page of `rb demo` in a headless Chromium: boxes drawn by mouse and finger arrive within 1 px, a session by keyboard, nothing leaves the host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from rb.api import RegionBLIP
from rb.serving.adapters import Adapter
from tests.serving.conftest import picture
from tests.serving.pages import begin, boxes_of, captions, press, pressed_until, said, screenshot, waiting
from tests.serving.served import Served
from tests.support.browser import browser, console, open_page


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
    begin(driver, served)
    driver.find_element("id", "file").send_keys(str(photo))
    said(driver, "pixels")


def drag(driver, box: list[float], size: tuple[int, int], touch: bool = False) -> list[float]:
    """Draw a box of photo pixels with the mouse, or a finger. Returns what was drawn: both stop at whole pixels of the page."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    driver.execute_script("document.getElementById('boxes').scrollIntoView({block: 'center'})")
    place = driver.execute_script(
        "const r = document.getElementById('photo').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
    )
    at = [round(place[i % 2] + v * place[2 + i % 2] / size[i % 2]) for i, v in enumerate(box)]
    chain = ActionChains(driver, duration=0)
    if touch:
        chain.w3c_actions = ActionBuilder(driver, mouse=PointerInput("touch", "finger"), duration=0)
    pointer = chain.w3c_actions.pointer_action
    pointer.move_to_location(at[0], at[1])
    pointer.pointer_down()
    pointer.move_to_location(round((at[0] + at[2]) / 2), round((at[1] + at[3]) / 2))
    pointer.move_to_location(at[2], at[3])
    pointer.pointer_up()
    chain.perform()
    return [(v - place[i % 2]) * size[i % 2] / place[2 + i % 2] for i, v in enumerate(at)]


CASES = [  # photo, window, device pixels of a pixel of the page, touch
    ("landscape", (1280, 1000), 1, False),
    ("landscape", (853, 300), 1.5, False),  # a low window at 150 %: the page is scrolled to the photo
    ("portrait", (1000, 700), 2, False),
    ("turned", (390, 844), 2, True),
]


def test_boxes_by_mouse_and_finger(served: Served, photos: dict[str, Path], plain: RegionBLIP) -> None:
    with browser() as driver:
        for name, (width, height), ratio, touch in CASES:
            metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": touch}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
            opened(driver, served, photos[name])
            size = (640, 420) if name == "landscape" else (420, 640)
            wanted = [drag(driver, box, size, touch) for box in ([40, 50, 200, 220], [230, 240, 390, 400])]
            if height == 300:
                assert driver.execute_script("return scrollY") > 100
            found = boxes_of(driver)
            assert len(found) == 2, (name, width, found)
            assert np.abs(np.asarray(found) - np.asarray(wanted)).max() <= 1, (name, width, found, wanted)
            driver.find_element("id", "ask").click()
            said(driver, "captioned")
            expected = plain.caption(photos[name], found, box_format="pixels")
            assert [one.split() for one in captions(driver)] == [caption.split() for caption in expected]
            screenshot(driver, f"{name}_{width}")
        assert hosts(driver) == {urlsplit(served.url).netloc}
        assert console(driver) == []


def hosts(driver) -> set[str]:
    """Where the page loaded anything from."""
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    return {urlsplit(url).netloc for url in loaded if url.startswith("http")}


def test_a_session_by_keyboard(served: Served) -> None:
    with browser() as driver:
        begin(driver, served)
        pressed_until(driver, "TAB", "[data-example='scene_1.png']")
        press(driver, "ENTER")
        said(driver, "64 x 64 pixels")
        pressed_until(driver, "TAB", "#models input[value='again']")
        press(driver, "SPACE")
        pressed_until(driver, "SHIFT+TAB", "#add")
        press(driver, "ENTER")
        before = boxes_of(driver)[0]
        press(driver, "ARROW_RIGHT", "SHIFT+ARROW_DOWN")
        after = boxes_of(driver)[0]
        assert [round(b - a) for a, b in zip(before, after, strict=True)] == [1, 0, 1, 1]
        press(driver, "ENTER")
        said(driver, "captioned")
        assert all(captions(driver, column) for column in (2, 3, 4, 5))
        press(driver, "DELETE")
        assert boxes_of(driver) == []
        assert driver.execute_script("return document.activeElement.id") == "add"
        assert console(driver) == []


def test_the_address_and_the_saved_file(served: Served, tmp_path: Path) -> None:
    given = [[5.0, 5.0, 30.0, 30.5], [10.0, 20.0, 40.0, 60.0]]
    words = ";".join(",".join(map(str, box)) for box in given)
    with browser() as driver:
        driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        begin(driver, served, f"/#boxes={words}&models=tiny,crops&example=scene_1.png")
        said(driver, "scene_1.png")
        assert boxes_of(driver) == given
        driver.find_element("id", "ask").click()
        said(driver, "captioned")
        shown = [captions(driver, column) for column in (2, 3)]
        driver.find_element("id", "save").click()
        waiting(driver).until(lambda _: (tmp_path / "boxes.html").exists())
        assert console(driver) == []
        open_page(driver, tmp_path / "boxes.html")
        assert driver.execute_script("return document.querySelector('img').naturalWidth") == 64
        assert len(driver.find_elements("css selector", "svg g")) == 2
        kept = json.loads(driver.execute_script("return document.querySelector('script').textContent"))
        assert kept["file"] == "scene_1.png"
        assert [row["box"] for row in kept["boxes"]] == given
        for number, name in enumerate(("tiny", "crops")):
            said_there = [row["captions"][name]["caption"].split() for row in kept["boxes"]]
            assert said_there == [caption.split() for caption in shown[number]]
        assert [row.text.split()[0] for row in driver.find_elements("css selector", "tbody tr")] == ["1", "2"]
        assert hosts(driver) == set()
        assert console(driver) == []
        screenshot(driver, "saved")


def test_a_token_and_the_dark_theme(models: dict[str, Adapter]) -> None:
    served = Served(models, "open sesame", points=5000)
    try:
        with browser(390, 844) as driver:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            driver.get(served.url + "/")
            waiting(driver).until(lambda d: d.find_element("id", "login").is_displayed())
            driver.find_element("id", "token").send_keys("wrong")
            press(driver, "ENTER")
            said(driver, "authorization")
            driver.find_element("id", "token").clear()
            driver.find_element("id", "token").send_keys("open sesame")
            press(driver, "ENTER")
            waiting(driver).until(lambda d: d.find_elements("css selector", "#models input"))
            assert not driver.find_element("id", "login").is_displayed()
            driver.find_element("css selector", "[data-example='objects.npy']").click()
            said(driver, "points")
            driver.find_element("id", "add").click()
            driver.find_element("id", "ask").click()
            said(driver, "captioned")
            assert all(captions(driver))
            screenshot(driver, "dark")
            paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert max(map(int, re.findall(r"\d+", paper)[:3])) < 60
            assert all("401" in line for line in console(driver))
    finally:
        served.stop()
