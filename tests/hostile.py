"""Requests that no honest client sends: damaged images of every format of Pillow, wrong types, huge headers."""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from PIL import Image


JSON, FORM = "application/json", "multipart/form-data; boundary=x"
ODD = [None, 0, -1, 1e308, float("nan"), True, "", "x" * 300, "../../etc/passwd", [], [[]], {}, {"a": {}}, "\x00", "é"]
"""Values where others are expected."""
NAMES = [
    *("top_k", "function_to_apply", "details", "operating_point", "gmacs", "accuracy", "saving", "latency_ms"),
    *("max_accuracy_loss", "model", "url", "__class__"),
]


@dataclass(frozen=True)
class Hostile:
    """A request to send.

    Attributes:
        what: what it is, for a message.
        body, kind, path, method, headers: as they are sent.
    """

    what: str
    body: bytes | None = b""
    kind: str = "application/octet-stream"
    path: str = "/"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def image_files(seed: int = 0) -> dict[str, bytes]:
    """A small image file of every format that Pillow writes."""
    rng = random.Random(seed)
    picture = Image.frombytes("RGB", (24, 16), rng.randbytes(24 * 16 * 3))
    Image.init()
    found = {}
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "L", "P", "1"):
            buffer = io.BytesIO()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    picture.convert(mode).save(buffer, kind)
            except Exception:  # a format that does not take this mode
                continue
            found[kind] = buffer.getvalue()
            break
    return found


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG file of a few bytes whose header announces very many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )


def requests(count: int, seed: int = 0) -> Iterator[Hostile]:
    """So many hostile requests, the same for the same seed."""
    rng, files = random.Random(seed), image_files(seed)
    kinds = [_damaged, _damaged, _damaged, _odd_json, _odd_parameters, _odd_form, _odd_http]
    for _ in range(count):
        yield rng.choice(kinds)(rng, files)


def _damaged(rng: random.Random, files: dict[str, bytes]) -> Hostile:
    """An image file that was cut, changed, repeated or joined with another one."""
    name = rng.choice(sorted(files))
    content = bytearray(files[name])
    how = rng.choice(["cut", "changed", "header", "joined", "whole", "noise"])
    if how == "cut":
        content = content[: rng.randrange(len(content))]
    elif how == "changed":
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif how == "header":
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(min(64, len(content)))] = rng.randrange(256)
    elif how == "joined":
        content += files[rng.choice(sorted(files))][rng.randrange(8) :]
    elif how == "noise":
        content = bytearray(rng.randbytes(rng.randrange(200)))
    if rng.random() < 0.3:
        body = json.dumps({"inputs": base64.b64encode(content).decode()}).encode()
        return Hostile(f"{how} {name} in JSON", body, JSON)
    return Hostile(f"{how} {name}", bytes(content), rng.choice(["image/png", "image/jpeg", "x/y", ""]))


def _odd_json(rng: random.Random, files: dict[str, bytes]) -> Hostile:
    texts = [b"", b"{", b"[" * 5000, b"\xff\xfe{}", b"[]", b"null", b'"inputs"', b"{}", b'{"inputs":}', b"NaN"]
    if rng.random() < 0.4:
        return Hostile("no JSON", rng.choice(texts), JSON)
    values = {"inputs": rng.choice([*ODD, "http://127.0.0.1/cat.jpg", "file:///etc/passwd", "data:,", "====", "aGk="])}
    if rng.random() < 0.5:
        values["parameters"] = rng.choice(ODD)
    if rng.random() < 0.3:
        values[rng.choice(["model", "url", "parameters "])] = rng.choice(ODD)
    return Hostile(f"JSON {str(values)[:60]}", json.dumps(values).encode(), JSON)


def _odd_parameters(rng: random.Random, files: dict[str, bytes]) -> Hostile:
    given = {rng.choice(NAMES): rng.choice(ODD) for _ in range(rng.randint(1, 3))}
    body = {"inputs": base64.b64encode(files["PNG"]).decode(), "parameters": given}
    if rng.random() < 0.5:
        return Hostile(f"parameters {str(given)[:60]}", json.dumps(body).encode(), JSON)
    query = "&".join(
        rng.choice(NAMES) + "=" + rng.choice(["", "nan", "-1", "1e999", "%00", "%ff", "9" * 400, "x"]) for _ in given
    )
    return Hostile(f"query {query[:60]}", files["PNG"], "image/png", f"/?{query}")


def _odd_form(rng: random.Random, files: dict[str, bytes]) -> Hostile:
    head = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n'
    whole = head + b"\r\n" + files["PNG"] + b"\r\n"
    body = rng.choice(
        [
            *(b"", b"--x", b"--x--", head, whole, whole * 3 + b"--x--\r\n", whole[: rng.randrange(len(whole))]),
            b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\ntext\r\n--x--\r\n',
            b"--x\r\nContent-Disposition: form-data\r\n\r\ntext\r\n--x--\r\n",
            b'--x\r\nContent-Disposition: form-data; name="' + b"n" * 5000 + b'"\r\n\r\nt\r\n--x--\r\n',
            b"--x\r\n\r\n\r\n--x--\r\n" * 50,
            head + b"Content-Type: \xff\xfe\r\nX: " + b"y" * 9000 + b"\r\n\r\n\r\n--x--\r\n",
        ]
    )
    kind = rng.choice(
        [FORM, FORM, FORM, "multipart/form-data", "multipart/form-data; boundary=", f"{FORM}; charset=no"]
    )
    return Hostile(f"form {body[:40]!r}", body, kind)


def _odd_http(rng: random.Random, files: dict[str, bytes]) -> Hostile:
    headers = rng.choice(
        [
            {"X-Long": "x" * rng.choice([100, 30_000, 60_000])},
            {f"X-{index}": "y" * 50 for index in range(90)},
            {"Content-Encoding": "gzip"},
            {"Authorization": "Bearer " + "z" * 1000},
            {"Content-Type": "\xff/\xfe"},
            {"Expect": "100-continue"},
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        ]
    )
    path = rng.choice(
        ["/", "/", "/../../etc/passwd", "/%00", "/%ff%fe", "/info", "/page.js/..", "//", "/?" + "q" * 9000]
    )
    method = rng.choice(["POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"])
    return Hostile(
        f"{method} {path[:30]} {str(headers)[:40]}", files["GIF"], path=path, method=method, headers=headers
    )


class Sender:
    """Sends requests to a server over connections that are kept.

    Args:
        url: address of the server.
    """

    def __init__(self, url: str):
        self._place = urlsplit(url).netloc
        self._connection: http.client.HTTPConnection | None = None

    def send(self, hostile: Hostile) -> tuple[int, bytes]:
        """Status and body of the response."""
        for attempt in range(3):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._place, timeout=60)
            try:
                headers = ({"Content-Type": hostile.kind} if hostile.kind else {}) | hostile.headers
                self._connection.request(hostile.method, hostile.path, hostile.body, headers)
                response = self._connection.getresponse()
                found = response.status, response.read()
                if response.will_close:
                    self.close()
                return found
            except (http.client.HTTPException, OSError):  # the server had closed the connection
                self.close()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def is_as_promised(status: int, body: bytes, method: str) -> bool:
    """Whether this is an answer, or a refusal of one sentence that shows nothing of the inside."""
    if status == 200:
        return True
    if not (400 <= status < 500 or status == 503):
        return False
    if method == "HEAD":
        return True
    try:
        sentence = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return sentence and "\n" not in sentence and not any(word in sentence for word in ("Traceback", "Error(", ".py"))
