"""Headless Chromium for the tests of pages."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
SIZES = {"desk": (1280, 900), "phone": (390, 844)}

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium or no chromedriver: apt-get install chromium chromium-driver",
)


@contextmanager
def open_browser(profile: Path, size: str = "desk") -> Iterator[webdriver.Chrome]:
    """A browser of a size of SIZES, with a profile of its own, that keeps what the console says."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    width, height = SIZES[size]
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}"),
        f"--window-size={width},{height}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        # a headless window is not narrower than 500 pixels, the page in it can be
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.set_script_timeout(30)
        yield driver
    finally:
        driver.quit()


def errors(driver: webdriver.Chrome) -> list[str]:
    """The errors that the console has shown since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def requests(driver: webdriver.Chrome) -> set[str]:
    """Addresses in networks that pages have asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    found = {event["params"].get("request", {}).get("url", "") for event in events}
    return {address for address in found if address.startswith(("http:", "https:", "ws"))}


def press(driver: webdriver.Chrome, selector: str, place: int = 0) -> None:
    """Click on an element, as soon as it is there and nothing lies over it."""

    def clicked(_: webdriver.Chrome) -> bool:
        driver.find_elements(By.CSS_SELECTOR, selector)[place].click()
        return True

    WebDriverWait(driver, 30, 0.1, ignored_exceptions=(WebDriverException, IndexError)).until(
        clicked, f"{selector} cannot be clicked"
    )


def drop(driver: webdriver.Chrome, selector: str, path: Path) -> None:
    """Let an image file fall on an element, as a person does who drags it there."""
    driver.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[1]), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], arguments[2], { type: "image/png" }));
        const target = document.querySelector(arguments[0]);
        for (const kind of ["dragenter", "dragover", "drop"])
          target.dispatchEvent(
            new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }),
          );
        """,
        *(selector, base64.b64encode(path.read_bytes()).decode(), path.name),
    )


def wait(driver: webdriver.Chrome, script: str, seconds: float = 30) -> None:
    """Wait until the value of a JavaScript expression is true."""
    message = f"{script} is still false after {seconds} s"
    WebDriverWait(driver, seconds, 0.05).until(
        lambda _: driver.execute_script(f"return Boolean({script})"), message
    )


def screenshot(driver: webdriver.Chrome, path: Path) -> None:
    """The whole page, not only what is in the window."""
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    taken = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    path.write_bytes(base64.b64decode(taken["data"]))
