"""The genetic algorithm: killed and continued, and split over processes, it finds the same, bit for bit."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from warm_processes import run_python

from pertinence import PredictionTable, SearchArguments, search_predictions
from pertinence.commands.main import main
from pertinence.evaluation.candidates import load_candidates, save_candidates, static_candidates
from pertinence.evaluation.outcomes import evaluate_experts
from pertinence.search.evolution import evolve


SETTINGS = ["--population", "12", "--generations", "6", "--recipe", "both", "--epochs", "3", "--device", "cpu"]
MODELS = {"small": 1.0, "medium": 3.0, "large": 10.0}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Folder of a table of three models' scores, with its costs."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("search", 500), ("report", 300)):
        labels = rng.integers(0, 5, count)
        arrays[f"{split}_label"] = labels
        ease = rng.random((count, 1)) * np.eye(5)[labels]
        for name, skill in zip(MODELS, (3, 5, 8), strict=True):
            arrays[f"{split}_{name}"] = (skill * ease + rng.normal(size=(count, 5))).astype(np.float32)
    np.savez(folder / "predictions.npz", **arrays)
    (folder / "costs.json").write_text(json.dumps(MODELS))
    return folder


def command(table: Path, output: Path, *flags: str, processes: int = 0) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes else []
    return [
        sys.executable, *launcher, "-m", "pertinence", "search", "--predictions", str(table / "predictions.npz"),
        "--costs", str(table / "costs.json"), "--split", "search", "--report-split", "report", "--output-dir",
        str(output), *SETTINGS, *flags,
    ]  # fmt: skip


def run(*arguments, ok: bool = True, env: dict[str, str] | None = None, **named) -> subprocess.CompletedProcess:
    finished = run_python(*command(*arguments, **named)[1:], env=os.environ | (env or {}))
    assert (finished.returncode == 0) is ok, finished.stderr
    return finished


def found(output: Path) -> dict:
    record = json.loads((output / "search_result.json").read_text())
    record.pop("run")
    return record


@pytest.fixture(scope="module")
def expected(table, tmp_path_factory) -> Path:
    """The result of a search that nothing disturbed."""
    output = tmp_path_factory.mktemp("expected") / "run"
    run(table, output)
    return output


@pytest.mark.nightly
def test_killed_again_and_again_it_ends_as_if_it_never_was(table, expected, tmp_path):
    output, rng, kills = tmp_path / "run", random.Random(0), 0
    while kills < 4:
        process = subprocess.Popen(command(table, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        state = output / "search_state"
        known = len(list(state.glob("*"))) if state.is_dir() else 0
        # Let it come so far that it wrote something new, then a little further.
        while process.poll() is None and (len(list(state.glob("*"))) if state.is_dir() else 0) <= known:
            time.sleep(0.02)
        time.sleep(rng.random())
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (output / "search_result.json").exists()
    assert kills
    if not (output / "search_result.json").exists():
        run(table, output)
    assert found(output) == found(expected)
    assert (
        load_candidates(output / "baselines.safetensors")[1] == load_candidates(expected / "baselines.safetensors")[1]
    )
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in expected.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_every_generation_is_kept_and_none_is_searched_twice(table, tmp_path, caplog):
    """Interrupted in one generation after the other, in one process; each start evaluates only what is missing."""
    recipe, statics = _recipe(table)
    accelerator = Accelerator(cpu=True)
    settings = {"population": 10, "seed": 3, "reference": (10.0, 0.5), "initial": statics}
    whole = evolve(recipe, accelerator, generations=5, **settings)
    evaluated = []

    class Counted:
        name, measure, space = recipe.name, recipe.measure, recipe.space

        def evaluate(self, genomes):
            evaluated.append(len(genomes))
            return recipe.evaluate(genomes)

    for generations in (1, 2, 4, 5):
        part = evolve(Counted(), accelerator, generations=generations, state=tmp_path / "state", **settings)
    assert evaluated == [10] * 5
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"The search (paper) continues after generation {done} of {of}." for done, of in ((1, 2), (2, 4), (4, 5))
    ]
    assert part.evaluated == whole.evaluated
    assert part.hypervolumes == whole.hypervolumes
    assert [c.point for c in part.archive.candidates] == [c.point for c in whole.archive.candidates]
    for ours, theirs in zip(part.archive.candidates, whole.archive.candidates, strict=True):
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours.heads, theirs.heads, strict=True))


def test_damaged_state_is_said_and_not_used(table, tmp_path, caplog):
    recipe, statics = _recipe(table)
    settings = {"population": 6, "seed": 3, "reference": (10.0, 0.5), "initial": statics, "generations": 2}
    state = tmp_path / "state"
    state.write_bytes(b"not what it was")
    damaged = evolve(recipe, Accelerator(cpu=True), state=state, **settings)
    assert "is damaged" in caplog.text
    assert damaged.evaluated == evolve(recipe, Accelerator(cpu=True), **settings).evaluated


@pytest.mark.parametrize(
    ("stamp", "words"),
    [
        ({"torch": "1.0"}, "is of torch 1.0, not "),
        ({"pertinence": "0.0.1", "device": "cuda"}, "is of pertinence 0.0.1, not .*, device cuda, not cpu"),
        ({"format": 1}, "is of format 1, not 2"),
    ],
)
def test_state_of_other_software_or_another_device_is_said_and_not_used(table, tmp_path, caplog, stamp, words):
    recipe, statics = _recipe(table)
    settings = {"population": 6, "seed": 3, "reference": (10.0, 0.5), "initial": statics}
    path = tmp_path / "state"
    whole = evolve(recipe, Accelerator(cpu=True), state=path, generations=2, **settings)
    groups, state = load_candidates(path)
    state["stamp"] |= stamp
    state["evaluated"] = []
    save_candidates(path, groups, state)
    again = evolve(recipe, Accelerator(cpu=True), state=path, generations=2, **settings)
    assert re.search(f"The state of the search in {path} {words}.*: starting again", caplog.text)
    assert again.evaluated == whole.evaluated


def _other_genome(state: dict) -> None:
    genome = state["evaluated"][7]["genome"]  # of the second generation
    genome[0] = float(np.nextafter(genome[0], 2.0))


def _other_objective(state: dict) -> None:
    for entry in state["evaluated"][:6]:  # of the first generation, so that others survive it
        entry["cost"] = 20.0 - entry["cost"]


def _lost_genome(state: dict) -> None:
    del state["evaluated"][-1]


def _lost_generation(state: dict) -> None:
    del state["hypervolumes"][-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_genome, "generation 2 has genomes that pymoo .* does not ask for"),
        (_other_objective, "generation 2 has genomes that pymoo .* does not ask for"),
        (_lost_genome, "generation 2 has genomes that pymoo .* does not ask for"),
        (_lost_generation, "it has 12 genomes, expected 6"),
    ],
)
def test_state_that_cannot_be_replayed_is_said_and_not_used(table, tmp_path, caplog, change, words):
    recipe, statics = _recipe(table)
    settings = {"population": 6, "seed": 3, "reference": (10.0, 0.5), "initial": statics}
    path = tmp_path / "state"
    whole = evolve(recipe, Accelerator(cpu=True), state=path, generations=2, **settings)
    groups, state = load_candidates(path)
    change(state)
    save_candidates(path, groups, state)
    again = evolve(recipe, Accelerator(cpu=True), state=path, generations=2, **settings)
    assert re.search(f"{path} is damaged or of another search .{words}.: starting again", caplog.text)
    assert again.evaluated == whole.evaluated
    assert again.hypervolumes == whole.hypervolumes


def test_state_of_another_seed_is_said_and_not_used(table, tmp_path, caplog):
    recipe, statics = _recipe(table)
    settings = {"population": 6, "reference": (10.0, 0.5), "initial": statics, "generations": 2}
    path = tmp_path / "state"
    evolve(recipe, Accelerator(cpu=True), state=path, seed=3, **settings)
    other = evolve(recipe, Accelerator(cpu=True), state=path, seed=4, **settings)
    assert "generation 1 has genomes that pymoo" in caplog.text
    assert other.evaluated == evolve(recipe, Accelerator(cpu=True), seed=4, **settings).evaluated


def _recipe(table: Path):
    from pertinence.search.front_search import prepare_recipes

    predictions = PredictionTable.load(table / "predictions.npz", table / "costs.json", "search").predictions
    recipes, problem = prepare_recipes(predictions, SearchArguments(recipe="paper", epochs=2), True, "cpu")
    judged = problem.judged
    return recipes[0], static_candidates(evaluate_experts(judged), judged.reference)


@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=pytest.mark.nightly)])
def test_any_number_of_processes_finds_the_same(table, expected, tmp_path, processes):
    finished = run(table, tmp_path / "run", processes=processes)
    assert found(tmp_path / "run") == found(expected)
    assert finished.stdout.count("Saved to") == 1
    assert json.loads((tmp_path / "run/search_result.json").read_text())["run"]["processes"] == processes


def test_any_number_of_threads_finds_the_same(table, expected, tmp_path):
    run(table, tmp_path / "run", env={"OMP_NUM_THREADS": "2"})
    assert found(tmp_path / "run") == found(expected)


@pytest.mark.nightly
def test_killed_on_one_process_continued_on_two(table, expected, tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(command(table, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output / "search_state/paper.safetensors").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    run(table, output, processes=2)
    assert found(output) == found(expected)


@pytest.mark.nightly
def test_without_resume_it_starts_again(table, expected, tmp_path):
    state = tmp_path / "run" / "search_state"
    state.mkdir(parents=True)
    settings = found(expected)["settings"]
    (state / "settings.json").write_text(json.dumps(settings))
    (state / "paper.safetensors").write_bytes(b"rubbish")
    finished = run(table, tmp_path / "run", "--no_resume")
    assert "is damaged" not in finished.stderr
    assert found(tmp_path / "run") == found(expected)


def test_finished_search_is_not_run_again(table, expected):
    record = expected / "search_result.json"
    written = record.stat().st_mtime_ns
    for processes in (0, 2):
        assert run(table, expected, processes=processes).stdout == (
            f"{expected} holds the result of this very search: nothing to do (--no-resume searches again)\n"
            f"Next: pertinence info {expected}\n"
        )
    assert record.stat().st_mtime_ns == written


def test_state_of_another_search_is_refused(table, expected, tmp_path):
    state = tmp_path / "run" / "search_state"
    state.mkdir(parents=True)
    (state / "settings.json").write_text(json.dumps({**found(expected)["settings"], "seed": 77}))
    (state / "paper.safetensors").touch()
    finished = run(table, tmp_path / "run", ok=False)
    assert "holds another search (its seed is 77, not 0)" in finished.stderr.splitlines()[-1]


@pytest.mark.parametrize("settings", ['{"seed": 77}', "{"])
def test_search_that_failed_before_its_first_generation_leaves_its_place(table, expected, tmp_path, settings):
    state = tmp_path / "run" / "search_state"
    state.mkdir(parents=True)
    (state / "settings.json").write_text(settings)
    run(table, tmp_path / "run")
    assert found(tmp_path / "run") == found(expected)


@pytest.mark.nightly
def test_rank_that_fails_ends_the_job_with_its_own_error(digits, digit_experts, tmp_path):
    """Of two processes the second one decodes the broken image."""
    import datasets

    good = digits[1].select(range(80)).cast_column("image", datasets.Image(decode=False))
    images = [*good["image"][:], {"bytes": b"broken", "path": None}, *good["image"][:]]
    labels = [*good["label"][:], 0, *good["label"][:]]
    broken = datasets.Dataset.from_dict({"image": images, "label": labels}, features=digits[1].features)
    (tmp_path / "data").mkdir()
    broken.to_parquet(tmp_path / "data" / "validation.parquet")
    finished = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pertinence", "search",
            "--experts", *map(str, digit_experts[:2]), "--dataset", "data", "--split", "validation", "--output-dir",
            "run", "--device", "cpu", "--cache-dir", "cache",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert finished.returncode != 0
    assert "error: image 80 of column 'image' cannot be decoded" in finished.stderr
    assert not (tmp_path / "run" / "search_result.json").exists()


@pytest.mark.nightly
def test_launcher_that_starts_one_process_is_called_out(table, tmp_path):
    launched = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
            *command(table, tmp_path / "run")[1:],
        ],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert "accelerate launch has started a single process" in launched.stderr


def test_search_on_a_table_gives_the_front_without_a_model(table, expected):
    names = {path.name for path in expected.iterdir()}
    assert {"search_result.json", "search.yaml", "front.png", "shares.png", "convergence.png"} <= names
    assert not {"config.json", "model.safetensors"} & names
    tables = [PredictionTable.load(table / "predictions.npz", table / "costs.json", s) for s in ("search", "report")]
    args = SearchArguments(population=12, generations=6, recipe="both", epochs=3, device="cpu")
    result = search_predictions(tables[0], args, tables[1])
    assert result.model is None
    assert result.front.to_list() == found(expected)["front"]


def test_result_of_a_table_is_shown_but_cannot_be_evaluated(expected, tmp_path, capsys):
    assert main(["info", str(expected), "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("3 models, known by a table of their predictions")
    assert all(point["name"] in shown for point in found(expected)["front"])
    assert f"Default operating point: {found(expected)['report']['operating_point']}" in shown
    assert main(["evaluate", str(expected), "--dataset", "data", "--split", "test"]) == 1
    assert "it has no models to run on images" in capsys.readouterr().err.splitlines()[-1]
    nameless = found(expected)
    nameless["settings"]["experts"][0]["name"] = None
    for damaged in ({}, nameless):
        (tmp_path / "search_result.json").write_text(json.dumps(damaged))
        assert main(["info", str(tmp_path)]) == 1
        assert "search_result.json is damaged: search again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--report-split", "search"], "the report images must be others"),
        (["--cost", "latency"], "leave cost out"),
        (["--variants", "auto"], "leave variants out"),
        (["--dataset", "data"], "neither --experts nor --dataset"),
        (["--split", "nothing"], "has no column 'label' of split 'nothing'"),
    ],
)
def test_bad_search_on_a_table_gets_one_sentence(table, tmp_path, capsys, flags, sentence):
    assert main([*command(table, tmp_path / "run")[3:], *flags]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_table_needs_no_labels_where_agreement_is_searched(table, tmp_path):
    with np.load(table / "predictions.npz") as arrays:
        np.savez(tmp_path / "predictions.npz", **{name: arrays[name] for name in arrays if "label" not in name})
    (tmp_path / "costs.json").write_text(json.dumps(MODELS))
    run(tmp_path, tmp_path / "run", "--labels", "agree", "--no_baselines")
    assert found(tmp_path / "run")["measure"] == "agreement"
