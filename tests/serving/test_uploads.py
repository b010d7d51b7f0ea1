"""Hostile requests to a running server: each is refused in one sentence, and harms nobody."""

from __future__ import annotations

import base64
import io
import json

import pytest
from hostile import FORM, JSON, Sender, bomb, image_files, is_as_promised, requests
from PIL import Image
from served import KEY, png, send


COUNT = 400


def test_hostile_requests_are_refused_in_one_sentence_and_the_server_goes_on(server, pictures):
    sender = Sender(server)
    statuses = set()
    for hostile in requests(COUNT):
        status, body = sender.send(hostile)
        assert is_as_promised(status, body, hostile.method), (hostile.what, status, body[:300])
        statuses.add(status)
    sender.close()
    assert {200, 400, 404, 405, 415, 431} <= statuses
    assert send(server, png(pictures[0])).status == 200


@pytest.mark.nightly
def test_twenty_thousand_hostile_requests(server):
    sender = Sender(server)
    for hostile in requests(20_000, seed=1):
        status, body = sender.send(hostile)
        assert is_as_promised(status, body, hostile.method), (hostile.what, status, body[:300])
    sender.close()


@pytest.mark.parametrize("kind", sorted(image_files()))
def test_only_the_formats_of_the_setting_are_read(server, kind):
    response = send(server, image_files()[kind])
    if kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        assert response.status == 200
    elif response.status == 200:
        with Image.open(io.BytesIO(image_files()[kind])) as opened:
            assert opened.format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
    else:
        assert response.status == 415
        assert response.json["error"].endswith("send one as JPEG, PNG, WEBP, GIF, BMP, TIFF")


@pytest.mark.parametrize(
    ("body", "kind", "status", "sentence"),
    [
        (b"", "image/png", 400, "the request holds no image"),
        (b"hello", "image/png", 415, "the file is no image that can be read"),
        (b"{", JSON, 400, "no valid JSON"),
        (b"[]", JSON, 400, "the JSON has no text `inputs`"),
        (b'{"inputs": ["a"]}', JSON, 400, "the JSON has no text `inputs`"),
        (b'{"inputs": "http://127.0.0.1/cat.jpg"}', JSON, 400, "`inputs` is a URL, which this server does not fetch"),
        (b'{"inputs": "/etc/passwd"}', JSON, 400, "`inputs` is no base64"),
        (b'{"inputs": "etc/passwd//"}', JSON, 415, "the file is no image"),
        (b'{"inputs": "aGk=", "model": "x"}', JSON, 400, "the JSON has an unknown key 'model'"),
        (b'{"inputs": "aGk=", "parameters": [1]}', JSON, 400, "`parameters` must be an object"),
        (b"--x--", FORM, 400, "the form"),
        (bomb(), "image/png", 413, "an image has at most 50 million pixels"),
        (bomb(9000, 9000), "image/png", 413, "an image has at most 50 million pixels, this one has 9000 x 9000"),
        (bomb(1, 1300), "image/png", 422, "an image is at most 20 times as long as wide, not 1 x 1300"),
        (image_files()["PNG"][:-30], "image/png", 400, "the image is damaged or not complete"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/png", 415, "the file is no image"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence_that_says_so(server, body, kind, status, sentence):
    response = send(server, body, kind)
    assert response.status == status
    assert sentence in response.json["error"]
    assert "\n" not in response.json["error"]


def test_limits_of_bytes_pixels_and_formats(strict, pictures):
    def ask(body: bytes, kind: str = "image/png") -> tuple[int, str]:
        response = send(strict, body, kind, Authorization=f"Bearer {KEY}")
        return response.status, response.json["error"] if response.status != 200 else ""

    assert ask(png(pictures[0])) == (200, "")
    assert ask(b"x" * (2**20 + 1)) == (413, "a request has at most 1 MiB")
    big = base64.b64encode(b"x" * 2**20).decode()
    assert ask(json.dumps({"inputs": big}).encode(), JSON)[0] == 413
    large = pictures[0].repeat(1, 20, 20)
    assert ask(png(large)) == (413, "an image has at most 0.1 million pixels, this one has 400 x 400")
    assert ask(png(pictures[0], "BMP")) == (415, "the file is no image that can be read: send one as PNG, JPEG")
