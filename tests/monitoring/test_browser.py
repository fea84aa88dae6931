"""The pages in a real browser, on a desktop and on a phone: Chromium without a screen, where it is installed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from picogpt.monitoring.dashboard import Dashboard
from picogpt.reports.page import write_page
from tests.reports.test_page import STATUS
from tests.support.logfiles import summary_of, write_log

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)
QUIET = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
PHONE, DESKTOP = 360, 1280
SAMPLE = "He is <b>bold</b> & \u202eturned around " + "w" * 200


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert CHROMIUM is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("browser")
    for word in ("headless", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}", *QUIET.split()):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.get("about:blank")  # and away from its page of news
    yield driver
    driver.quit()


@pytest.fixture
def show(browser: webdriver.Chrome) -> Callable[..., webdriver.Chrome]:
    """`show(url, width, dark)`: the browser with that page open."""

    def open(url: str, width: int = DESKTOP, dark: bool = False) -> webdriver.Chrome:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what was before
        browser.get(url)
        return browser

    return open


def wait(browser: webdriver.Chrome, script: str) -> None:
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script(f"return {script}"), script)


def requests(browser: webdriver.Chrome) -> set[str]:
    """Whom the page has asked: scheme and place of every address."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [it["params"]["request"]["url"] for it in messages if it["method"] == "Network.requestWillBeSent"]
    return {url[:5] if url.startswith("data:") else "{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in sent}


def overflow(browser: webdriver.Chrome) -> Any:
    """How far the page is wider than the screen, in pixels."""
    return browser.execute_script("return document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("count", [1, 3, 14])
def test_a_report_fits_the_screen_and_needs_nobody(
    tmp_path: Path, show: Callable[..., webdriver.Chrome], width: int, count: int
) -> None:
    name = "an experiment with a name that does not end before the screen of a phone does " if count == 3 else "run "
    runs = [summary_of(tmp_path / f"{name}{k}", [3.0, 2.5 + k / 9, 2.0], sample=SAMPLE, seed=k) for k in range(count)]
    write_page(runs, tmp_path / "report.html")
    page = show((tmp_path / "report.html").as_uri(), width)
    assert overflow(page) <= 0
    assert [section.text for section in page.find_elements(By.TAG_NAME, "h1")] and "<b>bold</b>" in page.find_element(
        By.TAG_NAME, "body"
    ).text
    assert not page.find_elements(By.CSS_SELECTOR, "pre b")
    page.execute_script("document.querySelectorAll('details').forEach((it) => { it.open = true; })")
    assert overflow(page) <= 0
    lines = page.find_elements(By.CSS_SELECTOR, ".plot polyline:not(.train):not(.end)")
    looks = {(line.value_of_css_property("stroke"), line.value_of_css_property("stroke-dasharray")) for line in lines}
    assert len(looks) == len(lines) == count
    assert page.get_log("browser") == []
    assert requests(page) <= {"file://", "data:"}


def test_a_report_is_dark_where_the_reader_is(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    write_page([summary_of(tmp_path / "run", [3.0, 2.0])], tmp_path / "report.html")
    shades = {}
    for dark in (False, True):
        page = show((tmp_path / "report.html").as_uri(), dark=dark)
        colours = [
            page.find_element(By.TAG_NAME, "body").value_of_css_property(it) for it in ("background-color", "color")
        ]
        shades[dark] = [sum(map(int, colour[5:].split(",")[:3])) for colour in colours]
    assert shades[False][0] > 600 > 150 > shades[False][1] and shades[True][0] < 150 < 600 < shades[True][1]


def test_the_live_page_follows_the_run_to_its_end(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    folder, said = write_log(tmp_path / "run", [3.0, 2.5], steps=1000).parent, list[str]()
    dashboard = Dashboard.open("0", folder, said.append)
    url = said[0].removeprefix("live page: ")
    try:
        page = show(url, PHONE)
        assert "Training begins" in page.find_element(By.ID, "live").text and overflow(page) <= 0
        page.find_element(By.TAG_NAME, "summary").click()
        page.execute_script("scrollTo(0, 300); window.seen = document.querySelector('#report section')")
        dashboard.send(STATUS)
        wait(page, "document.getElementById('live').textContent.includes('step 120 of 400')")
        at = page.execute_script("return seen.isConnected && scrollY")  # the report stays where nothing is new
        assert at >= 300  # and the reader stays with it, though what is above has grown
        write_log(folder, [3.0, 2.5, 2.25], steps=1000)
        wait(page, "document.querySelector('.big').textContent.includes('2.2500')")
        assert page.execute_script("return [scrollY, document.querySelector('details').open]") == [at, True]
        assert overflow(page) <= 0 and page.get_log("browser") == []
        assert requests(page) <= {url.removesuffix("/"), "data:"}
        assert not page.find_element(By.ID, "lost").is_displayed()
        dashboard.close()
        wait(page, "document.getElementById('live').textContent.includes('Training has stopped after step 120')")
    finally:
        dashboard.close()


def test_a_page_says_that_it_has_lost_the_run(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    said: list[str] = []
    dashboard = Dashboard.open("127.0.0.1:0", write_log(tmp_path / "run", [3.0]).parent, said.append)
    try:
        page = show(said[0].removeprefix("live page: "))
        dashboard._process.kill()
        wait(page, "!document.getElementById('lost').hidden")
        assert "No connection to the run" in page.find_element(By.ID, "lost").text
    finally:
        dashboard.close()
