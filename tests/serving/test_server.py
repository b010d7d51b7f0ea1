"""The process: it moves along its front under load, ends when all is answered, and says why it does not start."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from served import KEY, MODEL, png, send
from servers import free_port

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.routing.budgets import Budget
from pertinence.serving.arguments import ServeArguments, ServedPointArguments
from pertinence.serving.keys import Keys
from pertinence.serving.points import ServedPoints


@pytest.fixture(scope="module")
def model() -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(MODEL)


def test_under_load_it_answers_at_cheaper_points_then_refuses_and_comes_back(start, model, images):
    """Images so large that preparing them takes time, from more clients than can be answered within the target."""
    files = [png(image, "BMP") for image in images(4, 500, seed=3)]
    flags = ["--operating-point", "most-accurate", "--target-latency-ms", "150", "--max-accuracy-loss", "0.01"]
    front = model.front
    floor = Budget(max_accuracy_loss=0.01).choose(front, model.config.reference_figures)
    with start(*flags) as url:
        info = send(f"{url}/info").json
        allowed = [point["name"] for point in info["operating_points"] if point["is_used"]]
        assert allowed == [front[row].name for row in range(list(front).index(floor), 6)]
        assert (info["operating_point"], info["target_latency_ms"]) == ("most-accurate", 150)
        assert send(url, files[0]).headers["x-operating-point"] == "most-accurate"
        points, statuses, end = Counter(), Counter(), time.monotonic() + 6

        def flood(index: int) -> None:
            while time.monotonic() < end:
                response = send(url, files[index % len(files)])
                statuses[response.status] += 1
                if response.status == 200:
                    points[response.headers["x-operating-point"]] += 1
                else:
                    assert int(response.headers["retry-after"]) >= 1
                    assert "try again in a second" in response.json["error"]
                    time.sleep(0.05)

        with ThreadPoolExecutor(48) as threads:
            list(threads.map(flood, range(48)))
        assert set(statuses) == {200, 503}
        assert set(points) <= set(allowed)
        assert points.most_common(1)[0][0] == floor.name, "most are answered at the cheapest point that is allowed"
        assert f'operating_point="{floor.name}"' in send(f"{url}/metrics").body.decode()
        deadline = time.monotonic() + 60
        while send(f"{url}/info").json["operating_point"] != "most-accurate":
            assert time.monotonic() < deadline, "it does not come back"
            time.sleep(0.3)
        assert send(url, files[0]).headers["x-operating-point"] == "most-accurate"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)])
def test_a_server_that_is_ended_answers_what_it_has_accepted(images, tmp_path, number):
    files = [png(image, "BMP") for image in images(4, 500, seed=3)]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "pertinence", "serve", MODEL, "--port", str(port), "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_until_ready(url, process)
        lost, statuses = [], Counter()
        sent, lock = threading.Semaphore(0), threading.Lock()

        def ask(index: int) -> None:
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            try:
                connection.request("POST", "/", files[index % 4])
                sent.release()
                status = connection.getresponse().status
            except (http.client.HTTPException, OSError) as error:
                lost.append(error)
                return
            finally:
                connection.close()
            with lock:
                statuses[status] += 1

        with ThreadPoolExecutor(24) as threads:
            asking = [threads.submit(ask, index) for index in range(24)]
            for _ in range(24):
                sent.acquire()
            wait_for_answers(url, 1)
            process.send_signal(number)
            for one in asking:
                one.result()
        assert process.wait(30) == 0
        assert lost == []
        assert statuses == {200: 24}
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def wait_until_ready(url: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        assert process.poll() is None
        try:
            if send(f"{url}/ready").status == 200:
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server does not start")


def wait_for_answers(url: str, count: int) -> None:
    """Wait until so many images are answered or being answered: the requests are inside."""
    for _ in range(600):
        live = send(f"{url}/info").json["live"]
        if live["answered"] + live["waiting"] >= count:
            return
        time.sleep(0.01)


def say(*flags: str, status: int = 1, **environment: str) -> str:
    """The error of a server that does not start."""
    ended = subprocess.run(
        [sys.executable, "-m", "pertinence", "serve", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


@pytest.mark.nightly
def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"nothing can listen at 127.0.0.1:{port}" in say(str(MODEL), "--port", str(port))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"port": 70_000}, "port must be at most 65535"),
        ({"max_queue": 0}, "max_queue must be at least 1"),
        ({"formats": ["PNG", "DOCX"]}, "formats=DOCX: Pillow reads"),
        ({"request_seconds": 0.0}, "request_seconds must be a positive number"),
    ],
)
def test_settings_are_checked(settings, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        ServeArguments(**settings)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "has no key"), ("# none\n", "has no key"), ("short\n", "line 1 of .* is no key"), (None, "cannot be read")],
)
def test_a_file_without_keys_is_refused(tmp_path, content, sentence):
    path = tmp_path / "keys.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PertinenceError, match=sentence):
        Keys(str(path))
    path.write_text(f"{KEY}\n")
    Keys(str(path)).check(f"Bearer {KEY}")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["cheapest-lossless"]),
        ({"operating_point": "point-03"}, ["point-03"]),
        ({"max_accuracy_loss": 0.01}, ["cheapest-lossless"]),
        ({"target_latency_ms": 50}, ["cheapest-lossless"]),
        ({"target_latency_ms": 50, "operating_point": "point-03"}, ["point-03", "point-02", "cheapest-lossless"]),
        ({"target_latency_ms": 50, "operating_point": "fastest"}, ["fastest"]),
        (
            {"target_latency_ms": 50, "operating_point": "point-02", "max_accuracy_loss": 0.2},
            ["point-02", "cheapest-lossless", "fastest"],
        ),
        (
            {"target_latency_ms": 50, "operating_point": "point-04", "max_accuracy_loss": -0.1},
            ["point-04", "point-03"],
        ),
    ],
)
def test_the_points_that_a_server_may_use(model, given, names):
    points = ServedPoints.of(model.config, ServedPointArguments(**given))
    assert [point.name for point in points.allowed] == names
    assert points.costs == sorted(points.costs, reverse=True)
    assert points.cost(points.front.find("by-features")) == 0, "it was not measured"


def test_a_floor_that_cannot_be_kept_is_refused(model, tiny_experts):
    args = ServedPointArguments(target_latency_ms=50, operating_point="fastest", max_accuracy_loss=0.01)
    with pytest.raises(PertinenceError, match="'fastest' loses more than max_accuracy_loss=0.01"):
        ServedPoints.of(model.config, args)
    with pytest.raises(PertinenceError, match="give one budget at most"):
        ServedPointArguments(operating_point="fastest", max_accuracy_loss=0.01)
    unmeasured = PertinenceForImageClassification.from_experts(tiny_experts, 0.6).config
    with pytest.raises(PertinenceError, match="the points of this model were not measured"):
        ServedPoints.of(unmeasured, ServedPointArguments(target_latency_ms=50, max_accuracy_loss=0.01))
    points = ServedPoints.of(unmeasured, ServedPointArguments(target_latency_ms=50))
    assert [point.name for point in points.allowed] == ["cascade"]
