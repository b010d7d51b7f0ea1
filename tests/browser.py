"""Headless Chromium, driven over the WebDriver protocol by Debian's chromium-driver; without it tests are skipped."""

from __future__ import annotations

import base64
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, serving


ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Key of an element's reference in the WebDriver protocol."""

DEVICES: dict[str, dict] = {
    "desktop": {},
    "telephone": {"mobileEmulation": {"deviceMetrics": {"width": 390, "height": 844, "pixelRatio": 2}}},
}
"""Options of the browser, whose window is that of a desktop."""
BESIDE = """
const scrolls = one => one.scrollWidth > one.clientWidth + 1
    && ["auto", "scroll"].includes(getComputedStyle(one).overflowX);
const width = document.documentElement.clientWidth, root = document.documentElement;
const found = root.scrollWidth > width ? ["the page is " + root.scrollWidth + " pixels wide"] : [];
for (const one of document.querySelectorAll("main *"))
    if (one.checkVisibility() && (one.getBoundingClientRect().right > width + 1 || scrolls(one)))
        found.push(one.tagName + "." + one.className);
return found;
"""
"""Finds what a reader would have to scroll to the side for."""
SMALL = """
return [...document.querySelectorAll("main *")].filter(one =>
    [...one.childNodes].some(node => node.nodeType == 3 && node.data.trim()) && one.checkVisibility()
    && parseFloat(getComputedStyle(one).fontSize) < 12).map(one => one.className + ": " + one.innerText);
"""
"""Finds text in small letters."""


class Browser:
    """A window.

    Args:
        session: address of its session.
    """

    def __init__(self, session: str):
        self.session = session

    def open(self, address: str) -> None:
        webdriver(f"{self.session}/url", {"url": address})

    def find(self, selector: str) -> str:
        return webdriver(f"{self.session}/element", {"using": "css selector", "value": selector})[ELEMENT]

    def type_into(self, selector: str, text: str) -> None:
        """Type text; into a field for files, the path of one."""
        webdriver(f"{self.session}/element/{self.find(selector)}/value", {"text": text})

    def text(self, selector: str) -> str:
        return self.run(f"return [...document.querySelectorAll({selector!r})].map(e => e.innerText).join(' ')")

    def run(self, script: str) -> Any:
        """What a script returns that runs in the page."""
        return webdriver(f"{self.session}/execute/sync", {"script": script, "args": []})

    def shoot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        whole = {"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": True}}
        path.write_bytes(base64.b64decode(webdriver(f"{self.session}/goog/cdp/execute", whole)["data"]))

    def errors(self) -> list[str]:
        """What the page and its scripts complained of."""
        entries = webdriver(f"{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@contextmanager
def open_browser(device: str, log: Path) -> Iterator[Browser]:
    """A window of one of `DEVICES` while a block lasts."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    port = free_port()
    driver = f"http://127.0.0.1:{port}"
    with serving(["chromedriver", f"--port={port}"], f"{driver}/status", log):
        options = {
            "args": ["--headless=new", "--no-sandbox", "--no-proxy-server", "--window-size=1280,1300"],
            **DEVICES[device],
        }
        capabilities = {
            "capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        }
        session = f"{driver}/session/{webdriver(f'{driver}/session', capabilities)['sessionId']}"
        try:
            yield Browser(session)
        finally:
            webdriver(session, method="DELETE")


def webdriver(url: str, values: dict | None = None, method: str | None = None) -> Any:
    """What the browser's driver answers."""
    data = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["value"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("the page does not show it")
        time.sleep(0.2)
