"""Pulling over HTTP: what is fetched, what needs no request, and what is said where something goes wrong."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import warm_processes
from huggingface_hub import snapshot_download

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence._version import INSTALL
from pertinence.commands.main import main


WEIGHTS = r"/tester/small/resolve/[^/]+/model\.safetensors"


@pytest.fixture(scope="module")
def repository(hub, tiny_experts) -> str:
    """A cascade of two experts from the Hub, on the Hub."""
    for name, folder in zip(("small", "large"), tiny_experts, strict=True):
        hub.add_model(f"tester/{name}", folder)
    model = PertinenceForImageClassification.from_experts(["tester/small", "tester/large"], thresholds=0.5)
    model.push_to_hub("tester/pulled", token=hub.token)
    return "tester/pulled"


@pytest.fixture(autouse=True)
def quick(no_pauses):
    """The client waits between its attempts; not here."""


def load(repo_id: str, cache: Path, **options) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(repo_id, cache_dir=str(cache), **options)


def refusal(repo_id: str, cache: Path, **options) -> str:
    with pytest.raises(PertinenceError) as refused:
        load(repo_id, cache, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def run_python(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own, with a cache of its own."""
    return warm_processes.run_python("-c", code, env={**os.environ, "HF_HOME": str(home), **environment})


# Requests


def test_info_fetches_the_config_alone(repository, hub, tmp_path, capsys):
    finished = run_python(
        f"import pertinence.commands.main as cli; cli.main(['info', {repository!r}, '--json'])", tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    hub.requests.clear()
    again = run_python(
        f"import pertinence.commands.main as cli; cli.main(['info', {repository!r}, '--json'])", tmp_path / "2"
    )
    fetched = {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path}
    assert fetched == {"config.json"}
    assert again.stdout == finished.stdout
    described = json.loads(finished.stdout)
    assert [entry["repo_id"] for entry in described["experts"]] == ["tester/small", "tester/large"]
    assert described["operating_point"] == "cascade"
    assert len(described["labels"]) == 10


@pytest.mark.parametrize(("option", "offline"), [("", "1"), (", local_files_only=True", "0")],
                         ids=["offline", "local-files-only"])  # fmt: skip
def test_a_warm_cache_needs_no_request(repository, hub, tmp_path, option, offline):
    code = (
        "import torch\nfrom pertinence import PertinenceForImageClassification\n"
        f"model = PertinenceForImageClassification.from_pretrained({repository!r}{{option}})\n"
        "print(model(torch.arange(27648).reshape(1, 3, 96, 96).to(torch.uint8)).logits.tolist())"
    )
    cold = run_python(code.format(option=""), tmp_path)
    assert cold.returncode == 0, cold.stderr
    hub.requests.clear()
    warm = run_python(code.format(option=option), tmp_path, HF_HUB_OFFLINE=offline)
    assert warm.returncode == 0, warm.stderr
    assert hub.requests == []
    assert warm.stdout == cold.stdout


def test_the_pipeline_needs_no_request_offline(repository, hub, tmp_path):
    code = (
        "import pertinence\nfrom PIL import Image\nfrom transformers import pipeline\n"
        f"classify = pipeline('image-classification', model={repository!r})\n"
        "print(classify(Image.new('RGB', (96, 96), 'red')))"
    )
    cold = run_python(code, tmp_path)
    assert cold.returncode == 0, cold.stderr
    hub.requests.clear()
    warm = run_python(code, tmp_path, HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert warm.stdout == cold.stdout


# Faults


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 1},
        {"delay": 0.5},
        {"truncate": 1000, "times": 1},
        {"reset": True, "times": 1},
    ],
    ids=["503-once", "slow", "truncated-once", "reset-once"],
)
def test_what_passes_is_got_over(repository, hub, tmp_path, images, fault):
    expected = load(repository, tmp_path / "sound")(images(2, 96)).logits
    with hub.fault(WEIGHTS, **fault) as happening:
        model = load(repository, tmp_path / "cache")
    assert happening.happened >= 1
    assert torch.equal(model(images(2, 96)).logits, expected)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 500}, "expert 'small': the Hub cannot serve tester/small now .it answered 500.: try again later"),
        ({"truncate": 1000}, "expert 'small': the connection to the Hub broke while tester/small was read: try again"),
        ({"reset": True}, "expert 'small': the connection to the Hub broke while tester/small was read: try again"),
        ({"corrupt": True}, "expert 'small': a file of tester/small arrived damaged.*: try again"),
    ],
    ids=["500", "truncated", "reset", "wrong-hash"],
)
def test_what_stays_is_said_and_the_cache_heals(repository, hub, tmp_path, images, fault, words):
    with hub.fault(WEIGHTS, **fault):
        assert re.search(words, refusal(repository, tmp_path))
    expected = load(repository, tmp_path / "sound")(images(2, 96)).logits
    assert torch.equal(load(repository, tmp_path)(images(2, 96)).logits, expected)


PLACES = {
    "config": r"/tester/pulled/resolve/[^/]+/config\.json",
    "heads": r"/tester/pulled/resolve/[^/]+/model\.safetensors",
    "expert-config": r"/tester/small/resolve/[^/]+/config\.json",
    "expert-list": r"/api/models/tester/small/.*",
}
"""Files of the model itself, and of an expert."""
FAULTS = {
    "500": {"status": 500},
    "truncated": {"truncate": 100},
    "reset": {"reset": True},
    "corrupted": {"corrupt": True},
    "late": {"delay": 1.5},
}


@pytest.fixture
def impatient(monkeypatch):
    """What takes half a second is too late."""
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", 0.5)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_every_file_is_tried_again(repository, hub, tmp_path, images, place, fault, request):
    if fault == "late":
        request.getfixturevalue("impatient")
    with hub.fault(PLACES[place], times=1, **FAULTS[fault]) as happening:
        model = load(repository, tmp_path)
    assert happening.happened == 1
    model(images(1, 96))


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "late"])
@pytest.mark.parametrize("place", PLACES)
def test_every_file_that_does_not_come_is_said_to_be_of_somebody(repository, hub, tmp_path, place, fault):
    with hub.fault(PLACES[place], **FAULTS[fault]):
        message = refusal(repository, tmp_path)
    assert ("expert 'small'" if place.startswith("expert") else "tester/pulled") in message
    assert "try again" in message
    load(repository, tmp_path)


def test_code_that_arrives_damaged_is_not_run(zoo, hub, tmp_path):
    for name in ("resnet8", "resnet20"):
        hub.add_model(f"tester/coded-{name}", zoo / "cifar10" / name)
    experts, code = ["tester/coded-resnet8", "tester/coded-resnet20"], r"/tester/coded-resnet8/resolve/.*\.py"
    options = {"thresholds": 0.5, "trust_remote_code": True, "cache_dir": str(tmp_path)}
    with hub.fault(code, corrupt=True) as happening:
        with pytest.raises(PertinenceError, match="expert 'coded-resnet8': a file of .* arrived damaged"):
            PertinenceForImageClassification.from_experts(experts, **options)
    assert happening.happened >= 3
    with hub.fault(code, corrupt=True, times=1):
        PertinenceForImageClassification.from_experts(experts, **options)


def test_damage_in_the_heads_is_said(repository, hub, tmp_path):
    with hub.fault(r"/tester/pulled/resolve/[^/]+/model\.safetensors", corrupt=True):
        assert "arrived damaged" in refusal(repository, tmp_path)
    load(repository, tmp_path)


# Who may read, and what is there


@pytest.fixture
def guarded(hub, tiny_experts, tmp_path) -> list[str]:
    """A cascade of two experts of its own, which a test may close."""
    for name, folder in zip(("first", "second"), tiny_experts, strict=True):
        hub.add_model(f"tester/{name}", folder)
    model = PertinenceForImageClassification.from_experts(["tester/first", "tester/second"], thresholds=0.5)
    model.push_to_hub("tester/guarded", token=hub.token)
    return ["tester/first", "tester/second"]


@pytest.mark.parametrize(
    ("closed", "words"),
    [
        ({"private": True}, "expert 'first': tester/first is neither .* pass a token if it is private"),
        ({"gated": True}, "expert 'first': tester/first is gated: ask for access on its page and pass a token"),
    ],
    ids=["private", "gated"],
)
def test_experts_that_need_a_token(guarded, hub, tiny_experts, tmp_path, closed, words):
    hub.add_model("tester/first", tiny_experts[0], **closed)
    assert re.search(words, refusal("tester/guarded", tmp_path))
    assert re.search(words, refusal("tester/guarded", tmp_path, token="hf_wrong"))
    assert load("tester/guarded", tmp_path, token=hub.token).config.expert_names == ["first", "second"]


def test_an_expert_whose_revision_vanished(guarded, hub, tmp_path):
    load("tester/guarded", tmp_path / "warm")
    sha = hub.commits("tester/first")[-1]
    assert hub.squash("tester/first") != sha
    message = refusal("tester/guarded", tmp_path / "cold")
    assert f"expert 'first': tester/first has no revision '{sha}' on the Hub: its owner has removed it" in message
    load("tester/guarded", tmp_path / "warm")  # what was fetched before goes on to work


def test_what_is_not_cached_offline(guarded, hub, tmp_path):
    snapshot_download("tester/guarded", cache_dir=tmp_path)
    message = refusal("tester/guarded", tmp_path, local_files_only=True)
    assert "expert 'first': tester/first is not in the cache, and the Hub cannot be reached: connect" in message


def test_copies_that_cannot_be_fetched_are_named(hub, tiny_experts, tmp_path):
    model = PertinenceForImageClassification.from_experts(tiny_experts, thresholds=0.5)
    model.push_to_hub("tester/embedded", save_experts=True, token=hub.token)
    with hub.fault(r"/tester/embedded/resolve/[^/]+/experts/0/model\.safetensors", status=502):
        assert "expert 'vit': the Hub cannot serve tester/embedded now" in refusal("tester/embedded", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tester/nowhere"], "tester/nowhere is neither a local folder nor a repository on the Hub"),
        (["tester/pulled", "--revision", "v9"], "tester/pulled has no revision 'v9' on the Hub"),
        (["tester/closed"], "tester/closed is gated: ask for access"),
    ],
    ids=str,
)
def test_info_says_in_one_line_what_is_wrong(repository, hub, tiny_experts, arguments, words, capsys):
    hub.add_model("tester/closed", tiny_experts[0], gated=True)
    assert main(["info", *arguments]) == 1
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words", [["info"], ["evaluate", "--dataset", "data", "--split", "test"]], ids=str)
@pytest.mark.parametrize("place", ["./runs/m", "runs/m/best", "/runs/m"])
def test_a_mistyped_path_does_not_ask_the_hub(words, place, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    assert main([words[0], place, *words[1:]]) == 1
    assert capsys.readouterr().err.startswith(f"error: there is no folder {place} here, and no repository on the Hub")
    assert not hub.requests


def test_a_mistyped_path_that_may_be_an_id_is_named_when_the_hub_cannot_be_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PertinenceError, match="^there is no folder runs/m here, so it was taken as a repos"):
        PertinenceForImageClassification.from_pretrained("runs/m", local_files_only=True)
    with pytest.raises(PertinenceError, match="'x': there is no folder experts/x here, so it was taken as a repos"):
        PertinenceForImageClassification.from_experts(["experts/x", "experts/y"], 0.5, local_files_only=True)


# Without the package


def test_without_the_import_the_error_names_what_the_card_explains(repository, hub, tmp_path):
    code = f"from transformers import pipeline\npipeline('image-classification', model={repository!r})"
    finished = run_python(code, tmp_path)
    assert finished.returncode == 1
    assert "model type `pertinence`" in finished.stderr
    card = hub.files(repository)["README.md"].decode()
    metadata, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "- pertinence\n" in metadata
    assert "library_name: transformers" in metadata  # else pipeline() without a task would refuse it
    first_lines = text.strip().splitlines()[:8]
    assert any(INSTALL in line for line in first_lines)
    assert any(line.startswith("import pertinence") for line in first_lines)
