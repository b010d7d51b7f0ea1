"""Class by class and group by group: which lose, by an exact paired test whose false discoveries are bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb

import datasets
import numpy as np
import pytest
import torch
from graded_reports import FRONT, NAMES, REPORT, chain, make_predictions, report_on
from pets import make_dataset

from pertinence import PertinenceError
from pertinence.data.columns import Groups
from pertinence.data.dataset import LabelledImages
from pertinence.evaluation.by_class import compare_groups
from pertinence.evaluation.intervals import paired_interval
from pertinence.evaluation.outcomes import evaluate_experts, evaluate_point
from pertinence.predictions.predictions import ExpertPredictions, Predictions


def confusing(predictions: Predictions) -> Predictions:
    """The same pool, whose small expert is sure that two thirds of the images of label 3 have label 2."""
    scores = predictions.experts[0].scores.clone()
    rows = (predictions.labels == 3).nonzero().squeeze(1)
    scores[rows[: 2 * len(rows) // 3], 2] += 20
    small = ExpertPredictions.keep(scores)
    return replace(predictions, experts=(small, *predictions.experts[1:]))


def confusing_evenly(predictions: Predictions) -> Predictions:
    """The same pool, whose two cheaper experts are as often right, on other images."""
    small, medium = (expert.scores.clone() for expert in predictions.experts[:2])
    for offset, scores in enumerate((small, medium)):
        rows = torch.arange(len(scores)) % 10 // 2 == offset
        scores[:] = torch.nn.functional.one_hot((predictions.labels + rows) % scores.shape[1], scores.shape[1])
    experts = (ExpertPredictions.keep(small), ExpertPredictions.keep(medium), *predictions.experts[2:])
    return replace(predictions, experts=experts)


CONFUSED = confusing(make_predictions(900, seed=2))
EAGER = [*FRONT[:1], chain("eager", (0, 2), 0.6, REPORT), *FRONT[2:]]


@pytest.fixture(scope="module")
def confused():
    labels = {index: f"label {index}" for index in range(4)}
    return report_on(EAGER, CONFUSED, default="eager", reference=2, label_names=labels)


def test_a_class_that_the_cheap_path_ruins_is_found_and_named(confused):
    (lost,) = confused.by_class.losing
    assert (lost.name, lost.loses, confused.by_class.num_tested) == ("label 3", True, 4)
    eager = EAGER[1]
    ours, theirs = evaluate_point(eager.point, eager.heads, CONFUSED), evaluate_experts(CONFUSED)[2]
    of_it = CONFUSED.targets == 3
    assert lost.images == of_it.sum()
    assert lost.accuracy == pytest.approx(ours.correct[of_it].double().mean().item())
    assert lost.reference_accuracy == pytest.approx(theirs.correct[of_it].double().mean().item())
    assert lost.difference == pytest.approx(lost.accuracy - lost.reference_accuracy)
    assert lost.interval[0] < lost.difference < lost.interval[1] < 0
    assert lost.first_share == pytest.approx((ours.last[of_it] == 0).double().mean().item())
    assert confused.by_class.first_share == pytest.approx(ours.figures.expert_shares[0])


def test_p_values_are_those_of_the_exact_sign_test(confused):
    for group in confused.by_class.groups:
        losses, disagreeing = group.losses, group.losses + group.wins
        exact = sum(comb(disagreeing, k) for k in range(losses, disagreeing + 1)) / 2**disagreeing
        assert group.p_value == pytest.approx(exact)
    tested = sorted(group.p_value for group in confused.by_class.groups)
    adjusted = [min(p * 4 / (rank + 1) for rank, p in list(enumerate(tested))[at:]) for at in range(4)]
    assert sorted(group.q_value for group in confused.by_class.groups) == pytest.approx(adjusted)


def test_what_loses_is_said_in_a_line_and_what_does_not_is_not(confused):
    line = str(confused).splitlines()[-1]
    assert line.startswith("1 of 4 classes loses more than chance allows against large: label 3 -")
    assert "small alone answers" in line
    assert "! loses more than chance allows" in repr(confused)
    assert "\nlabel 3 !  " in repr(confused)
    honest = report_on([*FRONT[:1], chain("all", (2,), 0.0, REPORT)], REPORT, default="all", reference=2)
    assert honest.by_class.losing == []
    assert "chance allows" not in str(honest)


def test_classes_come_as_rows_and_as_plain_values(confused):
    table = confused.by_class.to_pandas()
    assert list(table["class"])[0] == "label 3"
    assert list(table["loses"]) == [True, False, False, False]
    values = json.loads(json.dumps(confused.to_dict()))["by_class"]
    assert (values["by"], values["operating_point"], values["reference"], values["first"]) == (
        "class", "eager", NAMES[2], NAMES[0],
    )  # fmt: skip
    assert [group["name"] for group in values["groups"]] == list(table["class"])
    assert sum(group["images"] for group in values["groups"]) == 900
    assert "by_group" not in confused.to_dict()


def test_groups_are_told_even_if_none_loses():
    codes = torch.arange(len(REPORT)) % 2
    groups = Groups("camera", codes, {0: "old", 1: "new"})
    evaluation = report_on(FRONT, REPORT, default="most-accurate", reference=2, groups=groups)
    assert {group.name for group in evaluation.by_group.groups} == {"old", "new"}
    assert str(evaluation).splitlines()[-1] == (
        "None of 2 groups by camera has enough images to tell whether it loses against large."
    )
    assert evaluation.to_dict()["by_group"]["by"] == "camera"
    groups = Groups("camera", torch.arange(len(REPORT)) % 2, {0: "old", 1: "new"})
    level = report_on(FRONT, confusing_evenly(REPORT), default="fastest", reference=1, groups=groups)
    assert str(level).splitlines()[-1] == "None of 2 groups by camera loses more than chance allows against medium."


def test_groups_that_no_images_could_condemn_are_not_tested():
    """Of 40 groups of four images none can lose significantly; testing them would cost the one that can."""
    few = torch.arange(160) // 4
    codes = torch.cat([few, torch.full((len(CONFUSED) - 160,), 40)])
    groups = Groups("site", codes, {})
    evaluation = report_on(FRONT, CONFUSED, default="fastest", reference=2, groups=groups)
    by_site = evaluation.by_group
    tested = [group for group in by_site.groups if group.q_value is not None]
    assert [group.name for group in tested] == ["40"]
    assert tested[0].q_value == pytest.approx(tested[0].p_value)
    assert "of 40 more there are too few images to tell" in by_site.sentence


def test_an_agreement_has_no_classes():
    assert report_on(FRONT, REPORT.agreeing()).by_class is None


def test_false_discoveries_are_as_rare_as_promised():
    """Both are as good on every class: in at most one of twenty draws anything is said to lose."""
    rng, count = np.random.default_rng(0), 2000
    base = evaluate_point(FRONT[0].point, FRONT[0].heads, REPORT)
    found = 0
    for _ in range(400):
        hits = torch.from_numpy(rng.random((2, count)) < 0.8)
        sides = [replace(base, correct=one, last=torch.zeros(count, dtype=torch.int64)) for one in hits]
        groups = Groups("class", torch.from_numpy(rng.integers(0, 20, count)), {})
        found += bool(compare_groups(groups, *sides, ("a", "b", "c"), 0).losing)
    assert found / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.parametrize("count", [10, 30, 300])
def test_intervals_of_small_groups_cover(count):
    """Exactly, over all outcomes of a trinomial with 6 % losses and 4 % wins."""
    covered = 0.0
    for losses in range(count + 1):
        for wins in range(count + 1 - losses):
            chance = comb(count, losses) * comb(count - losses, wins) * 0.06**losses * 0.04**wins
            chance *= 0.9 ** (count - losses - wins)
            low, high = paired_interval(wins, losses, count)
            covered += chance * (low <= -0.02 <= high)
    assert covered > 0.93


# The column of the groups


def test_a_column_of_text_numbers_or_labels_makes_groups():
    kinds = datasets.ClassLabel(names=["indoor", "outdoor"])
    dataset = make_dataset(
        camera=(datasets.Value("string"), ["old", None, "new", "old", "new", "old"]),
        year=(datasets.Value("int32"), [1999, 2001, 1999, 2001, 1999, 2001]),
        place=(kinds, [0, 1, 0, 1, 0, 1]),
    )
    for column, expected in {
        "camera": ["old", "(no value)", "new", "old", "new", "old"],
        "year": ["1999", "2001"] * 3,
        "place": ["indoor", "outdoor"] * 3,
    }.items():
        groups = LabelledImages(dataset, label_column="label", group_column=column).groups
        assert [groups.names[code] for code in groups.codes.tolist()] == expected
    images = LabelledImages(dataset, label_column="label", group_column="camera").select(torch.tensor([4, 1]))
    assert [images.groups.names[code] for code in images.groups.codes.tolist()] == ["new", "(no value)"]


def test_a_column_that_makes_no_groups_is_refused():
    dataset = make_dataset(weight=(datasets.Value("float32"), [0.5] * 6))
    with pytest.raises(PertinenceError, match=r"no column 'camera' to group images by; the columns are image, label"):
        LabelledImages(dataset, group_column="camera")
    with pytest.raises(PertinenceError, match=r"'weight' holds float32: images are grouped by text"):
        LabelledImages(dataset, group_column="weight")
