"""Steps of the browser tests of the page: open it, press keys, wait for what it says, read boxes and captions."""

from __future__ import annotations

import os

from tests.serving.served import Served


def waiting(driver):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(driver, 60)


def begin(driver, served: Served, address: str = "/") -> None:
    driver.get("about:blank")  # an address that differs in its end only would not be loaded again
    driver.get(served.url + address)
    waiting(driver).until(lambda d: d.find_elements("css selector", "#models input"))


def said(driver, words: str) -> str:
    """Wait until the page says so."""
    waiting(driver).until(lambda d: words in d.find_element("id", "status").text)
    return driver.find_element("id", "status").text


def press(driver, *names: str) -> None:
    """Keys by Selenium's names, or a sign; ``SHIFT+TAB`` together. They go to whatever has the focus."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for name in names:
        *held, last = name.split("+") if len(name) > 1 else [name]
        chain = ActionChains(driver)
        for key in held:
            chain.key_down(getattr(Keys, key))
        chain.send_keys(getattr(Keys, last, last))
        for key in held:
            chain.key_up(getattr(Keys, key))
        chain.perform()


def pressed_until(driver, name: str, selector: str) -> None:
    """Press a key until an element has the focus; 60 times at most."""
    for _ in range(60):
        if driver.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return
        press(driver, name)
    raise AssertionError(f"{selector} is not reached by {name}")


def boxes_of(driver) -> list[list[float]]:
    """The boxes as the page's address holds them."""
    words = driver.execute_script("return location.hash").removeprefix("#boxes=").split("&")[0]
    return [[float(v) for v in row.split(",")] for row in words.split(";") if row]


def captions(driver, column: int = 2) -> list[str]:
    cells = driver.find_elements("css selector", f"#rows tr td:nth-child({column})")
    return [cell.text.split("\n")[0] for cell in cells]


def screenshot(driver, name: str) -> None:
    """Keep the picture where RB_SCREENSHOTS names a folder."""
    if folder := os.environ.get("RB_SCREENSHOTS"):
        driver.save_screenshot(f"{folder}/{name}.png")
