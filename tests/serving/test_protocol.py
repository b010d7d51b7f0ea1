"""Connections that are slow, silent, long-winded or cut off."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import pytest
from served import KEY, png, send


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What is received until the server closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


HEAD = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", b"the headers of the request did not arrive within 1 seconds"),
        (b"POST / HT", b"the headers of the request did not arrive within 1 seconds"),
        (HEAD, b"the headers of the request did not arrive within 1 seconds"),
        (HEAD + b"\r\nbegin", b"the request did not arrive within 1 seconds"),
    ],
)
def test_a_client_that_is_too_slow_gets_a_408_and_holds_no_connection(strict, sent, said):
    with connect(strict) as connection:
        start = time.monotonic()
        connection.sendall(sent)
        answer = read_all(connection)
        assert 0.5 < time.monotonic() - start < 15
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert said in answer


def test_a_client_that_sends_one_byte_at_a_time_is_too_slow(strict):
    with connect(strict) as connection:
        try:
            for byte in HEAD * 3:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:  # closed
            pass
        else:
            pytest.fail("the connection was held")


@pytest.mark.parametrize("header", [b"X: " + b"y" * 40_000, b"\r\n".join(b"X-%d: y" % i for i in range(9000))])
def test_huge_headers_are_refused(server, header):
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        for start in range(0, len(header), 1000):
            try:
                connection.sendall(header[start : start + 1000])
            except OSError:
                break
            time.sleep(0.001)
        try:
            answer = read_all(connection)
        except ConnectionResetError:
            return
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "the headers of a request have at most 32768 bytes"


def test_what_is_no_http_is_refused(server):
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5 + b"\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"this is no valid request of HTTP/1.1" in answer


def test_clients_that_go_away_harm_nobody(server, pictures):
    content = png(pictures[0])
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    for sent in (head, head + content[:40], head + content):
        for _ in range(10):
            with connect(server) as connection:
                connection.sendall(sent)
    assert send(server, content).status == 200
    deadline = time.monotonic() + 10
    while b"pertinence_requests_active 0.0" not in send(f"{server}/metrics").body:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_too_many_requests_at_a_time_are_refused(strict, pictures):
    """Four uploads that do not come to their end, and a fifth request."""
    held = [connect(strict) for _ in range(4)]
    try:
        for connection in held:
            connection.sendall(HEAD + b"\r\nbegin")
        deadline = time.monotonic() + 0.8
        response = send(strict, png(pictures[0]), Authorization=f"Bearer {KEY}")
        while response.status != 429 and time.monotonic() < deadline:
            response = send(strict, png(pictures[0]), Authorization=f"Bearer {KEY}")
        assert response.status == 429
        assert response.headers["retry-after"] == "1"
        assert response.json["error"].startswith("4 requests are being answered already")
    finally:
        for connection in held:
            connection.close()
