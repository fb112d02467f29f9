"""Headless Chromium, as tests see a page: what stands there, what it asked the network for, what it complained of."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
PATIENCE = 60.0
"""Seconds that a page may take on a loaded machine; what is there sooner is seen sooner."""
DESKTOP = (1240, 1000)
PHONE = (390, 844)


class Browser:
    """A page in headless Chromium.

    Args:
        driver: Selenium's.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str, size: tuple[int, int] = DESKTOP, theme: str = "light") -> None:
        """Go there with a window of this many CSS pixels; up to a phone's width with a phone's touch screen."""
        self.driver.get("about:blank")  # the page before may go on asking a server that has gone
        self.complaints()
        is_phone = size[0] <= 600
        self._command(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=is_phone
        )
        self._command("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        self._command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.driver.get(address)

    def all(self, selector: str) -> list[WebElement]:
        """Elements that a CSS selector finds."""
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> WebElement:
        """The only element that a CSS selector finds, waited for."""
        self.until(lambda: len(self.all(selector)) == 1, f"one {selector}")
        return self.all(selector)[0]

    def shown(self, selector: str) -> list[WebElement]:
        """Those of them that one sees."""
        return [element for element in self.all(selector) if element.is_displayed()]

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Return when it holds.

        Raises:
            selenium.common.TimeoutException: it never did; the message says what did not come.
        """
        WebDriverWait(self.driver, PATIENCE, poll_frequency=0.1).until(lambda _: condition(), f"{what} did not come")

    def until_plots(self, number: int) -> None:
        """Return when so many plots are drawn."""
        self.until(lambda: len(self.all(".js-plotly-plot .plot-container")) == number, f"{number} plots")

    @contextmanager
    def frame(self, selector: str) -> Iterator[None]:
        """While this lasts, what is looked at is the page inside a frame."""
        self.driver.switch_to.frame(self.one(selector))
        try:
            yield
        finally:
            self.driver.switch_to.default_content()

    def complaints(self) -> list[str]:
        """What the console has said since it was last asked: a policy that was broken, a script that failed."""
        return [entry["message"] for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]

    def asked_for(self) -> list[str]:
        """Addresses that pages have asked the network for since this was last asked."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith(("data:", "blob:"))]

    def picture(self) -> bytes:
        """A screenshot of the window, as PNG."""
        return base64.b64decode(self._command("Page.captureScreenshot")["data"])

    def _command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)


def give_token(browser: Browser) -> None:
    """Answer the question with which Ray's dashboard begins, as the user whose token lies in the home folder."""
    browser.one("input[type=password]").send_keys((Path.home() / ".ray" / "auth_token").read_text().strip())
    next(button for button in browser.all("button") if button.text.lower() == "submit").click()
    browser.until(lambda: not browser.all("input[type=password]"), "the end of the question for a token")


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser of its own, with its profile in this folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--hide-scrollbars")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
