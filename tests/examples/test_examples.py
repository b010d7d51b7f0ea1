"""The examples, run as a user runs them, on the Hub of this machine; and what README and docs say."""

from __future__ import annotations

import io
import json
import re
import runpy
import sys
import textwrap
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

import pertinence
from pertinence import PertinenceForImageClassification, PertinenceImageProcessor


ROOT = Path(__file__).resolve().parents[2]
POOL = {"small": "test_efficientnet", "middle": "test_vit", "large": "test_resnet"}
EXPERTS = [f"tester/digits-{name}" for name in POOL]


@pytest.fixture(scope="module", autouse=True)
def token(hub):
    """What `hf auth login` would leave."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", hub.token)
        yield


@pytest.fixture(scope="module")
def images_on_hub(hub, digits, token) -> str:
    """400 digits that no expert was trained on, under their name on the Hub."""
    digits[1].select(range(400)).push_to_hub("tester/digits", split="test")
    return "tester/digits"


@pytest.fixture(scope="module")
def experts_on_hub(hub, digit_experts) -> list[str]:
    for name, folder in zip(EXPERTS, digit_experts, strict=True):
        hub.add_model(name, folder)
    return EXPERTS


@pytest.fixture(scope="module")
def searched(experts_on_hub, images_on_hub, tmp_path_factory) -> tuple[str, str]:
    """Where the example of a search pushed its result to, and what it printed."""
    arguments = ["--experts", *experts_on_hub, "--dataset", images_on_hub, "--image-limit", "300"]
    folder = tmp_path_factory.mktemp("from-hub") / "run"
    repo_id = "tester/pertinence-digits"
    return repo_id, run_example("search_from_hub", *arguments, "--output-dir", folder, "--push-to-hub", repo_id)


@pytest.fixture
def pictures(digits, tmp_path) -> list[str]:
    """Files of three digits that nothing has seen."""
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for path, image in zip(paths, digits[2]["image"], strict=False):
        image.save(path)
    return paths


def run_example(name: str, *arguments: object) -> str:
    """What an example prints."""
    return run_script(ROOT / "examples" / f"{name}.py", *arguments)


def run_script(path: Path, *arguments: object) -> str:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
    return printed.getvalue()


def test_search_from_hub(searched, hub):
    repo_id, printed = searched
    assert "oracle" in printed
    assert f"{repo_id}/commit/{hub.commits(repo_id)[-1]}" in printed
    assert {"README.md", "config.json", "search_result.json", "front.png"} <= set(hub.files(repo_id))
    record = json.loads(hub.files(repo_id)["search_result.json"])
    assert record["images"]["select"] + record["images"]["report"] == 300


def test_classify(searched, pictures):
    model = PertinenceForImageClassification.from_pretrained(searched[0])
    budget = 1.01 * model.front[0].select.gmacs
    printed = run_example("classify", *pictures, "--model", searched[0], "--gmacs", budget)
    assert f"Operating point: {model.set_budget(gmacs=budget).name}" in printed
    out = model(model_images(pictures))
    for path, logits, gmacs in zip(pictures, out.logits, out.gmacs.tolist(), strict=True):
        assert f"{path}: {model.config.id2label[logits.argmax().item()]} " in printed
        assert f"{path}: ran digits-small; {gmacs:.4g} GMACs" in printed


def model_images(pictures: list[str]) -> list[torch.Tensor]:
    return PertinenceImageProcessor()(pictures)["images"]


def test_streaming(searched, digits, tmp_path):
    """Two scenes of four frames; the animation has them, too."""
    frames = [image.convert("RGB") for image in digits[2]["image"][:2] for _ in range(4)]
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{index}.png")
    printed = run_example("streaming", tmp_path / "frames", "--model", searched[0], "--scene-change", "0.01")
    assert [line.split("  ")[-2].strip() for line in printed.splitlines()[:-1]] == (["decided"] + ["goes on"] * 3) * 2
    assert "2 decisions on 8 frames" in printed
    # An animation that repeats a frame shows it once, for longer.
    frames[0].save(tmp_path / "clip.png", save_all=True, append_images=[frames[4], frames[0], frames[4]])
    printed = run_example("streaming", tmp_path / "clip.png", "--model", searched[0], "--interval", "2")
    assert "2 decisions on 4 frames" in printed


def test_label_free(experts_on_hub, hub, digits, tmp_path):
    """A folder of image files, which have no labels."""
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for index, image in enumerate(digits[1].select(range(200))["image"]):
        image.save(folder / f"{index:03}.png")
    arguments = ["--experts", *experts_on_hub, "--dataset", folder, "--max-loss", "0.2"]
    printed = run_example("label_free", *arguments, "--output-dir", tmp_path / "run")
    name, agreement = re.search(r"^(\S+): agrees on (\S+) % of unseen images, saves -?\d+ %", printed, re.M).groups()
    model = PertinenceForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.operating_point == name
    report = model.front.find(name).report
    assert (report.measure, f"{100 * report.accuracy:.2f}") == ("agreement", agreement)


def test_three_resolutions(experts_on_hub, images_on_hub, tmp_path):
    arguments = ["--expert", experts_on_hub[2], "--sizes", 32, 48, "--dataset", images_on_hub, "--split", "test"]
    printed = run_example("three_resolutions", *arguments, "--output-dir", tmp_path / "run")
    model = PertinenceForImageClassification.from_pretrained(tmp_path / "run")
    one = sum(parameter.numel() for parameter in model.experts[0].parameters())
    assert f"3 experts, {one:,} parameters in all" in printed
    transforms = [entry["transform"] for entry in model.config.experts]
    assert [transform["size"] for transform in transforms] == [[32, 32], [48, 48], [64, 64]]
    assert [transform.get("window") for transform in transforms] == [None] * 3  # resized, not cropped


@pytest.mark.nightly
def test_fine_tune_experts(hub, make_expert, digits, tmp_path):
    """Checkpoints with another number of labels get a new head and learn something."""
    for name, seed in (("test_efficientnet", 1), ("test_resnet", 2)):
        hub.add_model(f"tester/{name}", make_expert(tmp_path / name, name, 32, ["cat", "dog", "ship"], seed))
    checkpoints = ["tester/test_efficientnet", "tester/test_resnet"]
    printed = run_example("fine_tune_experts", "--checkpoints", *checkpoints, "--output-dir", tmp_path / "run")
    assert "test_resnet" in printed
    (tmp_path / "run" / "experts").rename(tmp_path / "elsewhere")  # the model has copies
    model = PertinenceForImageClassification.from_pretrained(tmp_path / "run" / "model")
    assert list(model.config.id2label.values()) == list("0123456789")
    assert max(entry["report"]["accuracy"] for entry in model.config.experts) > 0.5
    unseen = digits[2].select(range(100))
    out = model(model_images([image.convert("RGB") for image in unseen["image"]]))
    assert (out.logits.argmax(1) == torch.tensor(unseen["label"])).float().mean() > 0.5


def test_the_readme_says_what_works(
    searched, experts_on_hub, hub, pictures, digits, digit_experts, tmp_path, monkeypatch
):
    """The Python of "Use a searched model", block after block, where its files and Hub ids are what it says; and the
    cascade without a search of docs/searching.md."""
    monkeypatch.chdir(tmp_path)
    for name in ("resnet8", "resnet56"):
        hub.add_model(f"user/{name}", digit_experts[0 if name == "resnet8" else 2])
    PertinenceForImageClassification.from_pretrained(searched[0]).save_pretrained("runs/demo/model")
    for path, name in zip(pictures, ("image.png", "other.png"), strict=False):
        Path(path).rename(name)
    readme = (ROOT / "README.md").read_text()
    section = re.search(r"^## Use a searched model$(.*?)^## ", readme, re.M | re.S)[1]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    searching = (ROOT / "docs" / "searching.md").read_text()
    indented = re.findall(r"^    ```python\n(    model = .*?from_experts.*?)^    ```", searching, re.M | re.S)
    blocks += map(textwrap.dedent, indented)
    assert len(blocks) == 3
    names = {"images": torch.stack(model_images(["image.png", "other.png"]))}
    for block in blocks:
        exec(block, names)
    assert len(names["out"].logits) == 2
    assert names["model"].config.expert_names == ["resnet8", "resnet56"]
    assert (tmp_path / "cascade" / "config.json").is_file()


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: pertinence\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted(named) == sorted(pertinence.__all__)


def test_pictures_are_drawn_again_from_a_record(searched, hub, tmp_path):
    files = hub.files(searched[0])
    (tmp_path / "search_result.json").write_bytes(files["search_result.json"])
    run_script(ROOT / "hub_cards" / "redraw.py", tmp_path)
    for name in ("front.png", "shares.png"):
        assert (tmp_path / name).read_bytes() == files[name]


def test_the_figure_at_the_top_is_drawn_from_a_record(searched, hub, tmp_path):
    (tmp_path / "record.json").write_bytes(hub.files(searched[0])["search_result.json"])
    run_script(ROOT / "docs" / "front_figure.py", tmp_path / "record.json", tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as figure:
        assert figure.size == (880, 440)
