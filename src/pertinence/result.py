"""`SearchResult`: what a search found, and the folder that it is kept in while it runs and saved to at its end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from huggingface_hub import CommitInfo
from transformers.utils import logging

from .candidates import save_candidates
from .data import LabelledImages
from .dispatcher import Head
from .errors import MALFORMED, PertinenceError, shown
from .evaluation import route_predictions
from .files import (
    BASELINES,
    CONFIG,
    CONVERGENCE_FIGURE,
    EXAMPLES_FIGURE,
    FRONT_FIGURE,
    RECORD,
    SETTINGS,
    SHARES_FIGURE,
    STATE,
    SUFFIX,
    UNWRITABLE,
    WEIGHT_PATTERNS,
    beside,
    check_writable,
    move_into,
    replaced,
    writing,
)
from .front import Front, OperatingPoint
from .front_search import FoundFront
from .modeling_pertinence import PertinenceForImageClassification
from .plots import plot_convergence, plot_examples, plot_front, plot_shares
from .predictions import Predictions
from .report import Evaluation
from .seen import SeenImages
from .values import is_name


logger = logging.get_logger(__name__)

EXAMPLES_SHOWN = 8
LOCK = "lock"
PATIENCE = 10
"""Seconds that a search waits for a folder: workers of a killed one may outlive it by a few."""
ADVICE = "free some space, or choose another --output-dir; the same search goes on from where it stands"


@dataclass(frozen=True)
class Examples:
    """Images that one expert answered last: names and labels do not matter, only how sure the answers are.

    Attributes:
        expert: its name.
        easiest, hardest: uint8 (H, W, 3), by falling and by rising confidence.
    """

    expert: str
    easiest: list[np.ndarray]
    hardest: list[np.ndarray]


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        model: ready to run, with the whole front; None for a search on a table of predictions.
        evaluation: the front and its baselines on the report images.
        found: heads, baselines and the course of the search.
        record: everything else, as stored in `search_result.json`.
        examples: report images that each expert answers.
        seen: which images the search and its report saw; None for a search on a table of predictions.
        is_main_process: whether this is the process that saves.
        config: resolved settings that run this search again, as stored in `search.yaml`; None from Python.
    """

    model: PertinenceForImageClassification | None
    evaluation: Evaluation
    found: FoundFront
    record: dict[str, Any]
    examples: Sequence[Examples] = ()
    seen: SeenImages | None = None
    is_main_process: bool = True
    config: dict[str, Any] | None = None

    @property
    def front(self) -> Front:
        return self.evaluation.front

    def save(self, output_dir: str | os.PathLike, save_experts: bool = False) -> None:
        """Write a loadable model, `search_result.json`, figures and baselines; each file whole or not at all.

        Of several processes all must call this: the main one saves, the others wait for it.

        Args:
            output_dir: a new or empty folder, or one that holds this search or its result.
            save_experts: also copy each expert's own files.

        Raises:
            PertinenceError: the folder holds something else.
        """
        if self.is_main_process:
            self._save(Path(output_dir), save_experts)
        PartialState().wait_for_everyone()

    def push_to_hub(self, repo_id: str, *, save_experts: bool = False, **options: Any) -> CommitInfo | None:
        """Push model, image processor, card, record, baselines and figures to the Hub, in one commit.

        Of several processes all must call this: the main one pushes, the others wait for it.

        Args:
            repo_id: of the model repository, which is created where there is none.
            save_experts: also push a copy of each expert's own files.
            options: `private`, `revision`, `create_pr`, `replace_card`, `token`, ... of `pertinence.hub.push_folder`.

        Returns:
            What was committed; None in all processes but the main one.

        Raises:
            PertinenceError: an expert is a local folder, which nobody else could load, or must not be copied.
        """
        from .hub import push_folder

        pushed = None
        if self.is_main_process:
            with tempfile.TemporaryDirectory() as folder:
                self._save(Path(folder), save_experts)
                pushed = push_folder(folder, repo_id, **options)
        PartialState().wait_for_everyone()
        return pushed

    def _save(self, folder: Path, save_experts: bool) -> None:
        settings = self.record["settings"]
        check_output_dir(folder, settings)
        is_new = not folder.exists()
        try:
            with exclusive(folder):
                with beside(folder / "result", ADVICE) as temporary:
                    temporary.mkdir()
                    self._write(temporary, folder, save_experts)
                    # From here on until its record is there the folder is that of a search that has not ended.
                    SearchFolder(folder / STATE).remember("settings", lambda: settings)
                    move_into(temporary, folder, (CONFIG, RECORD), WEIGHT_PATTERNS)
                _clear(folder / STATE)  # last: it tells, too, that something may be left to remove
        finally:
            if is_new and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _write(self, folder: Path, final: Path, save_experts: bool) -> None:
        if self.model is not None:
            self.model.save_pretrained(folder, save_experts=save_experts)
        record = {**self.record, "run": {**self.record["run"], "output_dir": str(final)}}
        (folder / RECORD).write_text(json.dumps(record, indent=1))
        if self.config is not None:
            (folder / SETTINGS).write_text(yaml.safe_dump(self.config, sort_keys=False))
        groups = {name: candidates for name, (candidates, _) in self.found.baselines.items()}
        chosen = {name: index for name, (_, index) in self.found.baselines.items()}
        save_candidates(folder / BASELINES, groups, chosen)
        if self.seen is not None:
            self.seen.save(folder)
        plot_front(self.evaluation, folder / FRONT_FIGURE)
        plot_shares(self.evaluation, folder / SHARES_FIGURE)
        plot_convergence(self.found.hypervolumes, folder / CONVERGENCE_FIGURE)
        if self.examples:
            plot_examples(self.examples, folder / EXAMPLES_FIGURE)


def pick_examples(
    point: OperatingPoint,
    heads: Sequence[Head],
    predictions: Predictions,
    names: Sequence[str],
    images: LabelledImages,
) -> list[Examples]:
    """For each expert the images that it answers with the largest and with the smallest probability."""
    confidence, last = [], []
    for _, routing in route_predictions(point, heads, predictions):
        confidence.append(routing.logits.softmax(1).max(1).values)
        last.append(routing.expert_indices)
    confidence, last = torch.cat(confidence), torch.cat(last)
    examples = []
    for index, name in enumerate(names):
        rows = (last == index).nonzero().squeeze(1)
        rows = predictions.rows[rows[confidence[rows].argsort(stable=True)]].tolist()
        if rows:
            easiest, hardest = (
                [images[row].permute(1, 2, 0).numpy() for row in part[:EXAMPLES_SHOWN]] for part in (rows[::-1], rows)
            )
            examples.append(Examples(name, easiest, hardest))
    return examples


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other searches out of an output folder while this lasts, or until this process ends, however it ends.

    Raises:
        PertinenceError: another process searches there, or nobody can write there.
    """
    state = folder / STATE
    check_writable(state, ADVICE)
    lock = FileLock(state / LOCK)
    with writing(state, ADVICE):
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise PertinenceError(
                f"another search is running in {folder}: wait for its end, or choose another --output-dir"
            ) from error
        except (NotImplementedError, OSError) as error:
            if getattr(error, "errno", None) in UNWRITABLE:
                raise
            logger.warning(f"{folder} cannot be locked ({error}): see to it that no other search uses it meanwhile.")
    try:
        yield
    finally:
        with suppress(OSError):
            (state / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # there is something to continue, or all of it is gone
            state.rmdir()


class SearchFolder:
    """The folder of a search while it runs: settings and state, so that a killed search can be continued.

    Args:
        state_dir: None: nothing is kept.
    """

    def __init__(self, state_dir: Path | None):
        self.state_dir = state_dir

    @classmethod
    @contextmanager
    def opened(
        cls, output_dir: str | os.PathLike | None, settings: dict[str, Any], resume: bool, accelerator: Accelerator
    ) -> Iterator[SearchFolder]:
        """Check that a search with these settings may use the folder, note them there, and keep others out meanwhile.

        Raises:
            PertinenceError: it holds something else, cannot be written to, or another search is running there.
        """
        if output_dir is None:
            yield cls(None)
            return
        folder = cls(Path(output_dir) / STATE)
        with ExitStack() as until_the_end:
            if accelerator.is_main_process:
                check_output_dir(output_dir, settings)
                until_the_end.enter_context(exclusive(Path(output_dir)))
                if resume and (Path(output_dir) / RECORD).is_file():
                    logger.warning(f"{output_dir} holds the result of this very search, which is run again.")
                if not (resume and _has_generations(folder.state_dir)):
                    _clear(folder.state_dir)
                folder.remember("settings", lambda: settings)
            accelerator.wait_for_everyone()
            yield folder

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """What was kept under this name, or what `make` makes, which is kept."""
        if self.state_dir is None:
            return make()
        path = self.state_dir / f"{name}.json"
        if not path.is_file():
            value = make()
            with replaced(path, ADVICE) as temporary:
                temporary.write_text(json.dumps(value, indent=1))
        return json.loads(path.read_text())


def holds_result(
    output_dir: str | os.PathLike | None, make_settings: Callable[[], dict[str, Any]], accelerator: Accelerator
) -> bool:
    """Whether a folder holds the result of this very search; all processes get the main one's answer.

    Args:
        output_dir: where a result is to go.
        make_settings: makes those of the search; called only where there is a result.
        accelerator: the processes.

    Raises:
        PertinenceError: it holds that of another search.
    """
    found = False
    if accelerator.is_main_process and output_dir is not None and (Path(output_dir) / RECORD).is_file():
        check_output_dir(output_dir, make_settings())
        if (Path(output_dir) / STATE).is_dir():  # of a search that was killed when all was done, or while done again
            with exclusive(Path(output_dir)), beside(Path(output_dir) / "result", ADVICE):
                _clear(Path(output_dir) / STATE)
        found = True
    (found,) = broadcast_object_list([found])
    return found


def _clear(state_dir: Path) -> None:
    """Remove everything but the lock, which this process holds."""
    for path in state_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def _has_generations(state_dir: Path) -> bool:
    """Whether there is anything to continue; a search that failed before leaves its place to the corrected one."""
    return any(state_dir.glob("*.safetensors"))


def check_output_dir(output_dir: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Refuse a folder that a search must not write to: one that holds anything but the same search or its result.

    Args:
        output_dir: where a result is to go.
        settings: those of the search.

    Raises:
        PertinenceError: it is a file, or holds something else, or another search.
    """
    folder, settings = Path(output_dir), json.loads(json.dumps(settings))
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PertinenceError(f"the output folder {folder} is a file: choose another --output-dir")
    if all(path.name.endswith(SUFFIX) for path in folder.iterdir()):
        return
    try:
        if (folder / RECORD).is_file():
            stored = json.loads((folder / RECORD).read_text())["settings"]
        elif (folder / STATE).is_dir():
            path = folder / STATE / "settings.json"
            stored = settings
            if path.is_file() and _has_generations(path.parent):
                stored = json.loads(path.read_text())
        else:
            raise PertinenceError(
                f"the output folder {folder} holds something else: choose another --output-dir, or empty it"
            )
        differences = _differences(stored, settings)
    except PertinenceError:
        raise
    except MALFORMED as error:
        raise PertinenceError(
            f"the search in the output folder {folder} is damaged: choose another --output-dir, or remove it"
        ) from error
    if differences:
        raise PertinenceError(
            f"the output folder {folder} holds another search ({'; '.join(differences)}): choose another "
            "--output-dir, or remove it"
        )


def _differences(stored: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What to say of each setting that is not what it was."""
    clauses = []
    for key in {**stored, **settings}:
        theirs, ours = stored.get(key), settings.get(key)
        if theirs == ours:
            continue
        if key == "images":
            verbs = {"search": "searched", "report": "reported on"}
            clauses += [f"it {verbs[part]} other images" for part in verbs if theirs[part] != ours[part]]
        elif key in ("experts", "stem"):
            names = [_names(value) for value in (theirs, ours)]
            verb = "are" if key == "experts" else "is"
            is_renamed = names[0] != names[1]
            clauses.append(
                f"its {key} {verb} {names[0]}, not {names[1]}" if is_renamed else f"its {key} had other weights"
            )
        else:
            clauses.append(f"its {key} is {shown(theirs)}, not {shown(ours)}")
    return clauses


def _names(entries: Any) -> str:
    names = [entry["name"] for entry in ([entries] if isinstance(entries, dict) else entries or [])]
    if not all(map(is_name, names)):
        raise ValueError("a name that is none")
    return ", ".join(names) or "none"
