"""What the tests of the server share: requests, responses, the model that is served."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image


MODEL = Path(__file__).resolve().parent / "fixtures" / "format_1"
KEY = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Response:
    """What came back: status, headers by lower-case name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(url: str, data: bytes | None = None, kind: str = "image/png", **headers: str) -> Response:
    """Send a request: GET without data."""
    named = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, named)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Response(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def png(image: torch.Tensor, kind: str = "PNG") -> bytes:
    """The file of a uint8 image (3, H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, kind)
    return buffer.getvalue()
