"""The examples in docstrings, run as they stand, with small real models in the place of what they name."""

import doctest
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_hub import LocalHub

from pertinence import PertinenceForImageClassification


ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def names(
    hub: LocalHub, digits: tuple, digit_experts: list[Path], images: Callable[..., torch.Tensor]
) -> dict[str, Any]:
    """What examples may use without making it: a model, images, a data set, and two experts on the Hub."""
    hub.add_model("user/resnet8", digit_experts[0])
    hub.add_model("user/resnet56", digit_experts[2])
    frame = images(1, 48)[0]
    return {
        "model": PertinenceForImageClassification.from_pretrained(ROOT / "tests" / "fixtures" / "format_1"),
        "stream": images(12, 32).split(4),
        "frames": [frame] * 60,
        "dataset": digits[1].select(range(300)),
    }


@pytest.mark.usefixtures("registered_recipes")
@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_show(
    module: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = importlib.import_module(module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    printed: list[str] = []
    examples = [test for test in doctest.DocTestFinder().find(loaded, extraglobs=names) if test.examples]
    assert examples
    for example in examples:
        runner.run(example, out=printed.append, clear_globs=False)
    assert not runner.failures, "".join(printed)
