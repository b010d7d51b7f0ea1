"""The searches in `examples/paper`: a small part of each is run, with small experts and few images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pertinence import PertinenceForImageClassification
from pertinence.commands.main import main


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((EXAMPLES / "paper").glob("*.yaml"))}
SMALL = "--population 4 --generations 1 --epochs 1 --no-baselines --device cpu".split()
PAPER = {"recipe": "paper", "population": 50, "generations": 50, "epochs": 20, "evidence": "features"}


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory) -> str:
    """A folder with the splits that the CIFAR pools have."""
    folder = tmp_path_factory.mktemp("images")
    digits[1].select(range(200)).to_parquet(folder / "validation-00000-of-00001.parquet")
    digits[2].select(range(100)).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


def search(name: str, images: str, experts: list[Path], folder: Path, *flags: str) -> dict:
    """The record of a search of one of the configurations."""
    named = ["--experts", *map(str, experts), "--dataset", images, "--output-dir", str(folder)]
    assert main(["search", "--config", str(EXAMPLES / "paper" / f"{name}.yaml"), *named, *SMALL, *flags]) == 0
    return json.loads((folder / "search_result.json").read_text())


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "vit"])
def test_the_settings_are_those_of_the_paper(name):
    assert PAPER.items() <= CONFIGS[name].items()


def test_the_cifar_pools_are_those_that_the_zoo_builds():
    pools = yaml.safe_load((EXAMPLES / "zoo" / "sources.yaml").read_text())
    for name in ("cifar10", "cifar100"):
        assert CONFIGS[name]["experts"] == [f"runs/zoo/{name}/{expert}" for expert in pools[name]["experts"]]
        assert CONFIGS[name]["dataset"] == f"runs/zoo/{name}/data"
    assert CONFIGS["cifar10"].keys() == CONFIGS["cifar100"].keys()
    assert CONFIGS["vit"]["experts"] == CONFIGS["vit-cascade"]["experts"]


@pytest.mark.parametrize("name", ["cifar10", "vit", "vit-cascade"])
def test_a_small_part_of_a_search(name, images, digit_experts, tmp_path):
    stem = ["--stem", str(digit_experts[0])] if name == "vit" else []
    record = search(name, images, digit_experts[len(stem) // 2 :], tmp_path / "run", *stem)
    assert record["images"]["report"] == (100 if name == "cifar10" else 80)  # a split, or a part of the images
    config = PertinenceForImageClassification.from_pretrained(tmp_path / "run").config
    assert (config.stem is not None) == (name == "vit")
    assert record["settings"]["recipe"] == ("cascade" if name == "vit-cascade" else "paper")
