"""Checkpoints that nobody should trust: whatever is damaged, a model loads and works, or is refused clearly.

500 cases run here, the same every time. The long run, of other cases with every seed:

    nice -n 19 uv run pytest tests/test_fuzzing.py -m nightly -s --fuzz-cases 20000 --fuzz-seed 0
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import DamagedModel, damage, save_whole_model
from hypothesis import HealthCheck, given, seed, settings


@pytest.fixture(scope="module")
def model(make_expert, images, tmp_path_factory) -> DamagedModel:
    return DamagedModel(save_whole_model(tmp_path_factory.mktemp("fuzzed"), make_expert), images(2, 40))


@pytest.fixture(scope="module")
def fuzz(model, tmp_path_factory) -> Callable[..., None]:
    saved = tmp_path_factory.mktemp("saved")

    def run(cases: int, random: int | None = None) -> None:
        tried = []

        @settings(
            max_examples=cases,
            derandomize=random is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(damage(model.files))
        def check(changed: dict[str, bytes | None]) -> None:
            tried.append(model.use(changed, saved))

        (check if random is None else seed(random)(check))()
        slowest, largest = max(case.seconds for case in tried), max(case.memory for case in tried)
        print(f"{len(tried)} cases: {dict(Counter(case.outcome for case in tried).most_common())}")
        print(f"at most {slowest:.2f} s of computing and {largest / 2**20:.0f} MiB above what was in use before")
        assert min(Counter(case.outcome == "loaded" for case in tried).values()) > cases / 20  # both kinds are tried

    return run


def test_the_undamaged_model_works(model, tmp_path: Path):
    assert model.use({}, tmp_path).outcome == "loaded"


def test_damaged_models_load_or_are_refused(fuzz):
    fuzz(500)
