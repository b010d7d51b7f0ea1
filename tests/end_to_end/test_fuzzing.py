"""Files that nobody should trust: whatever is damaged, a model loads and works, or is refused clearly, in little time
and memory; and so is the record of a search.

A few hundred cases run here, the same every time. The long run, with other cases for every seed:

    FUZZ_CASES=20000 FUZZ_SEED=0 nice -n 19 uv run pytest tests/end_to_end/test_fuzzing.py -m nightly -s
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable

import pytest
import yaml
from fuzzing import (
    Case,
    DamagedFiles,
    damage_to_graphs,
    damage_to_model,
    damage_to_record,
    save_whole_model,
    use_graphs,
    use_model,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pertinence import DispatcherSearch, PertinenceError, PertinenceForImageClassification, SearchArguments
from pertinence.commands.main import parse
from pertinence.data.seen import SeenImages
from pertinence.evaluation.baselines import load_baselines
from pertinence.hub.bundle import collect
from pertinence.hub.configuration import open_config
from pertinence.hub.info import describe_model
from pertinence.search.folder import check_output_dir


pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of what failed, which is to be seen

Changed = dict[str, bytes | None]
SHOWN_EVERY = 500


def fuzz(
    use: Callable[[Changed], Case], cases: st.SearchStrategy[Changed], count: int, random: int | None = None
) -> None:
    """Try cases, and print what became of them; of a seed of their own, or the same every time."""
    tried: list[Case] = []

    @settings(
        max_examples=count,
        derandomize=random is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def check(changed: Changed) -> None:
        tried.append(use(changed))
        if len(tried) % SHOWN_EVERY == 0:
            print(describe(tried), flush=True)

    (check if random is None else seed(random)(check))()
    print(describe(tried))
    loaded = sum(case.outcome == "loaded" for case in tried)
    assert count / 50 < loaded < count - count / 50  # both kinds are tried


def describe(tried: list[Case]) -> str:
    """How many cases ended how, and what the dearest took."""
    outcomes = ", ".join(f"{count} {name}" for name, count in Counter(case.outcome for case in tried).most_common())
    slowest, largest = max(case.seconds for case in tried), max(case.memory for case in tried)
    return (
        f"{len(tried)} cases: {outcomes}; at most {slowest:.2f} s of computing, {largest / 2**20:.0f} MiB more memory"
    )


@pytest.fixture(scope="module")
def model(make_expert, tmp_path_factory) -> DamagedFiles:
    return DamagedFiles(save_whole_model(tmp_path_factory.mktemp("fuzzed"), make_expert))


@pytest.fixture(scope="module")
def use(model, images, tmp_path_factory) -> Callable[[Changed], Case]:
    photos, saved = images(2, 40), tmp_path_factory.mktemp("saved")

    def use(changed: Changed) -> Case:
        # Saved and loaded again is every fourth, by its bytes: the dearest part of a case that loads.
        is_saved = zlib.crc32(repr(sorted(changed.items())).encode()) % 4 == 0
        return model.use(changed, lambda: use_model(model.folder, photos, saved if is_saved else None))

    return use


def test_the_undamaged_model_works(use):
    assert use({}).outcome == "loaded"


def test_damaged_models_load_or_are_refused(use, model):
    fuzz(use, damage_to_model(model.files), 500)


@pytest.mark.nightly
def test_very_many_damaged_models_load_or_are_refused(use, model):
    count, random = int(os.environ.get("FUZZ_CASES", "20000")), int(os.environ.get("FUZZ_SEED", "0"))
    fuzz(use, damage_to_model(model.files), count, random)


@pytest.mark.parametrize(("count", "random"), [(80, None), pytest.param(5000, 0, marks=pytest.mark.nightly)])
def test_damaged_graphs_load_or_are_refused(make_expert, images, tmp_path, count, random):
    pool = [make_expert(tmp_path / name, name, 32) for name in ("test_convnext", "test_efficientnet")]
    PertinenceForImageClassification.from_experts(pool, 0.5).export_onnx(tmp_path / "model", images(256, 32))
    graphs = DamagedFiles(tmp_path / "model")
    photos = images(2, 40)
    assert graphs.use({}, lambda: use_graphs(graphs.folder, photos)).outcome == "loaded"
    fuzz(
        lambda changed: graphs.use(changed, lambda: use_graphs(graphs.folder, photos)),
        damage_to_graphs(graphs.files),
        count,
        random,
    )


# What lies beside a model


@pytest.fixture(scope="module")
def record(digits, digit_experts, tmp_path_factory) -> DamagedFiles:
    """The result of a small search."""
    folder = tmp_path_factory.mktemp("searched")
    args = SearchArguments(population=4, generations=1, device="cpu", cache_dir=str(folder / "cache"))
    result = DispatcherSearch(digit_experts, digits[1].select(range(200)), args).run()
    result.config = {"experts": [str(path) for path in digit_experts], "dataset": "someone/images", "split": "test",
                     "population": 4, "generations": 1, "output_dir": "runs"}  # fmt: skip
    result.save(folder / "run", save_experts=True)
    return DamagedFiles(folder / "run")


@pytest.mark.parametrize(("count", "random"), [(150, None), pytest.param(2000, 0, marks=pytest.mark.nightly)])
def test_damaged_records_are_read_or_refused(record, tmp_path, count, random):
    folder, table = record.folder, tmp_path / "table"
    table.mkdir()
    config = open_config(folder)
    stored = json.loads((folder / "search_result.json").read_text())["settings"]

    def read() -> None:
        """All that reads what lies beside a model; the first that refuses it ends the case."""
        (table / "search_result.json").write_bytes((folder / "search_result.json").read_bytes())
        assert describe_model(table)[1]
        check_output_dir(folder, stored)
        seen = SeenImages.load(folder)
        assert seen is None or seen.counts
        load_baselines(folder, len(config.experts), config.feature_sizes)
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                parse(["search", "--config", str(folder / "search.yaml")])
            except SystemExit as usage:  # argparse has said what is wrong
                raise PertinenceError("usage") from usage
        assert collect(folder, tmp_path).card("someone/model").startswith("---")

    fuzz(lambda changed: record.use(changed, read), damage_to_record(record.files), count, random)
    assert yaml.safe_load((folder / "search.yaml").read_text())["population"] == 4  # put back
