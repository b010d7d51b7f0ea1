"""The example of a server, over HTTP: right answers, grouped requests, a clear no, and counts that add up."""

from __future__ import annotations

import base64
import io
import json
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from servers import free_port, serving

from pertinence import PertinenceForImageClassification


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serving.py"
MOST = 8


@pytest.fixture(scope="module")
def saved(tiny_experts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    PertinenceForImageClassification.from_experts(tiny_experts, 0.6).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(saved, tmp_path_factory) -> Iterator[str]:
    """Address of a server that lets 8 requests in at a time and waits for batches to fill."""
    pytest.importorskip("litserve", reason="serving is a dependency group of its own")
    port = free_port()
    log = tmp_path_factory.mktemp("log") / "server.log"
    options = ["--port", str(port), "--max-requests", str(MOST), "--batch-timeout", "0.2", "--max-memory", "1GB"]
    url = f"http://127.0.0.1:{port}"
    with serving([sys.executable, EXAMPLE, saved, *options], f"{url}/health", log):
        yield url


def ask(url: str, path: str, values: dict | None = None) -> tuple[int, dict]:
    """Status and answer."""
    data = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def encoded(image: torch.Tensor) -> dict[str, str]:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return {"inputs": base64.b64encode(buffer.getvalue()).decode()}


def test_requests_are_grouped_answered_and_turned_away(server, saved, images):
    model = PertinenceForImageClassification.from_pretrained(saved)
    sent = [image for size in (40, 64) for image in images(32, size, seed=2)]
    out = model(sent)
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda image: ask(server, "/predict", encoded(image)), sent))
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) == {200, 503}
    assert statuses[200] >= MOST
    experts: Counter[str] = Counter()
    for index, (status, answer) in enumerate(answers):
        if status == 503:
            assert "try again in a second" in answer["detail"]
            continue
        best = out.logits[index].softmax(0).max(0)
        assert answer["labels"][0]["label"] == model.config.id2label[best.indices.item()]
        assert answer["labels"][0]["score"] == pytest.approx(best.values.item(), abs=1e-3)
        assert answer["expert"] == model.config.expert_names[out.expert_indices[index]]
        assert answer["gmacs"] == pytest.approx(out.gmacs[index].item(), abs=1e-6)
        experts[answer["expert"]] += 1
    assert max(answer["batch_size"] for status, answer in answers if status == 200) > 1

    status, stats = ask(server, "/stats")
    assert status == 200
    assert (stats["answered"], stats["turned_away"], stats["inside"]) == (statuses[200], statuses[503], 0)
    assert stats["expert_shares"] == pytest.approx({n: count / statuses[200] for n, count in experts.items()})
    costs = [answer["gmacs"] for status, answer in answers if status == 200]
    assert stats["gmacs_per_request"] == pytest.approx(sum(costs) / len(costs))


@pytest.mark.parametrize("inputs", [{}, {"inputs": "no base64"}, {"inputs": "bm8gaW1hZ2U="}], ids=str)
def test_what_is_no_image_is_refused_and_harms_nobody(server, images, inputs):
    status, answer = ask(server, "/predict", inputs)
    assert status == 400
    assert "an image file in base64" in answer["detail"]
    assert ask(server, "/predict", encoded(images(1, 40)[0]))[0] == 200
