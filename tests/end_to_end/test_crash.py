"""Killed, out of space, not allowed to write, two at once: what is there is whole, and the same command goes on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.commands.main import main
from pertinence.hub.layout import RECORD, STATE
from pertinence.hub.push import push_folder
from pertinence.search.folder import exclusive
from pertinence.utils.io import SUFFIX


KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_killed_at_random_moments_it_ends_as_if_it_never_was(tmp_path):
    """Few of what `tests/benchmarks/kills.py` does by the hundred; it ends with an error where anything is amiss."""
    finished = subprocess.run(
        [sys.executable, str(KILLS), "--kills", "5", "--seed", "3", "--json", "kills.json"],
        cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = json.loads((tmp_path / "kills.json").read_text())
    assert {phase: row["kills"] for phase, row in rows.items()} == dict.fromkeys(rows, 1)
    assert set(rows) == {"predictions", "search", "save", "overwrite", "push"}


# The disk


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    digits[1].select(range(300)).to_parquet(folder / "validation.parquet")
    digits[2].select(range(200)).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def search(data, digit_experts, tmp_path_factory):
    """A function: runs a small search from the command line, and returns its exit status."""
    cache = tmp_path_factory.mktemp("cache")

    def run(output_dir: Path, cache_dir: Path = cache, options: tuple[str, ...] = ()) -> int:
        return main([
            "search", "--experts", *map(str, digit_experts), "--dataset", str(data), "--split", "validation",
            "--report-split", "test", "--output-dir", str(output_dir), "--cache-dir", str(cache_dir), "--population",
            "4", "--generations", "1", "--no-baselines", "--device", "cpu", *options,
        ])  # fmt: skip

    return run


@pytest.fixture(scope="module")
def expected(search, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("expected") / "run"
    assert search(folder) == 0
    return folder


def record(folder: Path) -> dict:
    return {key: value for key, value in json.loads((folder / RECORD).read_text()).items() if key != "run"}


def only_error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_disk_full_of_predictions(search, expected, small_disk, tmp_path, capsys):
    cache = small_disk.path / "cache"
    small_disk.leave(8_000)
    assert search(tmp_path / "run", cache) == 1
    error = only_error(capsys)
    assert "(No space left on device): free some space, or choose another --cache-dir" in error
    assert str(cache) in error
    assert names(cache / "predictions") == set()
    small_disk.leave(50_000)
    assert search(tmp_path / "run", cache) == 1
    kept = names(cache / "predictions")
    assert kept
    assert not any(name.startswith(".") for name in kept)
    written = {name: (cache / "predictions" / name).stat().st_mtime_ns for name in kept}
    small_disk.leave(None)
    assert search(tmp_path / "run", cache) == 0
    assert {name: (cache / "predictions" / name).stat().st_mtime_ns for name in kept} == written
    assert record(tmp_path / "run") == record(expected)


@pytest.mark.parametrize(("left", "stands"), [(12_000, "settings"), (200_000, "generations")])
def test_disk_full_of_a_search(search, small_disk, tmp_path, capsys, left, stands):
    """While the search notes its first generation, and while the result is saved; `cascade` has no generations."""
    options, output = ("--recipe", "paper", "--epochs", "1"), small_disk.path / "run"
    assert search(tmp_path / "expected", options=options) == 0
    capsys.readouterr()
    small_disk.leave(left)
    assert search(output, options=options) == 1
    error = only_error(capsys)
    assert f"written to {output}" in error
    assert "(No space left on device): free some space, or choose another" in error
    assert names(output) == {STATE}
    kept = names(output / STATE)
    assert "settings.json" in kept
    assert any(name.endswith(".safetensors") for name in kept) is (stands == "generations")
    assert not any(name.startswith(".") for name in kept)
    small_disk.leave(None)
    assert search(output, options=options) == 0
    assert record(output) == record(tmp_path / "expected")
    assert names(output) == names(tmp_path / "expected")


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # of the Hub's client, which goes on
@pytest.mark.parametrize("left", [2_000, 60_000, 600_000])
def test_disk_full_of_a_download(hub, pair, images, small_disk, left):
    """While the config, an expert's config and its weights arrive."""
    cache = small_disk.path / "cache"
    hub.add_model(f"full/model-{left}", pair[0])
    small_disk.leave(left)
    with pytest.raises(PertinenceError, match=r"\(No space left on device\): free some space, or move the cache"):
        answers(f"full/model-{left}", images, cache_dir=cache)
    small_disk.leave(None)
    assert torch.equal(answers(f"full/model-{left}", images, cache_dir=cache), answers(pair[0], images))


def test_folder_that_must_not_be_written_to(search, read_only, tmp_path, capsys):
    assert search(read_only / "run") == 1
    error = only_error(capsys)
    assert str(read_only / "run") in error
    assert "choose another --output-dir" in error
    assert search(tmp_path / "run", read_only / "cache") == 1
    error = only_error(capsys)
    assert f"predictions cannot be written to {read_only / 'cache'}" in error
    assert "choose another --cache-dir" in error


# Two at once


def test_another_search_in_the_same_folder_is_refused_while_the_first_lives(
    search, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("pertinence.utils.locks.PATIENCE", 0.2)
    output = tmp_path / "run"
    code = "import sys; from pathlib import Path; from pertinence.search.folder import exclusive\n" \
           "with exclusive(Path(sys.argv[1])): print('in', flush=True); sys.stdin.readline()"  # fmt: skip
    first = subprocess.Popen(
        [sys.executable, "-c", code, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "in\n"
    assert search(output) == 1
    assert f"another search is running in {output}: wait for its end" in only_error(capsys)
    first.kill()
    first.communicate()
    assert (output / STATE / "lock").exists()  # left behind, and nobody's
    assert search(output) == 0
    assert record(output) == record(expected)
    assert names(output) == names(expected)


def test_a_result_is_not_saved_where_another_search_is_running(expected, tmp_path, search, monkeypatch, capsys):
    monkeypatch.setattr("pertinence.utils.locks.PATIENCE", 0.2)
    shutil.copytree(expected, tmp_path / "run")
    with exclusive(tmp_path / "run"):
        assert search(tmp_path / "run") == 1
    assert "another search is running" in only_error(capsys)
    assert search(tmp_path / "run") == 0
    assert names(tmp_path / "run") == names(expected)


def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch, caplog):
    def unable(*_, **__):
        raise NotImplementedError("this file system has no locks")

    monkeypatch.setattr("filelock.FileLock.acquire", unable)
    with exclusive(tmp_path / "run"):
        pass
    assert "this file system has no locks" in caplog.text


# One model over another


@pytest.fixture(scope="module")
def pair(make_expert, images, tmp_path_factory) -> list[Path]:
    """Two models that could be mixed, of the same networks with other weights and thresholds, with their experts."""
    folder = tmp_path_factory.mktemp("pair")
    models = []
    for number, threshold in enumerate((0.3, 0.9)):
        experts = [make_expert(folder / f"pool-{number}" / str(i), seed=10 * number + i) for i in range(2)]
        model = PertinenceForImageClassification.from_experts(experts, thresholds=threshold)
        models.append(folder / f"model-{number}")
        model.save_pretrained(models[-1], save_experts=True)
    return models


def answers(folder: Path | str, images, **options) -> torch.Tensor:
    return PertinenceForImageClassification.from_pretrained(folder, **options)(images(12, 64)).logits


def without_hash(folder: Path) -> None:
    """As models were saved that do not say which weights they belong to, nor what their copies of experts are."""
    config = json.loads((folder / "config.json").read_text())
    del config["heads_hash"]
    for entry in config["experts"]:
        entry["revision"] = "0" * 40
    (folder / "config.json").write_text(json.dumps(config))


class Stopped(BaseException):
    """As if killed: nobody handles it."""


@pytest.mark.parametrize("saved_before", [False, True])
def test_stopped_anywhere_a_save_leaves_the_old_model_the_new_or_none(
    pair, images, tmp_path, monkeypatch, saved_before
):
    old, new = (answers(folder, images) for folder in pair)
    assert not torch.equal(old, new)
    model = PertinenceForImageClassification.from_pretrained(pair[1])
    replace, outcomes = os.replace, []
    for steps in range(20):
        target = tmp_path / str(steps)
        shutil.copytree(pair[0], target)
        if saved_before:
            without_hash(target)
        left = iter(range(steps))

        def replace_or_stop(source, destination, left=left):
            if next(left, None) is None:
                raise Stopped
            replace(source, destination)

        monkeypatch.setattr(os, "replace", replace_or_stop)
        try:
            model.save_pretrained(target, save_experts=True)
            is_done = True
        except Stopped:
            is_done = False
        monkeypatch.setattr(os, "replace", replace)
        if (target / "config.json").exists():
            found = answers(target, images)
            outcomes.append("new" if torch.equal(found, new) else "old" if torch.equal(found, old) else "mixed")
        else:
            with pytest.raises(PertinenceError, match="holds no model: it has no config.json"):
                answers(target, images)
            outcomes.append("none")
        if is_done:
            break
    assert outcomes[0] == "old"  # while all is still written beside it
    assert outcomes[1] == "none"
    assert outcomes[-1] == "new"
    assert set(outcomes) == {"old", "none", "new"}
    assert len(outcomes) >= 4


def test_saves_to_one_folder_at_once_leave_a_whole_model(pair, images, tmp_path):
    """One of them may have to be told to save again."""
    models = [PertinenceForImageClassification.from_pretrained(folder) for folder in pair]
    expected = [answers(folder, images) for folder in pair]

    def save(model: PertinenceForImageClassification) -> None:
        with suppress(PertinenceError):
            model.save_pretrained(tmp_path / "model", save_experts=True)

    for _ in range(10):
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(save, models))
        models[0].save_pretrained(tmp_path / "model", save_experts=True)
        assert torch.equal(answers(tmp_path / "model", images), expected[0])
        assert not list(tmp_path.glob("model/.*"))


def test_a_save_that_fails_changes_nothing(pair, images, tmp_path, small_disk):
    target = small_disk.path / "model"
    shutil.copytree(pair[0], target)
    small_disk.leave(50_000)
    model = PertinenceForImageClassification.from_pretrained(pair[1])
    with pytest.raises(PertinenceError, match=f"cannot be written to {target} .No space left on device"):
        model.save_pretrained(target, save_experts=True)
    assert names(target) == names(pair[0])
    assert torch.equal(answers(target, images), answers(pair[0], images))
    small_disk.leave(None)
    model.save_pretrained(target, save_experts=True)
    assert torch.equal(answers(target, images), answers(pair[1], images))


def test_files_that_may_not_grow_are_said_as_a_full_disk_is(pair, tmp_path):
    """By a limit on the size of files, which takes no rights to set."""
    resource = pytest.importorskip("resource")
    model = PertinenceForImageClassification.from_pretrained(pair[1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(PertinenceError, match="model cannot be written to .*File too large"):
            model.save_pretrained(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "model").exists()


def test_weights_of_another_model_are_refused(pair, hub, images, tmp_path):
    shutil.copytree(pair[0], tmp_path / "model")
    shutil.copy(pair[1] / "model.safetensors", tmp_path / "model")
    with pytest.raises(PertinenceError, match="config.json and the weights of .* do not belong together"):
        answers(tmp_path / "model", images)
    with pytest.raises(PertinenceError, match="do not belong together"):
        push_folder(tmp_path / "model", "tester/mixed", token=hub.token)
    without_hash(tmp_path / "model")  # which says nothing against it
    answers(tmp_path / "model", images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_that_are_given_in_another_dtype_belong_to_their_config(pair, images, tmp_path, dtype):
    model = PertinenceForImageClassification.from_pretrained(pair[0])
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    assert dtype in {value.dtype for value in load_file(tmp_path / "model.safetensors").values()}
    answers(tmp_path, images)


def test_a_copy_of_another_expert_is_refused(pair, images, tmp_path):
    shutil.copytree(pair[0], tmp_path / "model")
    shutil.copy(pair[1] / "experts/1/model.safetensors", tmp_path / "model/experts/1")
    with pytest.raises(PertinenceError, match="the copy of expert '1' in .* does not belong to config.json"):
        answers(tmp_path / "model", images)


def test_weights_in_parts_take_the_place_of_one_file_and_back(pair, images, tmp_path):
    shutil.copytree(pair[0], tmp_path / "model")
    model = PertinenceForImageClassification.from_pretrained(pair[1])
    model.save_pretrained(tmp_path / "model", save_experts=True, max_shard_size=100)
    assert "model.safetensors" not in names(tmp_path / "model")
    assert torch.equal(answers(tmp_path / "model", images), answers(pair[1], images))
    model.save_pretrained(tmp_path / "model", save_experts=True)
    assert names(tmp_path / "model") == names(pair[1])
    assert torch.equal(answers(tmp_path / "model", images), answers(pair[1], images))


def test_other_processes_save_nothing(pair, tmp_path):
    PertinenceForImageClassification.from_pretrained(pair[0]).save_pretrained(tmp_path, is_main_process=False)
    assert not any(tmp_path.iterdir())


# A record and a model of different runs


def test_a_save_over_a_result_that_is_stopped_is_a_search_that_has_not_ended(
    search, expected, hub, tmp_path, monkeypatch
):
    output, replace, left = tmp_path / "run", os.replace, iter(range(4))
    shutil.copytree(expected, output)

    def replace_or_stop(source, destination):
        if Path(destination).parent == output and next(left, None) is None:
            raise Stopped
        replace(source, destination)

    monkeypatch.setattr(os, "replace", replace_or_stop)
    monkeypatch.setattr("pertinence.search.search.DispatcherSearch.is_finished", lambda self: False)
    with pytest.raises(Stopped):
        search(output)
    monkeypatch.undo()
    assert not {RECORD, "config.json"} & names(output)
    with pytest.raises(PertinenceError, match="has no config.json"):
        push_folder(output, "tester/unfinished", token=hub.token)
    shutil.copy(expected / "config.json", output)
    with pytest.raises(PertinenceError, match="the search in .* has not ended: run it again"):
        push_folder(output, "tester/unfinished", token=hub.token)
    assert search(output) == 0
    assert names(output) == names(expected)
    assert record(output) == record(expected)


def test_a_record_of_another_search_is_not_pushed(expected, pair, hub, tmp_path):
    shutil.copytree(expected, tmp_path / "run")
    shutil.copytree(pair[0], tmp_path / "run", dirs_exist_ok=True)
    with pytest.raises(PertinenceError, match="search_result.json in .* is of another search than the model"):
        push_folder(tmp_path / "run", "tester/two-runs", token=hub.token)


def test_what_a_search_left_is_not_taken_for_that_of_another_model(expected, pair, tmp_path):
    """Its hashes of seen images would vouch for the images of another search."""
    run = Path(shutil.copytree(expected, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(PertinenceError, match="search_result.json in .* is of another search than the model"):
        PertinenceForImageClassification.from_pretrained(pair[0]).save_pretrained(run, save_experts=True)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    own = PertinenceForImageClassification.from_pretrained(run, operating_point="fastest")
    own.save_pretrained(run)
    assert PertinenceForImageClassification.from_pretrained(run).config.operating_point == "fastest"
    assert names(run) == set(before)


def test_state_that_outlived_its_search_goes(search, expected, tmp_path):
    """Of a search that was killed after its very last file was in place."""
    shutil.copytree(expected, tmp_path / "run")
    (tmp_path / "run" / STATE).mkdir()
    (tmp_path / "run" / STATE / "settings.json").write_text("{}")
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    (tmp_path / "run" / f".result.{platform.node()}-{killed.pid}{SUFFIX}").mkdir()
    assert search(tmp_path / "run") == 0
    assert names(tmp_path / "run") == names(expected)
