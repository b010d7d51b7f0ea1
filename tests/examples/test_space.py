"""The app of the Space as a process of its own: asked over its HTTP API, and used in headless Chromium."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import BESIDE, DEVICES, SMALL, open_browser, wait_for
from PIL import Image
from servers import free_port, serving

from pertinence import DispatcherSearch, PertinenceForImageClassification, PertinenceImageProcessor, SearchArguments


APP = Path(__file__).resolve().parents[2] / "examples" / "space" / "app.py"
SHOWN = "return [...document.images].map(image => image.src)"


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
    said = ended.stderr.splitlines()[-1]
    assert said.startswith("error: there is no folder user/none here, so it was taken as a repository on the Hub: ")


@pytest.mark.parametrize("device", DEVICES)
def test_in_a_browser(app, saved, picture, tmp_path, device):
    """An image is dropped, and the page says which experts ran, in letters that can be read and with nothing beside
    the screen; `SCREENSHOTS` in the environment names a folder that keeps the pictures."""
    with open_browser(device, tmp_path / "driver.log") as browser:
        browser.open(app)
        wait_for(lambda: "Drop an image to see" in browser.text("body"))
        browser.type_into("input[type=file]", str(picture))
        wait_for(lambda: "GMACs for this image" in browser.text("body"))
        wait_for(lambda: "Which experts ran, and why" in browser.text("body"))
        shown = [address for address in browser.run(SHOWN) if address.startswith(app)]
        files = [urllib.request.urlopen(address, timeout=60).read() for address in shown]
        for name in ("front.png", "shares.png", "examples.png"):
            assert (saved / name).read_bytes() in files
        browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
        shot = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{device}.png"
        browser.shoot(shot)
        with Image.open(shot) as picture:
            assert len(set(picture.convert("L").get_flattened_data())) > 20
        assert browser.run(BESIDE) == []
        assert browser.run(SMALL) == []
