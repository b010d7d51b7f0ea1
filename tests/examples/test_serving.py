"""The example of a server, over HTTP: right answers, grouped requests, a clear no, and counts that add up."""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
import urllib.error
import urllib.request
import zlib
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
MOST, LARGEST = 8, 100_000


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
    options += ["--max-body", str(LARGEST)]
    url = f"http://127.0.0.1:{port}"
    with serving([sys.executable, EXAMPLE, saved, *options], f"{url}/health", log):
        yield url


def ask(url: str, path: str, values: dict | None = None) -> tuple[int, dict]:
    """Status and answer."""
    return send(f"{url}{path}", None if values is None else json.dumps(values).encode())


def send(url: str, data: bytes | None, kind: str = "application/json") -> tuple[int, dict]:
    request = urllib.request.Request(url, data, {"Content-Type": kind})
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


def text_of(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def bomb() -> str:
    """A PNG file of a few bytes whose header announces 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return base64.b64encode(content).decode()


JSON = "application/json"
PICTURE = text_of(Image.effect_noise((64, 64), 50))
REFUSED = {
    "empty body": (b"", JSON),
    "no JSON": (b"{", JSON),
    "not UTF-8": (b"\xff\xfe{}", JSON),
    "nested deeply": (b"[" * 100_000, JSON),
    "a list": (b"[]", JSON),
    "null": (b"null", JSON),
    "text": (b'"inputs"', JSON),
    "missing field": (b"{}", JSON),
    "null for the image": (b'{"inputs": null}', JSON),
    "a number": (b'{"inputs": 7}', JSON),
    "a list of images": (b'{"inputs": ["a", "b"]}', JSON),
    "a mapping": (b'{"inputs": {"a": 1}}', JSON),
    "empty text": (b'{"inputs": ""}', JSON),
    "no base64": (b'{"inputs": "no base64"}', JSON),
    "not ASCII": ('{"inputs": "\u00e9"}'.encode(), JSON),
    "no image": (b'{"inputs": "bm8gaW1hZ2U="}', JSON),
    "a path": (b'{"inputs": "/etc/passwd"}', JSON),
    "truncated image": (json.dumps({"inputs": PICTURE[:800]}).encode(), JSON),
    "truncated header": (json.dumps({"inputs": PICTURE[:24]}).encode(), JSON),
    "huge dimensions": (json.dumps({"inputs": bomb()}).encode(), JSON),
    "PostScript": (json.dumps({"inputs": text_of(Image.new("RGB", (9, 9)), "EPS")}).encode(), JSON),
    "an image file as body": (base64.b64decode(PICTURE), "image/png"),
    "a form": (b"inputs=abc", "application/x-www-form-urlencoded"),
    "a broken form": (b"--x", "multipart/form-data"),
    "an upload": (
        b'--x\r\nContent-Disposition: form-data; name="inputs"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_upload_is_refused_in_one_sentence_and_harms_nobody(server, images, name):
    status, answer = send(f"{server}/predict", *REFUSED[name])
    assert 400 <= status < 500
    assert answer["detail"].startswith('expected {"inputs": an image file in base64}')
    assert "\n" not in answer["detail"]
    assert "Error(" not in answer["detail"]
    assert ask(server, "/predict", encoded(images(1, 40)[0]))[0] == 200


def test_a_large_body_is_refused_before_it_is_read(server, images):
    status, answer = send(f"{server}/predict", b"x" * (LARGEST + 1), JSON)
    assert status == 413
    assert f"at most {LARGEST} bytes" in answer["detail"]
    assert ask(server, "/stats")[1]["inside"] == 0
    assert ask(server, "/predict", encoded(images(1, 40)[0]))[0] == 200
