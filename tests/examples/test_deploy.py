"""The folder `deploy`: its command runs without torch, and its Dockerfile copies what there is."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from pertinence import PertinenceForImageClassification


ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder with the package as it is in the wheel."""
    source, folder = ROOT / "src" / "pertinence_runtime", tmp_path_factory.mktemp("wheel")
    targets = tomllib.loads((source / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    for origin, target in targets["wheel"]["force-include"].items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / origin).is_dir() else shutil.copyfile
        copy(source / origin, folder / target)
    # In the place of torch and transformers, which this environment has, there is nothing.
    for name in ("torch", "transformers"):
        (folder / f"{name}.py").write_text("raise ImportError('the runtime needs neither torch nor transformers')")
    return folder


@pytest.fixture(scope="module")
def model(make_expert, images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    experts = [make_expert(folder / name, name, 64) for name in ("test_convnext", "test_resnet")]
    model = PertinenceForImageClassification.from_experts(experts, 0.6)
    model.export_onnx(folder / "model", images(256, 64))
    return folder / "model"


def classify(wheel: Path, *words: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(wheel), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, DEPLOY / "classify.py", *words]
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)


def test_its_command_answers_as_the_model_does(wheel, model, images, tmp_path):
    files = []
    for index, image in enumerate(images(4, 64, seed=3)):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    finished = classify(wheel, model, *files)
    assert finished.returncode == 0, finished.stderr
    full = PertinenceForImageClassification.from_pretrained(model)
    out = full(images(4, 64, seed=3))
    names = full.config.expert_names
    for line, file, logits, expert in zip(
        finished.stdout.splitlines(), files, out.logits, out.expert_indices, strict=True
    ):
        answer = int(logits.argmax())
        score = f"{logits.softmax(0)[answer]:.3f}"
        assert line.split("\t") == [str(file), full.config.id2label[answer], score, names[int(expert)]]


def test_its_command_ends_in_one_sentence(wheel, model, tmp_path):
    finished = classify(wheel, model, tmp_path / "nothing.png")
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nothing.png" in line


def test_its_dockerfile_copies_what_the_commands_above_it_make():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY ")]
    made = " ".join(re.findall(r"--(?:out|output)-dir deploy/(\S+)", "\n".join(lines)))
    assert made == "dist model"
    for name in copied:
        assert (DEPLOY / name).is_file() or Path(name).parts[0] in made.split()
    assert lines.index("USER runner") < next(i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert (ROOT / ".gitignore").read_text().splitlines().count("dist/") == 1
