"""What is released: the contents of the wheel, and the recipe that builds and tries it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from wheel_contents import TEMPLATE, problems


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (path,) = folder.glob("pertinence-*-py3-none-any.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert problems(wheel) == []
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {"pertinence/py.typed", TEMPLATE} <= set(names)
        assert archive.read(TEMPLATE) == (ROOT / "hub_cards" / "model_card.md.jinja").read_bytes()
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]
    modules = (ROOT / "src" / "pertinence").rglob("__init__.py")
    packages = {path.parent.relative_to(ROOT / "src").as_posix() for path in modules}
    assert packages == {name.removesuffix("/__init__.py") for name in names if name.endswith("/__init__.py")}


def test_a_wheel_with_too_much_or_too_little_is_noticed(wheel: Path, tmp_path: Path) -> None:
    other = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as read, zipfile.ZipFile(other, "w") as written:
        for name in read.namelist():
            if name != "pertinence/py.typed":
                written.writestr(name, read.read(name))
        written.writestr("tests/conftest.py", "")
    assert problems(other) == ["pertinence/py.typed is missing", "tests/conftest.py does not belong there"]


@pytest.mark.nightly
def test_the_release_recipe(tmp_path: Path) -> None:
    if shutil.which("uv") is None:
        pytest.skip("uv is not on the path")
    finished = subprocess.run([ROOT / ".ci" / "release", tmp_path], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert {path.suffix for path in tmp_path.iterdir()} >= {".whl", ".gz"}
    for words in ("fewer operations than resnet10t", "3 experts, 10 labels"):
        assert words in finished.stdout


def test_the_space_installs_the_wheel_of_this_version(wheel: Path) -> None:
    requirements = (ROOT / "examples" / "space" / "requirements.txt").read_text().split()
    assert requirements == [f"./{wheel.name}"], "the recipe of a release changes it, or names the index"
