"""How far confidence can be believed: figures by hand, and their standard errors."""

from __future__ import annotations

import numpy as np
import pytest

from pertinence.evaluation.intervals import auroc
from pertinence.evaluation.reliability import BINS, Reliability


def answers(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Answers whose confidence is the probability that they are right."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 1.5, count)
    return confidence, rng.random(count) < confidence


def test_figures_are_those_by_hand():
    confidence, right = answers(1500)
    measured = Reliability.of("ours", confidence, right)
    order = np.argsort(-confidence)
    gaps = [abs(confidence[part].mean() - right[part].mean()) for part in np.array_split(order, BINS)]
    risks = (~right[order]).cumsum() / np.arange(1, 1501)
    assert measured.ece.value == pytest.approx(np.mean(gaps))
    assert measured.brier.value == pytest.approx(((confidence - right) ** 2).mean())
    assert measured.auroc.value == pytest.approx(auroc(confidence, right))
    assert measured.aurc.value == pytest.approx(risks.mean())
    assert measured.risks[-1] == pytest.approx(1 - right.mean())
    assert len(measured.bins) == BINS
    assert "ECE 0.0" in str(measured)


def test_standard_errors_are_those_over_draws():
    several = [Reliability.of("ours", *answers(600, seed)) for seed in range(60)]
    for name in ("brier", "auroc", "aurc"):
        measures = [getattr(one, name) for one in several]
        spread = np.std([one.value for one in measures])
        assert np.mean([one.standard_error for one in measures]) == pytest.approx(spread, rel=0.35)
        low, high = measures[0].interval
        assert low < measures[0].value < high


def test_a_confidence_that_is_too_large_is_seen():
    confidence, right = answers(3000)
    assert Reliability.of("", confidence, right).ece.value < 0.04
    assert Reliability.of("", confidence ** (1 / 3), right).ece.value > 0.1


def test_answers_that_are_all_right_have_no_auroc():
    measured = Reliability.of("ours", np.linspace(0.1, 0.9, 40), np.ones(40, dtype=bool))
    assert measured.auroc is None
    assert measured.aurc.value == 0
    assert "AUROC" not in str(measured)
