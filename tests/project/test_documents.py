"""What the documents say of the code is so: figures are current, files that are named exist."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).resolve().parents[2]
PLACES = (ROOT, ROOT / "src" / "pertinence", ROOT / "docs")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture_figure", ROOT / "docs" / "architecture_figure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["architecture.svg", "roads.svg"])
def test_the_figures_of_the_architecture_are_current(figure: ModuleType, name: str) -> None:
    shown, now = figure.drawn(ROOT / "docs" / name), figure.read_floors()
    assert shown == now, "draw them again: uv run python docs/architecture_figure.py"


def test_the_figures_show_every_package_and_only_modules_that_exist(figure: ModuleType) -> None:
    floors = figure.read_floors()["floors"]
    assert {floor["name"] for floor in floors} == {path.parent.name for path in figure.PACKAGE.glob("*/__init__.py")}
    assert all(floor["role"] for floor in floors)
    for road in figure.ROADS.values():
        for _, module in road:
            assert (figure.PACKAGE / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_figures_can_be_drawn(figure: ModuleType) -> None:
    house = figure.read_floors()
    assert len(figure.draw_floors(house).axes[0].texts) > 2 * len(house["floors"])
    assert len(figure.draw_roads(house).axes[0].texts) > sum(map(len, house["roads"].values()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_exist(document: Path) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|yaml|yml|toml|jinja|json))`", document.read_text("utf-8"))
    missing = {name for name in named if not any((place / name).is_file() for place in PLACES)}
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#[^)]*)?\)", text)
    missing = {link for link in links if link and not (document.parent / link).exists()}
    assert missing <= ({"index.md"} if document.parent.name == "docs" else set())


def test_every_example_of_a_plug_in_is_shown():
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    examples = {path.name for path in (ROOT / "examples" / "plugins").glob("*.py")}
    assert set(re.findall(r'^--8<-- "(.*)"$', text, re.MULTILINE)) == examples
