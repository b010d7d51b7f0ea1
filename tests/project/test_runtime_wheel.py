"""The wheel `pertinence-runtime`, built from this source and installed alone: it runs without torch, with the same
answers as the full package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pertinence import PertinenceImageProcessor


ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "pertinence_runtime"
HEAVY = ("torch", "torchvision", "transformers", "timm", "pandas", "matplotlib", "datasets", "psutil")
ASK = """
import importlib, json, pkgutil, sys
import pertinence_runtime
for module in pkgutil.walk_packages(pertinence_runtime.__path__, "pertinence_runtime."):
    importlib.import_module(module.name)
late = "onnxruntime" not in sys.modules
model = pertinence_runtime.load(sys.argv[1])
answers = {
    point.name: [
        [answer.label, answer.experts_run, answer.gmacs, answer.logits.tolist()]
        for answer in model(sys.argv[2:], operating_point=point.name)
    ]
    for point in model.front
}
try:
    model.set_budget(gmacs=0)
except pertinence_runtime.PertinenceError as error:
    refused = str(error)
print(json.dumps({
    "version": pertinence_runtime.__version__, "late": late, "modules": list(sys.modules), "answers": answers,
    "front": str(model.front), "refused": refused,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=SOURCE, check=True)
    (path,) = folder.glob("pertinence_runtime-*-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and its dependencies alone."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not on the path")
    folder = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, wheel], check=True)
    return python


def test_the_modules_of_the_wheel_are_those_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".py")]
        for name in modules:
            _, *parts = name.split("/")
            source = SOURCE if parts == ["__init__.py"] else ROOT / "src" / "pertinence"
            assert archive.read(name) == source.joinpath(*parts).read_bytes()
    assert {"pertinence_runtime/runtime/model.py", "pertinence_runtime/routing/sweep.py"} <= set(modules)


def test_its_dependencies_have_the_bounds_of_the_package() -> None:
    read = [tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (SOURCE, ROOT)]
    known = {*read[1]["dependencies"], *read[1]["optional-dependencies"]["onnx"]}
    assert set(read[0]["dependencies"]) <= known
    assert read[0]["requires-python"] == read[1]["requires-python"]


def test_without_torch_it_answers_as_the_full_package(exported, python: Path, tmp_path: Path) -> None:
    generator, paths = np.random.default_rng(3), []
    for index in range(12):
        small = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        paths.append(str(tmp_path / f"{index}.png"))
        small.resize((72, 72), Image.Resampling.BILINEAR).save(paths[-1])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-W", "error", "-c", ASK, exported.folder, *paths]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    got = json.loads(finished.stdout)
    assert not set(HEAVY) & set(got["modules"])
    assert got["late"], "ONNX Runtime is imported before a graph is opened"
    front = exported.full.front
    assert got["front"] == str(front)
    assert got["refused"].startswith("no operating point costs at most 0 GMACs")
    tensors, names = PertinenceImageProcessor()(paths)["images"], front.expert_names
    for point in front:
        expected = exported.full(tensors, operating_point=point.name)
        for row, (label, ran, gmacs, logits) in enumerate(got["answers"][point.name]):
            assert label == exported.full.config.id2label[int(expected.logits[row].argmax())]
            assert ran == [name for name, has in zip(names, expected.experts_run[row], strict=True) if has]
            assert gmacs == pytest.approx(expected.gmacs[row].item(), rel=1e-6)
            np.testing.assert_allclose(logits, expected.logits[row], atol=1e-4)


def test_the_full_package_offers_the_runtime_and_imports_it_late() -> None:
    code = (
        "import sys, pertinence; assert 'onnxruntime' not in sys.modules; "
        "import pertinence.runtime; assert 'pertinence.runtime.model' not in sys.modules; "
        "from pertinence.runtime import load, RuntimeModel; assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
