"""`RoutingMonitor`: detects, without labels, that images are no longer like those that a model was measured on."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..models.modeling_pertinence import PertinenceForImageClassification, PertinenceOutput
from ..routing.confidence import CONFIDENCE_BINS, CONFIDENCE_EDGES, confidence_bins
from ..routing.metrics import format_table
from ..routing.policy import Routing
from ..utils.errors import PertinenceError


BETA_PARAMETERS = (0.5, 0.7, 0.86, 1.0, 1.16, 1.42, 2.0)
"""The bets assume p-values from Beta(a, b), for a and b among these: small ones, large ones, both or neither."""
START_SCALE = 100
"""A shift is expected after some hundred images: 100 / (n + 100) of the stake is left after n images."""
AT_ONCE = 512


class RoutingMonitor:
    r"""Detects distribution shift: compares which experts answer, and how confidently, with the report images.

    This is a sequential test with a guarantee: as long as images are exchangeable with the report images, the
    probability that it ever raises an alarm, however long it runs, is at most `false_alarm_rate` (over the draw of
    both).

    It is a conformal test martingale. Each image falls into a cell, given by the expert that ran last and the bin of
    the largest probability; later experts and lower confidence are stranger. The p-value of an image is its rank by
    strangeness, with ties broken at random, among the report images and all images seen since. For exchangeable
    images the p-values are independent and uniform, however few images were counted (Vovk, Nouretdinov and Gammerman
    2003, "Testing exchangeability on-line"). Bets that the p-values are not uniform but Beta(a, b), with a and b from
    a grid, start anew at every image (the mixture of Shiryaev and Roberts, with weights that sum to one, as in Vovk
    et al. 2021, "Retrain or not retrain"). The evidence is the value of a stake of 1; the probability that it ever
    reaches 1 / `false_alarm_rate` is at most `false_alarm_rate` (Ville's inequality).

    The test detects both directions: stranger images, and images that are too easy. A shift after n normal images is
    detected later: about 2 log(n / 100) more evidence is needed, on the log scale. Since images are also compared with
    those seen since the start, a slow drift, over many more images than the report had, may pass as normal. Each
    operating point needs its own monitor: make a new one after `set_budget`.

    Args:
        model: the model that answers.
        operating_point: name of the monitored point; default: the model's.
        false_alarm_rate: probability of ever raising an alarm on images like the report images.
        reference: int64 (N, 32), `count_answers` of other normal images; default: the counts stored when the model was
            searched (above 256 labels they are approximate, and so is the guarantee).
        seed: random seed of the ranks among ties.

    Attributes:
        images: number of images since the start or the last `reset`.
        alarmed_after: number of images at the alarm; None: no alarm.
        log_evidence: natural log of the current evidence against normal images; the alarm is at `log_threshold`.

    Raises:
        PertinenceError: nothing was counted for this operating point, or the rate is not a probability.

    Examples:
        >>> monitor = RoutingMonitor(model, false_alarm_rate=0.01)
        >>> for images in stream:
        ...     if monitor.update(model(images)):
        ...         print(monitor)
        ...         break
        >>> monitor.alarmed
        False
    """

    def __init__(
        self,
        model: PertinenceForImageClassification,
        operating_point: str | None = None,
        false_alarm_rate: float = 0.01,
        *,
        reference: torch.Tensor | None = None,
        seed: int = 0,
    ):
        if not 0 < false_alarm_rate < 1:
            raise PertinenceError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate}")
        point = model.front.find(operating_point or model.config.operating_point)
        shape = (len(model.front.expert_names), CONFIDENCE_BINS)
        if reference is None and (model.config.max_error_rate is not None or model.calibrated_scores):
            raise PertinenceError(
                "the report images were all answered, with the scores of the experts, so that a model that gives up "
                "early or has calibrated_scores looks changed: monitor it without, or give reference=..."
            )
        if reference is None:
            reference = model.routing_reference.get(point.name, torch.zeros(shape, dtype=torch.int64))
        counts = reference
        if tuple(counts.shape) != shape:
            raise PertinenceError(
                f"reference must have shape {shape}, as count_answers gives, got {tuple(counts.shape)}"
            )
        if not counts.any():
            raise PertinenceError(
                f"nothing is known of the answers at operating point {point.name!r}, because this model was not "
                "searched (or before answers were counted): search it, or give reference=count_answers(...) of the "
                "answers to normal images"
            )
        self.operating_point, self.expert_names = point, model.front.expert_names
        self.false_alarm_rate, self.log_threshold = false_alarm_rate, -math.log(false_alarm_rate)
        self._reference = counts.cpu().numpy().astype(np.int64)
        self._seed = seed
        a, b = (grid.ravel() for grid in np.meshgrid(BETA_PARAMETERS, BETA_PARAMETERS))
        self._powers = np.stack([a - 1, b - 1])
        self._scales = np.array(
            [math.lgamma(x + y) - math.lgamma(x) - math.lgamma(y) for x, y in zip(a, b, strict=True)]
        )
        self.reset()

    def reset(self) -> None:
        """Start a new test, with its own false-alarm rate: forget all images and the alarm."""
        self.images, self.log_evidence = 0, 0.0
        self.alarmed_after: int | None = None
        self._seen = np.zeros_like(self._reference)
        self._stakes = np.full(len(self._scales), -np.inf)
        self._random = np.random.default_rng(self._seed)

    @property
    def alarmed(self) -> bool:
        return self.alarmed_after is not None

    @property
    def shares(self) -> np.ndarray:
        """Share of the images on which each expert ran last, float64 (N,)."""
        return self._seen.sum(1) / max(self.images, 1)

    @property
    def expected_shares(self) -> np.ndarray:
        """The same of the report images."""
        return self._reference.sum(1) / self._reference.sum()

    @property
    def histogram(self) -> np.ndarray:
        """Share of the images in each bin of confidence, rising (see `CONFIDENCE_EDGES`), float64 (32,)."""
        return self._seen.sum(0) / max(self.images, 1)

    @property
    def expected_histogram(self) -> np.ndarray:
        """The same of the report images."""
        return self._reference.sum(0) / self._reference.sum()

    def update(self, output: PertinenceOutput | Routing) -> bool:
        """Add answers, in the order of the batch; the result does not depend on the batch size.

        Args:
            output: output of the model for the next images, at this monitor's operating point.

        Returns:
            Whether there has been an alarm, now or before.

        Raises:
            PertinenceError: the output is from another operating point, or incomplete.
        """
        if output.logits is None or output.expert_indices is None:
            raise PertinenceError("the monitor needs logits and expert_indices: give it the output of the model")
        experts, bins = output.expert_indices.cpu(), confidence_bins(output.logits.float()).cpu()
        strangers = set(experts.unique().tolist()) - set(self.operating_point.members)
        if strangers:
            raise PertinenceError(
                f"expert {self.expert_names[min(strangers)]!r} is no member of {self.operating_point.name!r}, which "
                "this monitor watches: make one for the operating point that answers"
            )
        # Bins rise with confidence, cells with strangeness.
        cells = (experts * CONFIDENCE_BINS + CONFIDENCE_BINS - 1 - bins).numpy()
        for start in range(0, len(cells), AT_ONCE):
            self._note(cells[start : start + AT_ONCE])
        return self.alarmed

    def _note(self, cells: np.ndarray) -> None:
        known = (self._reference + self._seen)[:, ::-1].ravel()
        evidence = self._bet(conformal_p_values(cells, known, self._random.random(len(cells))))
        over = np.flatnonzero(evidence >= self.log_threshold)
        if self.alarmed_after is None and len(over):
            self.alarmed_after = self.images + int(over[0]) + 1
        self.log_evidence = float(evidence[-1])
        self.images += len(cells)
        self._seen += np.bincount(cells, minlength=known.size).reshape(self._seen.shape)[:, ::-1]

    def _bet(self, p_values: np.ndarray) -> np.ndarray:
        """Log of the evidence after each of n p-values, (n,).

        At the k-th image the stake w_k is put on every bet, and from then on multiplied by each density b_n, so that
        all stakes together are R_n = (R_(n-1) + w_n) b_n; the rest of the stake stays unchanged.
        """
        p = np.clip(p_values, 1e-12, 1 - 1e-12)
        densities = np.stack([np.log(p), np.log1p(-p)], 1) @ self._powers + self._scales
        count = self.images + np.arange(1, len(p) + 1)
        set_now = np.log(START_SCALE / ((count + START_SCALE - 1) * (count + START_SCALE)))
        grown = densities.cumsum(0)
        started = np.concatenate([self._stakes[None], set_now[:, None] - (grown - densities)])
        stakes = grown + np.logaddexp.accumulate(started)[1:]
        self._stakes = stakes[-1]
        mean = np.logaddexp.reduce(stakes, 1) - math.log(stakes.shape[1])
        return np.logaddexp(mean, np.log(START_SCALE / (count + START_SCALE)))

    def __repr__(self) -> str:
        rows = [
            [name, f"{100 * expected:.1f} %", f"{100 * seen:.1f} %"]
            for name, expected, seen in zip(self.expert_names, self.expected_shares, self.shares, strict=True)
        ]
        medians = (_median(histogram) for histogram in (self.expected_histogram, self.histogram))
        rows.append(["median confidence", *medians])
        state = f"alarm after {self.alarmed_after}" if self.alarmed else "no alarm"
        table = format_table([self.operating_point.name, "expected", "seen"], rows)
        return (
            f"{table}\n{self.images} images: {state}; log evidence {self.log_evidence:.2f}, alarm at "
            f"{self.log_threshold:.2f} (false-alarm rate {self.false_alarm_rate:g})"
        )


def conformal_p_values(cells: np.ndarray, known: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Rank of each image by strangeness among the reference and the images before it, from 0 (strangest) to 1.

    Args:
        cells: int64 (n,), strangeness of each image.
        known: int64 (cells,), number of reference images of each strangeness.
        uniform: float64 (n,) in [0, 1), ranks among ties.

    Returns:
        float64 (n,); independent and uniform if all images are exchangeable.
    """
    before = np.tri(len(cells), k=-1, dtype=bool)
    stranger = (known[::-1].cumsum()[::-1] - known)[cells] + (before & (cells > cells[:, None])).sum(1)
    equal = known[cells] + (before & (cells == cells[:, None])).sum(1)
    return (stranger + uniform * (equal + 1)) / (known.sum() + np.arange(1, len(cells) + 1))


def _median(histogram: np.ndarray) -> str:
    """Lower edge of the bin of the median, as a probability."""
    if not histogram.any():
        return ""
    middle = int(np.searchsorted(histogram.cumsum(), histogram.sum() / 2))
    return f"{1 / (1 + math.exp(-CONFIDENCE_EDGES[middle - 1])):.5f}" if middle else "0"
