"""Tables of predictions: outputs of models, for searches without the models and the images themselves."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging

from ..routing.costs import PoolCosts
from ..utils.errors import PertinenceError, first_line, shown
from ..utils.validation import LONGEST_NAME, is_name
from .predictions import MAX_DENSE_LABELS, ExpertPredictions, Predictions


logger = logging.get_logger(__name__)

LABEL, SPLIT = "label", "split"
READERS = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": pd.read_json}
TRUST = 0.9
"""Probability that a model is assumed to give its predicted class, if a table has only classes; a mixture weights
models by how often they are right."""
TOLERATED_SUM = 1e-3
"""How much the sum of rounded probabilities may differ from 1."""


@dataclass(frozen=True)
class PredictionTable:
    """Predictions of several models for the same images.

    Attributes:
        names: names of the models by rising cost.
        predictions: predictions of the models.
        fingerprint: content hash of the table.
    """

    names: tuple[str, ...]
    predictions: Predictions
    fingerprint: str

    @classmethod
    def load(
        cls,
        path: str | Path,
        costs: str | Path,
        split: str | None = None,
        *,
        num_labels: int = 0,
        needs_labels: bool = True,
    ) -> PredictionTable:
        """Read a table: a column `label`, and one column for each model.

        Args:
            path: a .parquet, .csv or .json file, or .npz with one array for each column. Floats (n, C) are scores:
                logits, log-probabilities or probabilities; integers (n,) are classes; integers (n, k) are classes,
                best first.
            costs: JSON file with the GMACs by model name; columns that it does not name are left out.
            split: use only the rows with this value in the column `split`; in .npz the arrays whose name starts with
                `<split>_`.
            num_labels: least number of labels, as classes alone do not tell how many there are.
            needs_labels: whether to refuse a table without labels.

        Raises:
            PertinenceError: a file, a column or a cost is missing or malformed.
        """
        path, gmacs = Path(path), _read_costs(Path(costs))
        columns, known = _read_columns(path, split, {LABEL, *gmacs})
        labels = columns.pop(LABEL, None)
        if labels is None and (needs_labels or not columns):
            raise PertinenceError(
                f"{path} has no column {LABEL!r}{f' of split {split!r}' if split else ''}; it has "
                f"{', '.join(known[:12]) or 'none'}"
            )
        if len(columns) < 2:
            raise PertinenceError(
                f"{costs} names {len(columns)} of the models in {path}: at least two are needed; the table has "
                f"{', '.join(name for name in known[:12] if name != LABEL)}"
            )
        return cls.from_arrays(labels, columns, gmacs, num_labels=num_labels, source=str(path))

    @classmethod
    def from_arrays(
        cls,
        labels: np.ndarray | None,
        answers: Mapping[str, np.ndarray],
        gmacs: Mapping[str, float],
        *,
        num_labels: int = 0,
        source: str = "the table",
    ) -> PredictionTable:
        """Make a table from arrays.

        Args:
            labels: integers (n,), class indices from 0; None for a search by agreement.
            answers: predictions by model name, see `load`; probabilities are recognised by their range and sum.
            gmacs: GMACs by model name; models that it does not name are left out.
            num_labels: least number of labels.
            source: name of the table in errors.

        Raises:
            PertinenceError: there are fewer than two models, a cost is impossible, or an array is malformed.
        """
        columns = {name: np.asarray(values) for name, values in answers.items() if name in gmacs}
        if len(columns) < 2:
            raise PertinenceError(f"{source} has answers and costs of {len(columns)} models: at least two are needed")
        gmacs = _check_costs({name: gmacs[name] for name in columns}, source)
        if labels is None:
            labels = np.zeros(len(next(iter(columns.values()))), dtype=np.int64)
        for name in columns:
            if not is_name(name):
                raise PertinenceError(
                    f"{source}: a model cannot be called {shown(name)}: expected one line of at most {LONGEST_NAME} "
                    "printable characters"
                )
        labels, names = np.asarray(labels), sorted(columns, key=lambda name: (gmacs[name], name))
        for name in names:
            if columns[name].shape[:1] != labels.shape[:1]:
                raise PertinenceError(
                    f"column {name!r} of {source} has {len(columns[name])} rows, but there are {len(labels)} labels"
                )
        if labels.dtype.kind not in "iu" or labels.ndim != 1 or not len(labels) or labels.min() < 0:
            raise PertinenceError(f"column {LABEL!r} of {source} must hold class indices from 0")
        digest = hashlib.sha256(json.dumps([[name, gmacs[name]] for name in names]).encode())
        for values in (labels, *(columns[name] for name in names)):
            digest.update(np.ascontiguousarray(values).tobytes())
        width = max(_width(columns[name], name, source) for name in names)
        num_labels = max(width, int(labels.max()) + 1, num_labels)
        if likely := [name for name in names if _are_probabilities(columns[name])]:
            logger.warning(f"{source} has probabilities of {', '.join(likely)}: their logarithms are taken as scores.")
        experts = [_read_model(columns[name], num_labels, name, source) for name in names]
        predictions = Predictions.of_pool(
            experts,
            torch.from_numpy(labels.astype(np.int64)),
            PoolCosts.in_gmacs([gmacs[name] for name in names]),
        )
        return cls(tuple(names), predictions, digest.hexdigest()[:16])

    @classmethod
    def load_all(
        cls, sources: Sequence[tuple[str | Path, str | None]], costs: str | Path, needs_labels: bool = True
    ) -> list[PredictionTable]:
        """Load several tables, or splits of them, given as (path, split), with the largest number of labels of any."""
        tables = [cls.load(path, costs, split, needs_labels=needs_labels) for path, split in sources]
        most = max(table.predictions.num_labels for table in tables)
        return [
            table
            if table.predictions.num_labels == most
            else cls.load(path, costs, split, num_labels=most, needs_labels=needs_labels)
            for table, (path, split) in zip(tables, sources, strict=True)
        ]


def _read_columns(path: Path, split: str | None, wanted: set[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The requested columns that a table has, and the names of all its columns."""
    try:
        if path.suffix == ".npz":
            prefix = f"{split}_" if split else ""
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[prefix + name] for name in sorted(wanted) if prefix + name in arrays}
                return found, list(arrays)
        if path.suffix not in READERS:
            raise PertinenceError(f"{path} is not a table: expected {', '.join([*READERS, '.npz'])}")
        frame = READERS[path.suffix](path)
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, PertinenceError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise PertinenceError(f"the predictions in {path} cannot be read: {reason}") from error
    if split is not None:
        if SPLIT not in frame:
            raise PertinenceError(f"{path} has no column {SPLIT!r}, so it has no split {split!r}: leave --split out")
        known = sorted(map(str, frame[SPLIT].unique()))
        frame = frame[frame[SPLIT].astype(str) == split]
        if frame.empty:
            raise PertinenceError(f"{path} has no split {split!r}; it has {', '.join(known)}")
    columns = {}
    for name in frame.columns.intersection(list(wanted)):
        values = frame[name].to_numpy()
        if values.dtype == object and len(values) and isinstance(values[0], (list, np.ndarray)):
            if len({len(value) if isinstance(value, (list, np.ndarray)) else -1 for value in values}) > 1:
                raise PertinenceError(f"column {name!r} of {path} has rows of different lengths")
            values = np.stack([np.asarray(value) for value in values])
        columns[name] = values
    return columns, [str(name) for name in frame.columns]


def _read_costs(path: Path) -> dict[str, float]:
    try:
        costs = json.loads(path.read_text(encoding="utf-8-sig"))
        costs = {str(name): float(value) for name, value in costs.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PertinenceError(
            f'the costs in {path} cannot be read ({error}): expected JSON like {{"resnet18": 1.8}}'
        ) from error
    return _check_costs(costs, str(path))


def _check_costs(costs: Mapping[str, float], source: str) -> dict[str, float]:
    for name, value in costs.items():
        if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
            raise PertinenceError(f"{source}: the cost of {name!r} must be a positive number of GMACs, got {value}")
    return {name: float(value) for name, value in costs.items()}


def _are_probabilities(values: np.ndarray) -> bool:
    """Whether scores (n, C) are probabilities: between 0 and 1, with sum 1 in every row."""
    if values.dtype.kind != "f" or values.ndim != 2 or not ((values >= 0) & (values <= 1)).all():
        return False
    return bool((abs(values.sum(1, dtype=np.float64) - 1) < TOLERATED_SUM).all())


def _width(values: np.ndarray, name: str, source: str) -> int:
    if values.dtype.kind == "f" and values.ndim == 2:
        return values.shape[1]
    if values.dtype.kind in "iu" and values.ndim in (1, 2) and values.size and values.min() >= 0:
        return int(values.max()) + 1
    raise PertinenceError(
        f"column {name!r} of {source} holds neither scores (floats, one for each class) nor classes (integers from 0)"
    )


def _read_model(values: np.ndarray, num_labels: int, name: str, source: str) -> ExpertPredictions:
    if values.dtype.kind == "f":
        if values.shape[1] != num_labels:
            raise PertinenceError(
                f"column {name!r} of {source} has scores of {values.shape[1]} classes, but there are {num_labels}"
            )
        scores = torch.from_numpy(values.astype(np.float32))
        if not torch.isfinite(scores).all():
            raise PertinenceError(f"column {name!r} of {source} has scores that are not finite")
        if _are_probabilities(values):
            scores = scores.clamp(min=torch.finfo(torch.float32).tiny).log()
        return ExpertPredictions.keep(scores)
    answers = torch.from_numpy(values.reshape(len(values), -1)[:, :1].astype(np.int64))
    scores = torch.full((len(answers), 1), math.log(TRUST))
    rest = torch.full((len(answers),), math.log(1 - TRUST))
    if num_labels <= MAX_DENSE_LABELS:
        dense = torch.full((len(answers), num_labels), math.log((1 - TRUST) / max(num_labels - 1, 1)))
        return ExpertPredictions(dense.scatter_(1, answers, scores), None, None, None, num_labels)
    return ExpertPredictions(scores, answers.int(), rest, None, num_labels)
