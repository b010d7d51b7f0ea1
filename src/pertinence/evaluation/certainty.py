"""How certain the answers of an operating point are: fitted on the search images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

from ..predictions.predictions import ROWS_AT_ONCE, Predictions
from ..routing.certainty import LARGEST, NODES, NUM_STATISTICS, Certainty, statistics_of
from ..routing.costs import PoolCosts
from ..routing.front import OperatingPoint
from ..routing.heads import Head
from ..routing.mixing import Array, log_softmax, summary
from ..routing.policy import route
from .outcomes import route_predictions
from .reliability import Reliability


FOLDS = 3
FEWEST = 100
"""A path that fewer images take, or fewer than `FOLDS` rightly or wrongly, shares the calibrator of all paths."""
STRENGTH = 100.0
"""Inverse strength of the penalty on weights of standardised statistics."""
HARDLY = 0.95
"""Share of the images that a decision sends on whose final log-odds must not exceed what it forecasts."""


@dataclass(frozen=True)
class Trace:
    """Answers of an operating point to n images, after each member that has run.

    Attributes:
        point: the operating point.
        last: int64 (n,), the expert that ran last.
        statistics: for each member float64 (n, 3), of the answer after it; zero where it has not run.
        right: for each member bool (n,), whether that answer is right.
        ran: for each member bool (n,), whether it has run.
        costs: for each member float64 (n,), what the images have cost when it has run, heads not counted.
    """

    point: OperatingPoint
    last: np.ndarray
    statistics: Mapping[int, np.ndarray]
    right: Mapping[int, np.ndarray]
    ran: Mapping[int, np.ndarray]
    costs: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, point: OperatingPoint, heads: Sequence[Head], predictions: Predictions) -> Trace:
        """Route images on cached predictions, with the code that the model runs."""
        count = len(predictions)
        traced = cls(
            point,
            np.empty(count, dtype=np.int64),
            {member: np.zeros((count, NUM_STATISTICS)) for member in point.members},
            {member: np.zeros(count, dtype=bool) for member in point.members},
            {member: np.zeros(count, dtype=bool) for member in point.members},
            {},
        )
        for start in range(0, count, ROWS_AT_ONCE):
            chunk = predictions.subset(torch.arange(start, min(start + ROWS_AT_ONCE, count)))
            targets = chunk.target_columns.numpy()

            def watch(
                member: int, rows: np.ndarray, answer: Array, start: int = start, targets: np.ndarray = targets
            ) -> None:
                there = start + rows
                traced.statistics[member][there] = statistics_of(summary(answer, predictions.tail))
                traced.right[member][there] = np.asarray(answer.argmax(1)) == targets[rows]
                traced.ran[member][there] = True

            routing = route(point, heads, chunk.outputs, len(chunk), chunk.costs, tail=chunk.tail, watch=watch)
            traced.last[start : start + len(chunk)] = routing.expert_indices
        return replace(traced, costs=_cumulated(traced, predictions.costs))

    def left_at(self, member: int) -> np.ndarray:
        """bool (n,), the images whose final answer is that after a member."""
        return self.last == member

    def sent_on(self, member: int) -> np.ndarray:
        """bool (n,), the images that the decision after a member sends on."""
        return self.ran[member] & ~self.left_at(member)

    @cached_property
    def final(self) -> tuple[np.ndarray, np.ndarray]:
        """Statistics of the final answers, float64 (n, 3), and whether they are right, bool (n,)."""
        statistics, right = np.zeros((len(self.last), NUM_STATISTICS)), np.zeros(len(self.last), dtype=bool)
        for member in self.point.members:
            left = self.left_at(member)
            statistics[left], right[left] = self.statistics[member][left], self.right[member][left]
        return statistics, right


def with_certainty(point: OperatingPoint, heads: Sequence[Head], predictions: Predictions) -> OperatingPoint:
    """An operating point with its `Certainty`, fitted to the search images.

    Each path through the point has a calibrator of its own, a logistic function of the answer's statistics, where that
    predicts left-out images better than the one of all paths does (cross-validation).
    """
    traced = Trace.of(point, heads, predictions)
    pooled = _fit_right(*traced.final)
    exits = np.array([_fit_exits(traced, member, pooled) for member in point.members], np.float32)
    deferred = np.array([_fit_deferred(traced, member, pooled) for member in point.members], np.float32)
    reached = _reached(traced, exits)
    forecasts = np.array([_fit_forecast(traced, member, reached) for member in point.members], np.float32)
    nodes = _nodes(traced, forecasts, reached)
    return replace(point, certainty=Certainty(exits, deferred, forecasts, nodes).rounded())


def fit_temperature(predictions: Predictions, expert: int) -> float:
    """The temperature of an expert that makes its labels most likely (Guo et al. 2017, arXiv 1706.04599)."""
    logits, targets = _logits_of(predictions, expert), predictions.target_columns.numpy()[:, None]

    def loss(log_temperature: float) -> float:
        log_probs = log_softmax(logits / np.float32(np.exp(log_temperature)), predictions.tail)
        return float(-np.take_along_axis(log_probs, targets, 1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def _logits_of(predictions: Predictions, expert: int) -> np.ndarray:
    rows = torch.arange(len(predictions)).split(ROWS_AT_ONCE)
    logits: np.ndarray = torch.cat([predictions.logits(expert, part) for part in rows]).numpy()
    return logits


def measure_certainty(
    point: OperatingPoint,
    heads: Sequence[Head],
    predictions: Predictions,
    expert: int,
    name: str,
    temperature: float | None,
) -> tuple[Reliability, ...]:
    """How far the confidence of an operating point can be believed, and that of an expert with temperature scaling.

    Args:
        point, heads: the point; without a certainty nothing is measured.
        predictions: predictions for images that fitted nothing.
        expert, name: pool index and name of the expert.
        temperature: from `fit_temperature`; None: only the point is measured.
    """
    if point.certainty is None:
        return ()
    parts = [
        (routing.confidence, routing.logits.argmax(1) == chunk.target_columns)
        for chunk, routing in route_predictions(point, heads, predictions)
    ]
    own, right = (torch.cat([part[index] for part in parts]).numpy() for index in (0, 1))  # type: ignore[misc]
    measured = [Reliability.of(point.name, own, right)]
    if temperature is not None:
        logits = _logits_of(predictions, expert)
        top = np.exp(log_softmax(logits / np.float32(temperature), predictions.tail)).max(1)
        hits = logits.argmax(1) == predictions.target_columns.numpy()
        measured.append(Reliability.of(f"{name} with temperature scaling", top, hits))
    return tuple(measured)


def _cumulated(traced: Trace, costs: PoolCosts) -> dict[int, np.ndarray]:
    """What images have cost after each member, in the unit of the objective."""
    spent, ran = np.zeros(len(traced.last)), np.zeros((len(traced.last), costs.num_experts), dtype=bool)
    after = {}
    for member in traced.point.members:
        spent = spent + np.where(traced.ran[member], costs.marginal(costs.objective, member, ran), 0.0)
        ran[:, member] = traced.ran[member]
        after[member] = spent
    return after


def _fit_right(statistics: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weights (4,) of the log-odds that an answer is right; of answers that are all right, or wrong, a constant."""
    if right.all() or not right.any():
        share = (right.sum() + 0.5) / (len(right) + 1)
        return np.array([np.log(share / (1 - share)), *[0.0] * NUM_STATISTICS])
    mean, scale = statistics.mean(0), statistics.std(0) + 1e-9
    fitted = LogisticRegression(C=STRENGTH, solver="newton-cholesky").fit((statistics - mean) / scale, right)
    weights = fitted.coef_[0] / scale
    return np.array([fitted.intercept_[0] - weights @ mean, *weights])


def _applied(weights: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Log-odds (n,), from weights (4,) or (n, 4)."""
    return np.clip(weights[..., 0] + (weights[..., 1:] * statistics).sum(-1), -LARGEST, LARGEST)


def _is_enough(right: np.ndarray) -> bool:
    return len(right) >= FEWEST and FOLDS <= right.sum() <= len(right) - FOLDS


def _fit_exits(traced: Trace, member: int, pooled: np.ndarray) -> np.ndarray:
    """Weights of the images that leave at a member, or those of all if they predict left-out images as well."""
    rows = traced.left_at(member)
    statistics, right = traced.statistics[member][rows], traced.right[member][rows]
    if not _is_enough(right):
        return pooled
    left_out = np.zeros(len(right))
    for kept, others in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(statistics, right):
        left_out[others] = _applied(_fit_right(statistics[kept], right[kept]), statistics[others])
    signs = np.where(right, 1.0, -1.0)
    own, shared = (np.logaddexp(0, -signs * one).sum() for one in (left_out, _applied(pooled, statistics)))
    return _fit_right(statistics, right) if own < shared else pooled


def _fit_deferred(traced: Trace, member: int, pooled: np.ndarray) -> np.ndarray:
    """Weights of the answers that images which a decision sends on would have had."""
    rows = traced.sent_on(member)
    right = traced.right[member][rows]
    return _fit_right(traced.statistics[member][rows], right) if _is_enough(right) else pooled


def _reached(traced: Trace, exits: np.ndarray) -> np.ndarray:
    """float64 (n,), log-odds of the final answers."""
    statistics, _ = traced.final
    return _applied(exits[np.searchsorted(traced.point.members, traced.last)], statistics)


def _fit_forecast(traced: Trace, member: int, reached: np.ndarray) -> np.ndarray:
    """Weights (4,) of what the final log-odds of images that a decision sends on hardly exceed: least squares, raised
    so that `HARDLY` of left-out images are below; NaN if too few are sent on."""
    rows = traced.sent_on(member)
    if rows.sum() < FEWEST:
        return np.full(1 + NUM_STATISTICS, np.nan)
    design = np.column_stack([np.ones(rows.sum()), traced.statistics[member][rows]])
    target, excess = reached[rows], np.zeros(rows.sum())
    for kept, others in KFold(FOLDS, shuffle=True, random_state=0).split(design):
        excess[others] = target[others] - design[others] @ np.linalg.lstsq(design[kept], target[kept])[0]
    weights = np.linalg.lstsq(design, target)[0]
    weights[0] += np.quantile(excess, HARDLY)
    return weights


def _nodes(traced: Trace, forecasts: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """The `nodes` of a `Certainty`."""
    members = traced.point.members
    ceilings = {}
    for row, member in enumerate(members):
        if not np.isnan(forecasts[row]).any():
            forecast = _applied(forecasts[row], traced.statistics[member])
            ceilings[member] = np.where(traced.sent_on(member), forecast, np.inf)
    answerable = np.minimum(reached, np.min(list(ceilings.values()), axis=0)) if ceilings else reached
    right, spent = traced.final[1], traced.costs[members[-1]]
    nodes = []
    for share in NODES:
        threshold = np.quantile(answerable, 1 - share, method="lower")
        stopped = spent
        for member in reversed(ceilings):
            stopped = np.where(ceilings[member] < threshold, traced.costs[member], stopped)
        answered = answerable >= threshold
        # One more: of the surest images none may be wrong here by chance.
        wrong = ((answered & ~right).sum() + 1) / len(right)
        nodes.append((threshold, answered.mean(), wrong, stopped.mean() / spent.mean()))
    return np.array(nodes, np.float32)
