"""What an installed package offers under the entry points `pertinence.plugins`: imported when it is asked for by name,
and not before."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from warm_processes import run_python

from pertinence import PertinenceError, PertinenceForImageClassification, SearchArguments
from pertinence.routing.costs import COSTS
from pertinence.routing.registry import EVIDENCE


RECIPE = """
from dataclasses import dataclass, field

from pertinence import register_recipe


@dataclass
class Arguments:
    depth: int = field(default=2, metadata={"help": "Of the trees."})


register_recipe("trees", "my_package.nowhere:Trees", Arguments)
"""
ENTRY_POINTS = """
[pertinence.plugins]
recipe.trees = my_package.recipes
recipe.broken = my_package.broken
recipe.silent = my_package
evidence.energy = my_package.evidence
cost.megabytes = my_package.cost

[another.group]
recipe.others = my_package.others
"""
SEARCH = """
import atexit, sys
from pertinence_cli import main

atexit.register(lambda: print([name for name in sys.modules if name.startswith("my_package")]))
sys.path.insert(0, sys.argv.pop(1))
sys.exit(main())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory, workplace) -> Path:
    """A folder with an installed package: the modules, and what pip writes of them."""
    site = tmp_path_factory.mktemp("site")
    package, info = site / "my_package", site / "my_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "recipes.py").write_text(RECIPE)
    (package / "broken.py").write_text("import no_such_module")
    for example in ("evidence", "cost"):
        (package / f"{example}.py").write_text((workplace / f"{example}.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def search(site: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run `pertinence search` beside the package, and what of the package is imported then."""
    finished = run_python("-c", SEARCH, site, "search", *arguments)
    return finished, ast.literal_eval(finished.stdout.splitlines()[-1])


def test_help_names_what_there_is_and_imports_nothing(site):
    shown, imported = search(site, "--help")
    assert shown.returncode == 0, shown.stderr
    assert imported == []
    recipes = re.search("--recipe {(.*)}", shown.stdout)[1].split(",")
    assert {*recipes} == {"cascade", "paper", "both", "trees", "broken", "silent"}
    assert "megabytes" in shown.stdout
    assert "others" not in shown.stdout
    assert "--depth" not in shown.stdout


def test_what_is_asked_for_is_imported_alone(site):
    shown, imported = search(site, "--recipe", "trees", "--help")
    assert shown.returncode == 0, shown.stderr
    assert imported == ["my_package", "my_package.recipes"]
    assert "Of the trees (default: 2)." in shown.stdout


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("broken", "error: the plugin my_package.broken cannot be imported (ModuleNotFoundError: No module named"),
        ("silent", "error: recipe='silent' is not one of cascade, paper, trees, broken, silent"),
    ],
)
def test_a_package_that_fails_is_one_sentence(site, recipe, sentence):
    failed, _ = search(site, "--recipe", recipe, "--help")
    assert failed.returncode == 1
    assert failed.stderr.startswith(sentence)
    assert len(failed.stderr.splitlines()) == 1


def test_a_saved_model_imports_nothing_even_where_a_package_offers_what_it_needs(
    site, searched, record, plug_in, monkeypatch
):
    """`plug_in` forgets at the end what is registered here."""
    monkeypatch.syspath_prepend(site)
    assert EVIDENCE.declared == ["energy"]
    with pytest.raises(
        PertinenceError, match="evidence 'energy' is not one of features, confidence, mix, both, which are regist"
    ):
        PertinenceForImageClassification.from_pretrained(searched)
    SearchArguments(recipe="paper", evidence="energy", cost="megabytes")
    assert "my_package" not in sys.modules, "a search has not begun"
    assert EVIDENCE.get("energy").__class__.__module__ == "my_package.evidence"
    assert COSTS.get("megabytes").__class__.__module__ == "my_package.cost"
    assert len(PertinenceForImageClassification.from_pretrained(searched).front) == len(record["front"])
