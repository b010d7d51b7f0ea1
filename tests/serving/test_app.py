"""What the server answers, asked by the clients that people use."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import BESIDE, DEVICES, SMALL, open_browser, wait_for
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from prometheus_client.parser import text_string_to_metric_families
from served import KEY, MODEL, png, send

from pertinence import PertinenceForImageClassification


@pytest.fixture(scope="module")
def model() -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def file(pictures, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    path.write_bytes(png(pictures[-1]))
    return path


def test_the_client_of_hugging_face_works_unchanged(server, model, pictures, file):
    scores = model([pictures[-1]]).logits[0].softmax(0)
    client = InferenceClient(server)
    answers = client.image_classification(str(file))
    assert [answer.label for answer in answers] == [
        model.config.id2label[index] for index in scores.topk(5).indices.tolist()
    ]
    assert [answer.score for answer in answers] == pytest.approx(scores.topk(5).values.tolist(), abs=1e-4)
    assert len(client.image_classification(file.read_bytes(), top_k=2)) == 2
    logits = model([pictures[-1]]).logits[0]
    for function, expected in (("sigmoid", logits.sigmoid()), ("none", logits)):
        (best, *_) = client.image_classification(file, function_to_apply=function, top_k=1)
        assert best.score == pytest.approx(expected.max().item(), abs=1e-4)
    with pytest.raises(BadRequestError, match="top_k must be at least 1"):
        client.image_classification(file, top_k=0)


def test_all_forms_of_a_request_are_answered_as_the_model_answers(server, model, pictures):
    out = model(pictures)
    for row, image in enumerate(pictures):
        content = png(image)
        inputs = base64.b64encode(content).decode()
        as_json = {"inputs": inputs, "parameters": {"details": True, "top_k": 3}}
        as_url = as_json | {"inputs": f"data:image/png;base64,{inputs}"}
        form = (
            b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--x\r\n'
            b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
            + content
            + b"\r\n--x--\r\n"
        )
        responses = [
            send(f"{server}/?details=true&top_k=3", content),
            send(f"{server}/?details=true&top_k=3", content, "application/x-www-form-urlencoded"),  # curl's default
            send(server, json.dumps(as_json).encode(), "application/json"),
            send(server, json.dumps(as_url).encode(), "application/json"),
            send(f"{server}/?details=1", form, "multipart/form-data; boundary=x"),
        ]
        assert [response.status for response in responses] == [200] * 5
        assert all(response.json == responses[0].json for response in responses)
        found, headers = responses[0].json, responses[0].headers
        best = out.logits[row].softmax(0).topk(3)
        assert [one["label"] for one in found["answers"]] == [model.config.id2label[i] for i in best.indices.tolist()]
        assert [one["score"] for one in found["answers"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        names = model.config.expert_names
        assert found["expert"] == names[out.expert_indices[row]]
        assert found["experts_run"] == [name for name, ran in zip(names, out.experts_run[row], strict=True) if ran]
        assert found["gmacs"] == pytest.approx(out.gmacs[row].item(), rel=1e-5)
        assert found["operating_point"] == model.config.operating_point
        assert (headers["x-operating-point"], headers["x-expert"]) == (found["operating_point"], found["expert"])
        assert float(headers["x-gmacs"]) == pytest.approx(found["gmacs"], rel=1e-4)


def test_the_details_say_why(server, pictures):
    for image in pictures:
        found = send(f"{server}/?details=true&operating_point=most-accurate", png(image)).json
        ran = found["experts_run"]
        for decision, following in zip(found["decisions"], [*ran[1:], "answer"], strict=False):
            scores = decision["scores"]
            assert decision["chosen"] == following == max(scores, key=scores.get)
        assert [decision["after"] for decision in found["decisions"]] == ran[: len(found["decisions"])]
        assert len(found["decisions"]) in (len(ran), len(ran) - 1)


@pytest.mark.parametrize(
    ("asked", "budget"),
    [
        ("operating_point=fastest", {"operating_point": "fastest"}),
        ("operating_point=point-03", {"operating_point": "point-03"}),
        ("gmacs=0.0002", {"gmacs": 0.0002}),
        ("accuracy=0.85", {"accuracy": 0.85}),
        ("max_accuracy_loss=0.01", {"max_accuracy_loss": 0.01}),
        ("saving=0.5", {"saving": 0.5}),
    ],
)
def test_a_request_may_ask_for_a_point_or_a_budget_in_the_words_of_set_budget(server, pictures, asked, budget):
    chosen = PertinenceForImageClassification.from_pretrained(MODEL).set_budget(**budget)
    response = send(f"{server}/?{asked}", png(pictures[0]))
    assert response.status == 200
    assert unquote(response.headers["x-operating-point"]) == chosen.name
    ((name, value),) = budget.items()
    body = {"inputs": base64.b64encode(png(pictures[0])).decode(), "parameters": {name: value}}
    response = send(server, json.dumps(body).encode(), "application/json")
    assert response.headers["x-operating-point"] == chosen.name


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("operating_point=free", "there is no operating point 'free'"),
        ("gmacs=0", "no operating point costs at most 0 GMACs"),
        ("gmacs=nan", "gmacs=nan is not a budget"),
        ("accuracy=1e400", "accuracy=inf is not a budget"),
        ("saving=half", "saving must be a number, got 'half'"),
        ("gmacs=1&saving=0.5", "give one budget at most, got saving and gmacs"),
        ("max_accuracy_loss=1", "one point is 0.01"),
        ("top_k=1.5", "top_k must be a whole number"),
        ("top_k=-1", "top_k must be at least 1"),
        ("function_to_apply=relu", "'relu' is not one of softmax, sigmoid, none"),
        ("detail=true", "did you mean details?"),
        ("model=gpt2", "there is no parameter 'model'"),
        ("details=maybe", "details must be true or false"),
    ],
)
def test_a_wrong_parameter_is_refused_in_one_sentence(server, pictures, asked, sentence):
    response = send(f"{server}/?{asked}", png(pictures[0]))
    assert response.status == 400
    assert sentence in response.json["error"]
    assert "\n" not in response.json["error"]


def test_curl_works_as_the_page_of_the_interface_says(server, model, pictures, file):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")

    def curl(*words: str) -> list[dict]:
        return json.loads(subprocess.run(["curl", "-sS", *words], capture_output=True, check=True).stdout)

    best = model.config.id2label[model([pictures[-1]]).logits[0].argmax().item()]
    assert curl("--data-binary", f"@{file}", server)[0]["label"] == best
    details = curl("--form", f"file=@{file}", f"{server}/?top_k=3&details=true")
    assert details["answers"][0]["label"] == best
    assert len(details["answers"]) == 3


def metrics(server: str, **headers: str) -> dict[str, float]:
    """Every sample of /metrics, read by Prometheus' own parser."""
    response = send(f"{server}/metrics", **headers)
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.body.decode())
    return {
        sample.name + "".join(f"{{{value}}}" for name, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_metrics_count_what_was_answered(server, pictures):
    before = metrics(server)
    answers = [send(f"{server}/?details=true", png(image)).json for image in pictures]
    assert send(server, b"no image").status == 415
    after = metrics(server)
    more = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert more["pertinence_requests_total{200}"] == len(pictures)
    assert more["pertinence_requests_total{415}"] == 1
    assert more["pertinence_refused_total{image}"] == 1
    assert more["pertinence_request_seconds_count"] == len(pictures)
    assert more["pertinence_batch_images_sum"] == len(pictures)
    assert more["pertinence_gmacs_total"] == pytest.approx(sum(answer["gmacs"] for answer in answers))
    for name in ("vit", "cnn", "timm_vit"):
        assert more[f"pertinence_answers_total{{{name}}}"] == sum(answer["expert"] == name for answer in answers)
        assert more[f"pertinence_expert_runs_total{{{name}}}"] == sum(name in a["experts_run"] for a in answers)
    assert more["pertinence_point_answers_total{cheapest-lossless}"] == len(pictures)
    assert after["pertinence_operating_point{cheapest-lossless}"] == 1
    assert after["pertinence_queue_images"] == after["pertinence_requests_active"] == 0

    live = send(f"{server}/info").json["live"]
    answered = sum(value for name, value in after.items() if name.startswith("pertinence_answers_total"))
    assert live["answered"] == answered
    assert live["expert_shares"]["vit"] == pytest.approx(after["pertinence_answers_total{vit}"] / answered)


def test_what_is_served_is_described(server, model):
    assert send(f"{server}/health").json == {"status": "ok"}
    assert send(f"{server}/ready").json == {"status": "ready"}
    info = send(f"{server}/info").json
    assert info["labels"] == list(model.config.id2label.values())
    assert [expert["name"] for expert in info["experts"]] == model.config.expert_names
    assert [point["name"] for point in info["operating_points"]] == [point.name for point in model.front]
    assert [p["name"] for p in info["operating_points"] if p["is_used"]] == ["cheapest-lossless"]
    assert info["operating_point"] == "cheapest-lossless"
    api = send(f"{server}/openapi.json").json
    assert set(api["paths"]) == {"/", "/health", "/ready", "/info", "/metrics"}
    described = api["paths"]["/"]["post"]
    assert set(described["requestBody"]["content"]) >= {"application/json", "multipart/form-data", "image/jpeg"}
    assert {part["name"] for part in described["parameters"]} >= {"top_k", "details", "gmacs", "operating_point"}
    for status, path in ((404, "/models"), (404, "/page/index.html"), (405, "/health")):
        response = send(server + path, b"x" if status == 405 else None)
        assert response.status == status
        assert "see /docs" in response.json["error"]


def test_a_key_is_demanded_for_all_that_says_or_costs_anything(strict, pictures):
    content = png(pictures[0])
    for path, data in (("/", content), ("/info", None), ("/metrics", None)):
        for header in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY}):
            response = send(strict + path, data, **header)
            assert response.status == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "send it as `Authorization: Bearer KEY`" in response.json["error"]
        assert send(strict + path, data, Authorization=f"Bearer {KEY}").status == 200
    for path in ("/", "/docs", "/openapi.json", "/health", "/ready"):
        assert send(strict + path).status == 200
    assert InferenceClient(strict, token=KEY).image_classification(content)
    with pytest.raises(HfHubHTTPError, match="key is not known"):
        InferenceClient(strict, token="hf_other").image_classification(content)


@pytest.mark.parametrize("device", DEVICES)
def test_the_page_in_a_browser(server, model, pictures, file, tmp_path, device):
    out = model([pictures[-1]])
    names = model.config.expert_names
    with open_browser(device, tmp_path / "driver.log") as browser:
        browser.open(server)
        wait_for(lambda: "3 experts, 10 labels" in browser.text("#model"))
        browser.type_into("#file", str(file))
        wait_for(lambda: "Which experts ran, and why" in browser.text("#answer"))
        assert browser.text("#label") == model.config.id2label[out.logits[0].argmax().item()]
        ran = [name for name, did_run in zip(names, out.experts_run[0], strict=True) if did_run]
        assert f"Ran {' → '.join(ran)} at the operating point cheapest-lossless" in browser.text("#summary")
        assert f"After {ran[0]}" in browser.text("#decisions")
        wait_for(lambda: "images were answered" in browser.text("#live"))
        assert browser.text("#shares").count("%") == len(names)
        browser.run("document.querySelector('#point').value = 'fastest'")
        browser.run("document.querySelector('#point').dispatchEvent(new Event('change'))")
        wait_for(lambda: "at the operating point fastest" in browser.text("#summary"))
        text = tmp_path / "text.png"
        text.write_text("no image")
        browser.type_into("#file", str(text))
        wait_for(lambda: "no image that can be read" in browser.text("#error"))
        assert browser.run("return document.querySelector('#found').hidden")
        for path in ("", "docs"):
            browser.open(f"{server}/{path}")
            wait_for(lambda path=path: ("503" if path else "experts") in browser.text("main"))
            assert browser.run(BESIDE) == []
            assert browser.run(SMALL) == []
            browser.shoot(tmp_path / f"{device}{path}.png")
        assert [error for error in browser.errors() if "415" not in error and "favicon" not in error] == []


def test_requests_at_the_same_time_share_batches_and_get_their_own_answers(server, model, pictures):
    before = metrics(server)
    sent = [image for _ in range(8) for image in pictures]
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda image: send(server, png(image)), sent))
    expected = model(pictures).logits.softmax(1).max(1)
    for index, answer in enumerate(answers):
        assert answer.status == 200
        row = index % len(pictures)
        assert answer.json[0]["score"] == pytest.approx(expected.values[row].item(), abs=1e-4)
        assert answer.json[0]["label"] == model.config.id2label[expected.indices[row].item()]
    after = metrics(server)
    batches = after["pertinence_batch_images_count"] - before["pertinence_batch_images_count"]
    assert batches < len(sent), "some were answered together"
