"""`SearchResult`: the result of a search, which is saved or pushed as one model with its record."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import PartialState
from huggingface_hub import CommitInfo
from transformers.utils import logging

from ..data.dataset import LabelledImages, raise_or
from ..data.seen import SeenImages
from ..evaluation.candidates import save_candidates
from ..evaluation.certainty_plots import plot_certainty
from ..evaluation.outcomes import route_predictions
from ..evaluation.plots import plot_convergence, plot_examples, plot_front, plot_shares
from ..evaluation.report import Evaluation
from ..hub.layout import (
    BASELINES,
    CERTAINTY_FIGURE,
    CONVERGENCE_FIGURE,
    EXAMPLES_FIGURE,
    FRONT_FIGURE,
    RECORD,
    SETTINGS,
    SHARES_FIGURE,
    STATE,
    WEIGHT_PATTERNS,
)
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..predictions.predictions import Predictions
from ..routing.front import Front, OperatingPoint
from ..routing.heads import Head
from ..routing.metrics import ACCURACY
from ..runtime.entry import CONFIG
from ..utils.io import beside, move_into
from .folder import ADVICE, SearchFolder, check_output_dir, clear_state, exclusive
from .front_search import FoundFront


logger = logging.get_logger(__name__)

EXAMPLES_SHOWN = 8
OTHER = "another label"


class Example(NamedTuple):
    """An image and what it was taken for.

    Attributes:
        image: uint8 (H, W, 3).
        answer: name of the label that it was given.
        label: name of its own label; None if the images have none.
    """

    image: np.ndarray
    answer: str
    label: str | None


@dataclass(frozen=True)
class Examples:
    """Images on which one expert ran last, chosen by the confidence of the answer.

    Attributes:
        expert: name of the expert.
        easiest, hardest: by falling and by rising confidence.
    """

    expert: str
    easiest: list[Example]
    hardest: list[Example]


@dataclass(repr=False)
class SearchResult:
    """The result of a search; prints as the summary of its evaluation.

    Attributes:
        model: the model with the whole front, ready to run; None for a search on a table of predictions.
        evaluation: the front and its baselines on the report images.
        found: heads, baselines and the course of the search.
        record: everything else, as stored in `search_result.json`.
        examples: report images by the expert that ran last.
        seen: hashes of the images that the search and its report used; None for a search on a table of predictions.
        is_main_process: whether this is the process that saves.
        config: resolved settings that repeat this search, as stored in `search.yaml`; None if started from Python.
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

    def __repr__(self) -> str:
        return str(self.evaluation)

    def save(self, output_dir: str | os.PathLike[str], save_experts: bool = False) -> None:
        """Write a loadable model, `search_result.json`, plots and baselines, each file atomically.

        If there are several processes, all must call this: the main one saves, the others wait for it.

        Args:
            output_dir: a new or empty folder, or one that contains this search or its result.
            save_experts: also copy each expert's own files.

        Raises:
            PertinenceError: the folder contains something else.
        """
        if self.is_main_process:
            self._save(Path(output_dir), save_experts)
        PartialState().wait_for_everyone()

    def push_to_hub(self, repo_id: str, *, save_experts: bool = False, **options: Any) -> CommitInfo | None:
        """Push model, image processor, card, record, baselines and plots to the Hub, in one commit.

        If there are several processes, all must call this: the main one pushes, the others wait for it.

        Args:
            repo_id: id of the model repository; it is created if it does not exist.
            save_experts: also push a copy of each expert's own files.
            options: `private`, `revision`, `create_pr`, `replace_card`, `token`, ... of
                `pertinence.hub.push.push_folder`.

        Returns:
            The commit; None in all processes but the main one.

        Raises:
            PertinenceError: an expert is a local folder, which others could not load, or must not be copied.
        """
        from ..hub.push import push_folder

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
                    # From here on, until it has its record, the folder is that of an unfinished search.
                    SearchFolder(folder / STATE).remember("settings", lambda: settings)
                    move_into(temporary, folder, (CONFIG, RECORD), WEIGHT_PATTERNS)
                clear_state(folder / STATE)  # last, as this folder also marks that something may have to be removed
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
        if self.evaluation.certainty:
            plot_certainty(self.evaluation.certainty, folder / CERTAINTY_FIGURE)
        if self.found.hypervolumes:
            plot_convergence(self.found.hypervolumes, folder / CONVERGENCE_FIGURE)
        if self.examples:
            plot_examples(self.examples, folder / EXAMPLES_FIGURE)


def pick_examples(
    point: OperatingPoint,
    heads: Sequence[Head],
    predictions: Predictions,
    names: Sequence[str],
    images: LabelledImages,
    labels: Mapping[int, str],
) -> list[Examples]:
    """For each expert the images on which it runs last with the largest and with the smallest confidence.

    Args:
        point, heads: the operating point that answers.
        predictions: predictions for the images.
        names: names of the experts.
        images: the images.
        labels: names of the labels of the pool.
    """
    tops, answers, ends = [], [], []
    for part, routing in route_predictions(point, heads, predictions):
        top = routing.logits.softmax(1).max(1)
        tops.append(top.values)
        answers.append(part.labels_at(top.indices))
        ends.append(routing.expert_indices)
    confidence, answer, last = torch.cat(tops), torch.cat(answers), torch.cat(ends)

    def shown(places: torch.Tensor) -> list[Example]:
        rows = predictions.rows[places].tolist()
        targets = predictions.labels[predictions.rows[places]].tolist()
        known = predictions.measure == ACCURACY
        found = zip(raise_or([images[row] for row in rows]), answer[places].tolist(), targets, strict=True)
        return [
            Example(image.permute(1, 2, 0).numpy(), labels.get(given, OTHER), labels[target] if known else None)
            for image, given, target in found
        ]

    examples = []
    for index, name in enumerate(names):
        places = (last == index).nonzero().squeeze(1)
        places = places[confidence[places].argsort(stable=True)]
        if len(places):
            examples.append(Examples(name, shown(places.flip(0)[:EXAMPLES_SHOWN]), shown(places[:EXAMPLES_SHOWN])))
    return examples
