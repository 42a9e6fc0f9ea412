"""A headless Chromium for tests of pages, driven by Selenium. Tests skip where there is none, unless RB_NEED_BROWSER says there must be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WANTED = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "chromedriver": ("chromedriver",)}


@contextmanager
def browser(width: int = 1280, height: int = 1000) -> Iterator:
    """A fresh browser, its console empty."""
    found = {name: next(filter(None, map(shutil.which, names)), None) for name, names in WANTED.items()}
    lacking = [name for name, path in found.items() if path is None]
    if lacking:
        reason = f"{' and '.join(lacking)} not found; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get("RB_NEED_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Root has no sandbox, containers have little shared memory; the pages are our own and load nothing.
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(options=options, service=Service(found["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver, path: Path) -> None:
    driver.get(path.resolve().as_uri())


def console(driver) -> list[str]:
    """What the page said on the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]
