"""What the contract suites share: the examples of plug-ins, and a search that uses four of them."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import warm_processes
from command_line import SETTINGS, run

import pertinence.search.baselines  # registers those of the package  # noqa: F401
from pertinence.evaluation.baselines import BASELINES
from pertinence.experts.backends.base import BACKENDS
from pertinence.routing.costs import COSTS
from pertinence.routing.registry import EVIDENCE
from pertinence.search.recipes.registry import RECIPES


PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
REGISTRIES = (RECIPES, EVIDENCE, BACKENDS, COSTS, BASELINES)


@pytest.fixture(scope="module")
def plug_in() -> Iterator[Callable[[str], ModuleType]]:
    """A function: imports an example, as users import modules of their own; forgotten at the end of the module."""
    before = [dict(registry._registered) for registry in REGISTRIES]

    def imported(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", PLUGINS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield imported
    for registry, registered in zip(REGISTRIES, before, strict=True):
        registry._registered = registered


@pytest.fixture(scope="session")
def workplace(digits, tmp_path_factory) -> Path:
    """A folder with a user's modules and images: run a command there."""
    folder = tmp_path_factory.mktemp("workplace")
    for path in PLUGINS.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "data").mkdir()
    digits[1].to_parquet(folder / "data" / "validation.parquet")
    digits[2].to_parquet(folder / "data" / "test.parquet")
    return folder


@pytest.fixture(scope="session")
def searched(workplace, digit_experts) -> Path:
    """What `pertinence search` saves with a recipe, an evidence, a cost and a baseline of the user's own."""
    run(
        "search", "--plugins", "recipe", "evidence", "cost", "baseline", "--recipe", "paper+margin",
        "--evidence", "energy", "--margin-steps", 10, "--cost", "megabytes", "--experts", *digit_experts,
        "--dataset", "data", "--split", "validation", "--report-split", "test", "--output-dir", "run", *SETTINGS,
        cwd=workplace,
    )  # fmt: skip
    return workplace / "run"


@pytest.fixture(scope="session")
def record(searched) -> dict:
    return json.loads((searched / "search_result.json").read_text())


@pytest.fixture(scope="session")
def evaluated(searched, workplace) -> dict:
    """What `pertinence evaluate` says of it."""
    run("evaluate", searched, "--plugins", "evidence", "cost", "--dataset", "data", "--split", "test",
        "--device", "cpu", "--output-dir", "evaluation", cwd=workplace)  # fmt: skip
    return json.loads((workplace / "evaluation" / "evaluation.json").read_text())


@pytest.fixture(scope="session")
def run_python() -> Callable[..., list]:
    """A function: runs a script in a fresh process, and gives what it prints as JSON, line by line."""

    def run_script(code: str, *arguments: object, cwd: Path) -> list:
        finished = warm_processes.run_python("-c", code, *arguments, cwd=cwd)
        assert finished.returncode == 0, finished.stderr
        return [json.loads(line) for line in finished.stdout.splitlines()]

    return run_script
