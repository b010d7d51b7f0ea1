"""Small experts from a large one: what `examples/distill_experts.py` makes, killed or not, and where it loads."""

from __future__ import annotations

import copy
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import metadata_load
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from pertinence import PertinenceForImageClassification
from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions


pytestmark = pytest.mark.nightly


SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distill_experts.py"
STUDENTS = [
    {
        "name": "vit",
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2},
        "epochs": 3,
    },
    {
        "name": "cnn",
        "architecture": "test_efficientnet",
        "image_size": 24,
        "epochs": 8,
        "learning_rate": 3e-3,
        "bf16": True,
    },
]


@pytest.fixture(scope="module")
def settings(digits, digit_experts, tmp_path_factory) -> dict[str, Any]:
    """A run that takes a few seconds."""
    folder = tmp_path_factory.mktemp("images")
    for split, images in (("train", digits[0]), ("validation", digits[2].select(range(300)))):
        images.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return {
        "teacher": str(digit_experts[2]),
        "dataset": str(folder),
        "validation_split": "validation",
        "students": STUDENTS,
        "image_size": 32,
        "views": 2,
        "flip": False,
        "batch_size": 16,
        "measure_every": 3,
        "licence": "apache-2.0",
    }


def configured(settings: dict[str, Any], folder: Path, **others: Any) -> list[str]:
    """The command line of a run."""
    path = folder / "distill.yaml"
    path.write_text(yaml.safe_dump(settings | {"output_dir": str(folder / "experts")} | others))
    return [str(SCRIPT), "--config", str(path)]


def distil(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory) -> Path:
    """Folder of both students, made without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        distil(patch, configured(settings, folder))
    return folder / "experts"


def load(folder: Path):
    return load_expert(ExpertReference.parse(folder), LoadOptions())


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_what_is_made_loads_everywhere_and_answers_the_same(made, digits, name):
    photos = [image.convert("RGB") for image in digits[2].select(range(8))["image"]]
    # A copy: the weights of a mapped file lie at any address, and kernels differ by that in the last bits.
    model = copy.deepcopy(AutoModelForImageClassification.from_pretrained(made / name))
    pixels = AutoImageProcessor.from_pretrained(made / name)(photos, return_tensors="pt")["pixel_values"]
    own = timm.create_model(f"local-dir:{made / name}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(own)
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        by_timm = own(torch.stack([timm.data.create_transform(**config)(photo) for photo in photos]))
    size = 32 if name == "vit" else 24
    assert pixels.shape == (8, 3, size, size)
    assert torch.equal(by_timm, expected)
    batch = torch.stack([torch.from_numpy(photo_array(photo)) for photo in photos])
    torch.testing.assert_close(load(made / name)(batch)[0], expected, atol=1e-5, rtol=0)
    assert list(model.config.id2label.values()) == list("0123456789")
    assert model.dtype == torch.float32


def photo_array(photo: Image.Image):
    import numpy as np

    return np.asarray(photo).transpose(2, 0, 1).copy()


def test_students_learn_from_the_teacher_and_say_what_they_are(made, settings):
    entries = [json.loads(line) for line in (made / "cnn.training" / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == list(range(1, 9))
    assert [entry["epoch"] for entry in entries if "accuracy" in entry] == [3, 6, 8]
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    assert entries[-1]["accuracy"] > 0.5
    text = (made / "cnn" / "README.md").read_text()
    assert f"| cnn | {100 * entries[-1]['accuracy']:.2f} % |" in text
    assert f"| {Path(settings['teacher']).name} | " in text
    assert metadata_load(made / "cnn" / "README.md")["license"] == "apache-2.0"
    assert load(made / "cnn").entry.licence == "apache-2.0"
    assert str(made.parent) not in text + (made / "cnn" / "config.json").read_text()


def test_the_teacher_said_it_of_the_very_pixels(made, settings):
    teacher = load(Path(settings["teacher"]))
    views = [load_file(made / "views" / f"view-{index}.safetensors") for index in range(2)]
    for view in views:
        assert view["pixels"].shape == (400, 3, 32, 32)
        torch.testing.assert_close(teacher(view["pixels"][:20])[0], view["logits"][:20], atol=1e-4, rtol=0)
    assert not torch.equal(views[0]["pixels"], views[1]["pixels"])
    assert torch.equal(views[0]["labels"], views[1]["labels"])


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(made, settings, tmp_path, monkeypatch):
    """Killed between two epochs; what the teacher said is kept, and what is made is not made again."""
    arguments = configured(settings, tmp_path)
    state = tmp_path / "experts" / "vit.training" / "state.safetensors"
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not state.is_file():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert 1 <= len((state.parent / "log.jsonl").read_text().splitlines()) < 3
    assert not (tmp_path / "experts" / "vit").exists()
    views = [tmp_path / "experts" / "views" / f"view-{index}.safetensors" for index in range(2)]
    before = [path.stat().st_mtime_ns for path in views]
    distil(monkeypatch, arguments)
    assert [path.stat().st_mtime_ns for path in views] == before
    for name, tolerance in (("vit", 5e-4), ("cnn", 2e-2)):  # the second computes in bfloat16
        expected = load_file(made / name / "model.safetensors")
        for key, tensor in load_file(tmp_path / "experts" / name / "model.safetensors").items():
            # Another process lays its memory out anew, which moves last bits; an epoch more or less moves far more.
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=tolerance)
    os.utime(tmp_path / "experts" / "vit" / "config.json", (0, 0))
    distil(monkeypatch, arguments)
    assert (tmp_path / "experts" / "vit" / "config.json").stat().st_mtime == 0


def test_a_pool_of_teacher_and_students(made, settings, digits):
    model = PertinenceForImageClassification.from_experts([made / "vit", made / "cnn", settings["teacher"]], 0.9)
    batch = torch.stack(
        [torch.from_numpy(photo_array(i.convert("RGB"))) for i in digits[2].select(range(30))["image"]]
    )
    assert model(batch).experts_run.any(0).tolist() == [True] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": None}, "name --teacher, --dataset and --students"),
        ({"students": [{"name": "vit", "size": 3}]}, "a student is not understood .*'size'.* name, architecture"),
        ({"students": [STUDENTS[0] | {"architecture": "no_such"}]}, "timm does not make student 'vit': .*no_such"),
        ({"students": [STUDENTS[0] | {"model_args": {"depht": 1}}]}, "timm does not make student 'vit': .*depht"),
        ({"only": ["swin"]}, "there is no student swin"),
        ({"dataset": "/no/such/folder"}, "data set '/no/such/folder' cannot be loaded"),
        ({"epochs": 3}, "has unknown settings: epochs"),
    ],
)
def test_what_is_not_understood_is_said_in_one_sentence(settings, tmp_path, monkeypatch, change, words):
    with pytest.raises(SystemExit, match=f"error: .*{words}") as refused:
        distil(monkeypatch, configured(settings, tmp_path, **change))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "experts" / "vit").exists()
