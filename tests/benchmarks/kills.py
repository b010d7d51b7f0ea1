"""Kills predictions, searches, saves and pushes at random moments, and starts each again.

    uv run python tests/benchmarks/kills.py --kills 120

A kill is a SIGKILL: half of them when a random time has passed since the phase began, half just before a random one of
the operations on files that the phase consists of (an audit hook of the process counts them), or, while pushing, after
a random one of its requests. After each kill nothing that looks whole may be anything but whole; the same command then
has to end as if nothing had happened: same front, same bytes, and no other file than those that belong there. Pushes
go over HTTP to a Hub of this machine. What is not so ends the run with an error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_hub import LocalHub  # noqa: E402


PHASES = ("predictions", "search", "save", "overwrite", "push")
SETTINGS = ["--population", "6", "--generations", "3", "--no-baselines", "--device", "cpu"]
IMAGES = 300
"""Of each split."""
REPOSITORY = "tester/killed"
STATE, RECORD, SETTINGS_FILE = "search_state", "search_result.json", "search.yaml"
FILE_EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


def _has_come(moment: Callable[[], bool]) -> bool:
    """Whether a moment has come; a folder that it looks into may vanish meanwhile."""
    with suppress(FileNotFoundError):
        return moment()
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120, help="in all; each phase has its part")
    parser.add_argument(
        "--phases",
        nargs="+",
        default=PHASES,
        choices=PHASES,
        help="in turn; what is named twice is killed twice as often",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the same figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hub = LocalHub().start()
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the processes must not compile every library anew
        os.environ |= {
            "HF_ENDPOINT": hub.url, "HF_HOME": f"{folder}/home", "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        bench = Bench(Path(folder), hub, random.Random(options.seed))
        rows = {phase: Row() for phase in options.phases}
        for kill in range(options.kills):
            phase = options.phases[kill % len(options.phases)]
            bench.kill(phase, rows[phase])
            print(f"{kill + 1} of {options.kills}: {phase}", file=sys.stderr, flush=True)
        hub.stop()
    print(f"{'phase':12} {'kills':>5} {'by time':>8} {'at a step':>10}  stood at")
    for phase, row in rows.items():
        stood = ", ".join(f"{place} {count}" for place, count in sorted(row.stood.items()))
        print(f"{phase:12} {row.kills:5} {row.by_time:8} {row.at_step:10}  {stood}")
    total = sum(row.kills for row in rows.values())
    print(f"{total} kills: after each everything was whole, and the same command ended with the same bytes")
    if options.json:
        Path(options.json).write_text(json.dumps({phase: vars(row) for phase, row in rows.items()}, indent=1))


@dataclass
class Row:
    """What was done to one phase: kills, how they were timed, and where they hit."""

    kills: int = 0
    by_time: int = 0
    at_step: int = 0
    stood: dict[str, int] = field(default_factory=dict)

    def add(self, is_step: bool, stood: str) -> None:
        self.kills += 1
        self.at_step += is_step
        self.by_time += not is_step
        self.stood[stood] = self.stood.get(stood, 0) + 1


@dataclass
class Task:
    """What a process does.

    Attributes:
        function, arguments: what it calls.
        watched: folders whose operations on files are counted.
        log: file for what it prints.
        step: number of the operation in the first of these folders that it is killed before; None: of none.
    """

    function: Callable[..., int | None]
    arguments: list
    watched: tuple[Path, ...]
    log: Path
    step: int | None = None


def work(task: Task) -> None:
    """The process: does its task, and writes the numbers of its operations on files beside its log."""
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    steps = [0] * len(task.watched)

    def count(event: str, arguments: tuple) -> None:
        if event not in FILE_EVENTS or (event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            return
        paths = [str(path) for path in arguments if isinstance(path, (str, Path))]
        for number, folder in enumerate(task.watched):
            if any(path.startswith(str(folder)) for path in paths):
                steps[number] += 1
                if number == 0 and steps[number] == task.step:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    code = task.function(*task.arguments)
    task.log.with_suffix(".steps").write_text(json.dumps(steps))
    sys.exit(code)


def run_command(*arguments: str) -> int:
    from pertinence.commands.main import main

    return main(list(arguments))


def save_over(source: Path, target: Path) -> None:
    from pertinence import PertinenceForImageClassification

    PertinenceForImageClassification.from_pretrained(source).save_pretrained(target, save_experts=True)


class Bench:
    """A pool, images, a Hub, and what everything looks like where nobody is killed."""

    def __init__(self, folder: Path, hub: LocalHub, rng: random.Random):
        self.folder, self.hub, self.rng = folder, hub, rng
        # Its children have imported everything: a process starts in a moment.
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["pertinence.commands.main", "pertinence.search.search"])
        self.count, self.cache = 0, folder / "cache"
        self.seconds: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        self._prepare_parts()
        self.expected = self._search_undisturbed("expected")
        self._prepare_pushes()
        self._prepare_models()

    def kill(self, phase: str, row: Row) -> None:
        """Kill one process in a phase, and see what that does."""
        is_step = row.kills % 2 == 1
        while not getattr(self, f"_kill_in_{phase}")(row, is_step):
            self.seconds[phase] *= 0.8  # it was done before the moment came

    # A search: predictions, generations, save

    def _prepare_parts(self) -> None:
        from digit_pool import ARCHITECTURES, save_digit_expert

        from pertinence.commands.demo_pool import digits

        train, search, report = digits(0)
        search, report = search.select(range(IMAGES)), report.select(range(IMAGES))
        self.experts = [save_digit_expert(name, train, self.folder / "experts" / name) for name in ARCHITECTURES]
        search.to_parquet(self.folder / "images/validation.parquet")
        report.to_parquet(self.folder / "images/test.parquet")

    def _search_command(self, output: Path, cache: Path, seed: int = 0) -> list[str]:
        return [
            "search", "--experts", *map(str, self.experts), "--dataset", str(self.folder / "images"), "--split",
            "validation", "--report-split", "test", "--output-dir", str(output), "--cache-dir", str(cache), "--seed",
            str(seed), *SETTINGS,
        ]  # fmt: skip

    def _search_undisturbed(self, name: str, seed: int = 0) -> Path:
        """Also measures how long each phase lasts, in seconds and in operations on files."""
        output = self.folder / name / "run"
        watched = {"predictions": self.cache, "search": output / STATE, "save": output}
        process = self._start(run_command, self._search_command(output, self.cache, seed), *watched.values())
        moments = [
            (output / STATE / "settings.json").is_file,
            lambda: any(output.glob(f"{STATE}/*.safetensors")),
            lambda: any(output.glob(".result.*")),
            lambda: not process.is_alive(),
        ]
        times = [self._wait(process, moment) for moment in moments]
        steps = self._end(process)
        if not seed:
            self.steps |= dict(zip(watched, steps, strict=True))
            self.seconds |= dict(zip(watched, (b - a for a, b in pairwise(times)), strict=True))
        return output

    def _kill_in_predictions(self, row: Row, is_step: bool) -> bool:
        return self._kill_in_search(row, is_step, "predictions")

    def _kill_in_save(self, row: Row, is_step: bool) -> bool:
        return self._kill_in_search(row, is_step, "save")

    def _kill_in_search(self, row: Row, is_step: bool, phase: str = "search") -> bool:
        self.count += 1
        output = self.folder / f"run-{self.count}" / "run"
        cache = self.cache if phase != "predictions" else self.folder / f"cache-{self.count}"
        watched = {"predictions": cache, "search": output / STATE, "save": output}[phase]
        command = self._search_command(output, cache)
        step = self.rng.randint(1, self.steps[phase]) if is_step else None
        process = self._start(run_command, command, watched, step=step)
        if not is_step:
            began = ".result.*" if phase == "save" else f"{STATE}/settings.json"
            self._wait(process, lambda: any(output.glob(began)))
            time.sleep(self.rng.uniform(0, self.seconds[phase]))
        if not self._killed(process, is_step):
            shutil.rmtree(output.parent, ignore_errors=True)
            return False
        row.add(is_step, self._where(output, cache))
        check_stores(cache)
        self._check_run(output, must_be_there=False)
        self._finish(run_command, command)
        self._check_run(output, must_be_there=True)
        check_stores(cache)
        check_names(cache / "predictions", names(self.cache / "predictions"))
        check_names(output.parent, {"run"})
        shutil.rmtree(output.parent)
        if cache != self.cache:
            shutil.rmtree(cache)
        return True

    def _where(self, output: Path, cache: Path) -> str:
        if (output / RECORD).is_file():
            return "record written"
        if (output / "config.json").is_file():
            return "model written"
        if any(output.glob(".result.*")):
            return "files of the result"
        if states := len(list((output / STATE).glob("*.safetensors"))):
            return f"state {states}"
        stores = len(list((cache / "predictions").glob("[!.]*"))) if cache != self.cache else 6
        return "generation 1" if stores == 6 else f"{stores} stores"

    def _check_run(self, output: Path, must_be_there: bool) -> None:
        """A folder with a model has all of it; one with a record has everything; in the end nothing else is there."""
        if must_be_there:
            check_names(output, names(self.expected))
        for mark in ("config.json", RECORD):
            if (output / mark).is_file() or must_be_there:
                files = sorted(names(self.expected) - (set() if mark == RECORD else {RECORD}))
                for name in files:
                    if comparable(output / name) != comparable(self.expected / name):
                        fail(f"{output / name} is not what it is where nobody is killed")

    # A model saved over another

    def _prepare_models(self) -> None:
        """Two models whose files could be mixed: same networks, other weights, other thresholds."""
        import torch
        from safetensors.torch import load_file, save_file

        from pertinence import PertinenceForImageClassification

        self.models, self.answers = [], []
        self.images = torch.randint(0, 256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
        for number, (threshold, scale) in enumerate([(0.4, 1.0), (0.9, 1.5)]):
            experts = [self.folder / f"pool-{number}" / expert.name for expert in self.experts[:2]]
            for expert, source in zip(experts, self.experts[:2], strict=True):
                shutil.copytree(source, expert)
                weights = load_file(expert / "model.safetensors")
                scaled = {key: value * scale if value.is_floating_point() else value for key, value in weights.items()}
                save_file(scaled, expert / "model.safetensors", metadata={"format": "pt"})
            self.models.append(self.folder / f"model-{number}")
            model = PertinenceForImageClassification.from_experts(experts, thresholds=threshold)
            model.save_pretrained(self.models[-1], save_experts=True)
            self.answers.append(model(self.images).logits)
        target = self.folder / "over"
        shutil.copytree(self.models[0], target)
        start = time.monotonic()
        (self.steps["overwrite"],) = self._finish(save_over, [self.models[1], target], target)
        self.seconds["overwrite"] = time.monotonic() - start
        shutil.rmtree(target)

    def _kill_in_overwrite(self, row: Row, is_step: bool) -> bool:
        import torch

        from pertinence import PertinenceError, PertinenceForImageClassification

        self.count += 1
        target = self.folder / f"over-{self.count}"
        shutil.copytree(self.models[0], target)
        step = self.rng.randint(1, self.steps["overwrite"]) if is_step else None
        process = self._start(save_over, [self.models[1], target], target, step=step)
        if not is_step:
            time.sleep(self.rng.uniform(0, self.seconds["overwrite"]))
        if not self._killed(process, is_step):
            shutil.rmtree(target)
            return False
        try:
            logits = PertinenceForImageClassification.from_pretrained(target)(self.images).logits
            found = [torch.equal(logits, answers) for answers in self.answers]
            if not any(found):
                fail(f"{target} holds a mixture")
            stood = "old" if found[0] else "new"
        except (PertinenceError, OSError) as error:
            stood = "no model"
            if (target / "config.json").is_file():
                fail(f"{target} has a config.json, but does not load: {error}")
        row.add(is_step, stood)
        self._finish(save_over, [self.models[1], target], target)
        for path in sorted(path for path in self.models[1].rglob("*") if path.is_file()):
            name = path.relative_to(self.models[1])
            if (target / name).read_bytes() != path.read_bytes():
                fail(f"{target / name} is not what was saved")
        check_names(target, names(self.models[1]))
        shutil.rmtree(target)
        return True

    # Pushes

    def _prepare_pushes(self) -> None:
        """Two results, of which one is on the Hub, and what the Hub holds of each."""
        self.results = [self.expected, self._search_undisturbed("other", seed=1)]
        self.pushed = []
        for result in self.results:
            self.hub.requests.clear()
            start = time.monotonic()
            self._finish(run_command, self._push_command(result))
            self.seconds["push"] = time.monotonic() - start
            self.pushed.append(self.hub.files(REPOSITORY))
        self.steps["push"] = len(self.hub.requests)

    def _push_command(self, result: Path) -> list[str]:
        return ["push", str(result), REPOSITORY, "--save-experts", "--replace-card"]

    def _kill_in_push(self, row: Row, is_step: bool) -> bool:
        # Which of the two is on the Hub changes with every push.
        before, commits = self.hub.files(REPOSITORY), len(self.hub.commits(REPOSITORY))
        old = self.pushed.index(before)
        command = self._push_command(self.results[1 - old])
        self.hub.requests.clear()
        process = self._start(run_command, command)
        if is_step:
            wanted = self.rng.randint(1, self.steps["push"])
            self._wait(process, lambda: len(self.hub.requests) >= wanted)
        else:
            time.sleep(self.rng.uniform(0, self.seconds["push"]))
        if not self._killed(process, False):
            return False
        time.sleep(0.1)  # what is on its way arrives
        made = len(self.hub.commits(REPOSITORY)) - commits
        if self.hub.files(REPOSITORY) != (self.pushed[1 - old] if made else before) or made > 1:
            fail("the repository holds neither the old commit nor the new")
        row.add(is_step, "new commit" if made else "old commit")
        self._finish(run_command, command)
        if self.hub.files(REPOSITORY) != self.pushed[1 - old]:
            fail("the second push did not bring what the first should have")
        return True

    # Processes

    def _start(
        self, function: Callable, arguments: list, *watched: Path, step: int | None = None
    ) -> multiprocessing.Process:
        task = Task(function, arguments, watched, self.folder / "log.txt", step)
        process = self.processes.Process(target=work, args=(task,))
        process.start()
        return process

    def _wait(self, process: multiprocessing.Process, moment: Callable[[], bool]) -> float:
        while process.is_alive() and not _has_come(moment):
            time.sleep(0.002)
        return time.monotonic()

    def _killed(self, process: multiprocessing.Process, by_itself: bool) -> bool:
        """Whether the process died of a kill: its own, or the one that it is given now."""
        if not by_itself:
            process.kill()
        process.join()
        if process.exitcode not in (0, -9):
            fail((self.folder / "log.txt").read_text()[-3000:])
        return process.exitcode == -9

    def _finish(self, function: Callable, arguments: list, *watched: Path) -> list[int]:
        """Let a process do all of its task; returns the number of its operations on files in each folder."""
        return self._end(self._start(function, arguments, *watched))

    def _end(self, process: multiprocessing.Process) -> list[int]:
        process.join()
        if process.exitcode != 0:
            fail((self.folder / "log.txt").read_text()[-3000:])
        return json.loads((self.folder / "log.steps").read_text())


def check_stores(cache: Path) -> None:
    """Predictions that are there are whole."""
    from pertinence.utils.io import hash_file

    for store in (cache / "predictions").glob("[!.]*"):
        metadata = json.loads((store / "metadata.json").read_text())
        if metadata["sha256"] != hash_file(store / "predictions.safetensors"):
            fail(f"{store} is not whole")


def check_names(folder: Path, expected: set[str]) -> None:
    if names(folder) != expected:
        fail(f"{folder} holds {sorted(names(folder) ^ expected)} too much, or lacks it")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def comparable(path: Path) -> Any:
    """What a file holds, without what differs from run to run: where it lies, and how long it took."""
    if path.name == RECORD:
        return {key: value for key, value in json.loads(path.read_text()).items() if key != "run"}
    if path.name == SETTINGS_FILE:
        return [line for line in path.read_text().splitlines() if not line.startswith(("output_dir", "cache_dir"))]
    if path.suffix == ".safetensors":  # which may note the same in another order
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            tensors = {key: (file.get_tensor(key).dtype, file.get_tensor(key).tobytes()) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata()
    return path.read_bytes()


def fail(message: str) -> None:
    raise SystemExit(message)


if __name__ == "__main__":
    main()
