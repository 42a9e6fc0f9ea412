"""Clouds on the page of `rb demo` in a headless Chromium: a click picks an object, handles shape its box, the cloud turns; all by keyboard too."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from rb.api import RegionBLIP
from rb.serving.adapters import Adapter
from tests.serving.pages import begin, boxes_of, captions, press, pressed_until, said, screenshot
from tests.serving.served import Served
from tests.serving.test_examples import room
from tests.support.browser import browser, console

TURN, TILT = -0.35, 0.65  # of the first view of a room
ROOM = room()
LOW, HIGH = ROOM.points.min(axis=0), ROOM.points.max(axis=0)
RADIUS = float(np.linalg.norm(HIGH - LOW)) / 2


@pytest.fixture(scope="module")
def served(models: dict[str, Adapter]) -> Iterator[Served]:
    made = Served(models, points=5000)
    yield made
    made.stop()


def opened(driver, served: Served) -> None:
    begin(driver, served)
    driver.find_element("css selector", "[data-example='room.npy']").click()
    said(driver, "points")


class View:
    """Where points are on the page, reckoned here by itself from the picture's place and the angles."""

    def __init__(self, driver, turn: float = TURN, tilt: float = TILT) -> None:
        driver.execute_script("document.getElementById('cloud').scrollIntoView({block: 'center'})")
        self.x, self.y, self.w, self.h = driver.execute_script(
            "const r = document.getElementById('cloud').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
        )
        self.scale = min(self.w, self.h) * 0.48 / RADIUS
        self.turn, self.tilt = turn, tilt

    def __call__(self, point: np.ndarray) -> tuple[float, float]:
        x, y, z = point - (LOW + HIGH) / 2
        right = math.cos(self.turn) * x - math.sin(self.turn) * y
        near = -math.cos(self.turn) * y - math.sin(self.turn) * x
        up = math.cos(self.tilt) * z - math.sin(self.tilt) * near
        return self.x + self.w / 2 + right * self.scale, self.y + self.h / 2 - up * self.scale


def mouse(driver, *places: tuple[float, float]) -> None:
    """Press at the first place, move over the others, release at the last."""
    from selenium.webdriver.common.action_chains import ActionChains

    chain = ActionChains(driver, duration=0)
    pointer = chain.w3c_actions.pointer_action
    for number, (x, y) in enumerate(places):
        pointer.move_to_location(round(x), round(y))
        if number == 0:
            pointer.pointer_down()
    pointer.pointer_up()
    chain.perform()


def centre(box: list[float]) -> np.ndarray:
    return (np.asarray(box[:3]) + np.asarray(box[3:])) / 2


def test_a_click_picks_an_object_and_handles_shape_its_box(served: Served, plain: RegionBLIP) -> None:
    with browser() as driver:
        opened(driver, served)
        # From above no object hides another.
        driver.find_element("id", "boxes3").click()
        press(driver, *["ARROW_UP"] * 10)
        above = View(driver, tilt=math.pi / 2)
        truth = []
        for number in range(len(ROOM.objects)):
            own = ROOM.points[ROOM.instances == 2 + number]
            truth.append([*own.min(axis=0), *own.max(axis=0)])
            mouse(driver, above(centre(truth[-1])))
        found = boxes_of(driver)
        assert np.abs(np.asarray(found) - np.asarray(truth)).max() < 0.01 * RADIUS
        screenshot(driver, "room_above")
        driver.find_element("id", "ask").click()
        said(driver, "captioned")
        expected = plain.caption_points(ROOM.points, found)
        assert [caption.split() for caption in captions(driver)] == [caption.split() for caption in expected]

        driver.execute_script("document.getElementById('boxes3').focus()")
        press(driver, "HOME")
        view = View(driver)
        low, high = np.asarray(found[-1][:3]), np.asarray(found[-1][3:])
        top = view(np.array([*centre(found[-1])[:2], high[2]]))
        mouse(driver, top, (top[0] + 3, top[1] + 15), (top[0], top[1] + 20))
        shaped = boxes_of(driver)[-1]
        assert abs(shaped[5] - high[2] + 20 / (math.cos(TILT) * view.scale)) < 0.01 * RADIUS
        assert shaped[:5] == found[-1][:5]

        empty = (view.x + 30, view.y + 30)  # the cloud turns by 0.01 a pixel
        mouse(driver, empty, (empty[0] + 60, empty[1]), (empty[0] + 100, empty[1] + 20))
        turned = View(driver, TURN + 1.0, TILT + 0.2)
        at = np.array([(low[0] + high[0]) / 2, high[1], (shaped[2] + shaped[5]) / 2])
        place, aim = turned(at), turned(at + np.array([0, 0.3, 0]))
        mouse(driver, place, aim)
        moved = boxes_of(driver)[-1]
        assert abs(moved[4] - high[1] - 0.3) < 0.01 * RADIUS
        assert moved[:4] + moved[5:] == shaped[:4] + shaped[5:]
        screenshot(driver, "room_turned")
        assert console(driver) == []


def test_objects_of_other_rooms(served: Served) -> None:
    """docs/serving.md says how many boxes of 20 rooms are right; here are eight of them."""
    rooms = [room(index) for index in range(8)]
    with browser() as driver:
        driver.get(served.url + "/")
        found = driver.execute_async_script(
            "const [rooms, done] = arguments; import('/page/objects.js').then((made) => "
            "done(rooms.map((points) => made.objects(Float32Array.from(points), 2).boxes)))",
            [one.points.ravel().tolist() for one in rooms],
        )
    errors = []
    for one, boxes in zip(rooms, found, strict=True):
        radius = np.linalg.norm(one.points.max(axis=0) - one.points.min(axis=0)) / 2
        for number in range(len(one.objects)):
            own = one.points[one.instances == 2 + number]
            true = np.concatenate([own.min(axis=0), own.max(axis=0)])
            errors.append(min(np.abs(np.asarray(box) - true).max() for box in boxes) / radius)
    assert np.mean(np.asarray(errors) < 0.01) > 0.7
    assert np.mean(np.asarray(errors) < 0.015) > 0.95


def test_a_cloud_by_keyboard(served: Served) -> None:
    with browser() as driver:
        begin(driver, served)
        pressed_until(driver, "TAB", "[data-example='room.npy']")
        press(driver, "ENTER")
        said(driver, "points")
        pressed_until(driver, "SHIFT+TAB", "#add")
        press(driver, "ENTER")
        box = boxes_of(driver)[0]
        press(driver, "ARROW_LEFT", "+", "-")
        pressed_until(driver, "TAB", "[data-side='5']")
        press(driver, "ARROW_DOWN", "ARROW_DOWN")
        shaped = boxes_of(driver)[0]
        assert shaped[:5] == box[:5]
        assert abs(shaped[5] - box[5] + 0.02 * RADIUS) < 0.002
        pressed_until(driver, "SHIFT+TAB", "[data-box='0']")
        press(driver, "ENTER")
        said(driver, "captioned")
        assert all(captions(driver))
        press(driver, "DELETE")
        assert boxes_of(driver) == []
        assert driver.execute_script("return document.activeElement.id") == "add"
        assert console(driver) == []
