"""The app of the Space as a process of its own: asked over its HTTP API, and used in headless Chromium."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from servers import free_port, serving

from pertinence import DispatcherSearch, PertinenceForImageClassification, PertinenceImageProcessor, SearchArguments


APP = Path(__file__).resolve().parents[2] / "examples" / "space" / "app.py"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Key of an element's reference in the WebDriver protocol."""

DEVICES = {
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
SHOWN = "return [...document.images].map(image => image.src)"
SMALL = """
return [...document.querySelectorAll("main *")].filter(one =>
    [...one.childNodes].some(node => node.nodeType == 3 && node.data.trim()) && one.checkVisibility()
    && parseFloat(getComputedStyle(one).fontSize) < 12).map(one => one.className + ": " + one.innerText);
"""
"""Finds text in small letters."""


@pytest.fixture(scope="module")
def saved(digits, digit_experts, tmp_path_factory) -> Path:
    pytest.importorskip(
        "gradio", reason="gradio is in a dependency group of its own: uv run --no-dev --group examples"
    )
    args = SearchArguments(population=4, generations=1, baselines=False)
    folder = tmp_path_factory.mktemp("searched") / "model"
    DispatcherSearch(digit_experts, digits[1].select(range(300)), args).run().save(folder)
    return folder


@pytest.fixture(scope="module")
def app(saved, tmp_path_factory) -> Iterator[str]:
    """Address of the running app."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "PERTINENCE_MODEL": str(saved)}
    with serving([sys.executable, APP], url, tmp_path_factory.mktemp("log") / "server.log", **settings):
        yield url


@pytest.fixture
def picture(digits, tmp_path) -> Path:
    path = tmp_path / "digit.png"
    digits[2][0]["image"].convert("RGB").save(path)
    return path


def test_the_api_explains_what_the_model_does(app, saved, picture):
    gradio_client = pytest.importorskip("gradio_client")
    model = PertinenceForImageClassification.from_pretrained(saved)
    images = PertinenceImageProcessor()(Image.open(picture))["images"]
    client = gradio_client.Client(app, verbose=False)
    front = list(model.front)
    for point in (front[0], front[len(front) // 2], front[-1]):
        budget = point.select.gmacs
        chosen = model.front.choose(gmacs=budget)
        out = model(images, operating_point=chosen.name)
        answers, summary, steps, plot = client.predict(gradio_client.handle_file(picture), budget, api_name="/explain")
        probability, label = out.logits[0].softmax(0).max(0)
        assert answers["label"] == model.config.id2label[label.item()]
        assert answers["confidences"][0]["confidence"] == pytest.approx(probability.item(), abs=1e-4)
        ran = [name for name, did_run in zip(model.config.expert_names, out.experts_run[0], strict=True) if did_run]
        assert f"Ran {' → '.join(ran)}" in summary
        assert f"{out.gmacs[0]:.3g} GMACs for this image" in summary
        assert f"`{chosen.name}`" in summary
        rows = re.findall(r"^1\. `(.+)`: `(.+)` with (.+ %); (.+)\. \*\*(.+)\*\*$", steps, re.M)
        assert [row[0] for row in rows] == ran
        # What was known before the last step is the answer itself.
        assert rows[-1][1:3] == (answers["label"], f"{100 * probability:.1f} %")
        assert [row[-1] for row in rows] == [*(f"run {name}" for name in ran[1:]), "answer"]
        for row in rows[:-1]:  # it went where the score is highest, and above that of answering
            scores = dict(re.findall(r"`(.+?)` (\S+?)(?:, |$)", row[3]))
            name, score = max(scores.items(), key=lambda item: float(item[1]))
            assert (row[-1], float(score) > 0) == (f"run {name}", True)
        assert base64.b64decode(plot["plot"].partition(",")[2])[:4] in (b"RIFF", b"\x89PNG")


def test_a_page_without_an_image_shows_the_front(app, saved):
    gradio_client = pytest.importorskip("gradio_client")
    front = PertinenceForImageClassification.from_pretrained(saved).front
    cheapest = front[0].select.gmacs
    answers, summary, steps, _ = gradio_client.Client(app, verbose=False).predict(None, cheapest, api_name="/explain")
    assert not answers
    assert not steps
    assert f"Operating point `{front.choose(gmacs=cheapest).name}`" in summary


def test_without_a_connection_the_app_says_what_it_could_not_reach(tmp_path):
    pytest.importorskip("gradio", reason="gradio is in a dependency group of its own")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PERTINENCE_MODEL": "user/none"}
    ended = subprocess.run([sys.executable, APP], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: user/none is not in the cache")


@pytest.mark.parametrize("device", DEVICES)
def test_in_a_browser(app, saved, picture, tmp_path, device):
    """An image is dropped, and the page says which experts ran, in letters that can be read and with nothing beside
    the screen; `SCREENSHOTS` in the environment names a folder that keeps the pictures."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    port = free_port()
    driver = f"http://127.0.0.1:{port}"
    with serving(["chromedriver", f"--port={port}"], f"{driver}/status", tmp_path / "driver.log"):
        options = {
            "args": ["--headless=new", "--no-sandbox", "--no-proxy-server", "--window-size=1280,1300"],
            **DEVICES[device],
        }
        capabilities = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        session = f"{driver}/session/{webdriver(f'{driver}/session', capabilities)['sessionId']}"
        try:
            webdriver(f"{session}/url", {"url": app})
            wait_for(lambda: "Drop an image to see" in text(session, "body"))
            upload = find(session, "input[type=file]")
            webdriver(f"{session}/element/{upload}/value", {"text": str(picture)})
            wait_for(lambda: "GMACs for this image" in text(session, "body"))
            wait_for(lambda: "Which experts ran, and why" in text(session, "body"))
            shown = [address for address in run(session, SHOWN) if address.startswith(app)]
            files = [urllib.request.urlopen(address, timeout=60).read() for address in shown]
            for name in ("front.png", "shares.png", "examples.png"):
                assert (saved / name).read_bytes() in files
            run(session, "document.activeElement.blur(); window.scrollTo(0, 0)")
            whole = {"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": True}}
            shot = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{device}.png"
            shot.write_bytes(base64.b64decode(webdriver(f"{session}/goog/cdp/execute", whole)["data"]))
            with Image.open(shot) as picture:
                assert len(set(picture.convert("L").get_flattened_data())) > 20
            assert run(session, BESIDE) == []
            assert run(session, SMALL) == []
        finally:
            webdriver(session, method="DELETE")


def webdriver(url: str, values: dict | None = None, method: str | None = None):
    """What the browser's driver answers."""
    data = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["value"]


def find(session: str, selector: str) -> str:
    return webdriver(f"{session}/element", {"using": "css selector", "value": selector})[ELEMENT]


def text(session: str, selector: str) -> str:
    return run(session, f"return [...document.querySelectorAll({selector!r})].map(e => e.innerText).join(' ')")


def run(session: str, script: str):
    """What a script returns that runs in the page."""
    return webdriver(f"{session}/execute/sync", {"script": script, "args": []})


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("the page does not show it")
        time.sleep(0.2)
