"""The pictures of the docs, taken anew in headless Chromium (Debian's chromium and chromium-driver).

    python docs/screenshots.py RUN             report.png, watch.png, watch-phone.png, judge.png of a finished run
    python docs/screenshots.py RUN --dashboard http://127.0.0.1:8265     metrics-tab.png and overview.png, while it runs

Write elsewhere with --out. The second asks for nothing: it gives the dashboard the token of this user.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.judge.server import open_judge
from sweeps.report.page import write_report
from sweeps.results.results import read_results
from sweeps.watch.server import open_page
from tests.sweeps.browser import PHONE, Browser, chromium, give_token

WIDE = (1240, 1180)
TAB = (1400, 1000)
SMALL = (1000, 700)


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--dashboard")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        if asked.dashboard:
            dashboard(browser, asked.dashboard, asked.out)
        else:
            pages(browser, asked.run, asked.out)


def pages(browser: Browser, run_dir: Path, out: Path) -> None:
    """The report as a file, the live page on a desktop and on a phone, at the slider's first step, and the judge's."""
    browser.open(write_report(run_dir).as_uri(), WIDE)
    drawn(browser)
    save(browser, out / "report.png")
    server = open_page(run_dir, port=0)
    server.start()
    for name, size, part in (
        ("watch.png", WIDE, "#trade-off"),
        ("watch-pictures.png", WIDE, "#pictures"),
        ("watch-phone.png", PHONE, None),
    ):
        browser.open(server.page_address, size)
        drawn(browser)
        if part is not None:
            browser.run("document.querySelector(arguments[0]).scrollIntoView()", part)
        until_pictures(browser)
        save(browser, out / name)
    server.close()
    judge = open_judge(read_results(run_dir), port=0)
    judge.start()
    browser.open(judge.page_address, SMALL)
    until_pictures(browser)
    save(browser, out / "judge.png")
    judge.close()


def dashboard(browser: Browser, address: str, out: Path) -> None:
    """Ray's dashboard: its Metrics tab and its Overview."""
    browser.open(address, TAB)
    give_token(browser)
    browser.open(f"{address}/#/metrics", TAB)
    with browser.frame("iframe[title='Core Dashboard']"):
        drawn(browser)
        until_pictures(browser)
    save(browser, out / "metrics-tab.png")
    browser.open(f"{address}/#/overview", TAB)
    for title in ("Node Count", "Cluster Utilization"):
        with browser.frame(f"iframe[title='{title}']"):
            browser.until(lambda: browser.one("body").text, title)
            until_pictures(browser)
    save(browser, out / "overview.png")


def drawn(browser: Browser) -> None:
    """Return when every plot of the page is there."""
    browser.until_plots(len(browser.all("[data-figure]")))


def until_pictures(browser: Browser) -> None:
    """Return when every picture in sight has come."""
    missing = (
        "return [...document.images].filter((i) => !i.naturalWidth && i.getBoundingClientRect().top < innerHeight"
        " && i.getBoundingClientRect().bottom > 0 && i.checkVisibility()).length"
    )
    browser.until(lambda: browser.run(missing) == 0, "the pictures")


def save(browser: Browser, path: Path) -> None:
    """A screenshot."""
    Image.open(io.BytesIO(browser.picture())).convert("RGB").save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
