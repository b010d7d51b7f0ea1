"""The report of a front: every figure measured on the report images, beside what it must be compared with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from graded_reports import (
    BASELINES,
    FRONT,
    GMACS,
    NAMES,
    REPORT,
    SEARCH,
    chain,
    front_of,
    make_predictions,
    report_on,
)

from pertinence import Figures, OperatingPoint, Stage
from pertinence.evaluation.candidates import Candidate
from pertinence.evaluation.outcomes import evaluate_experts, evaluate_oracle, evaluate_point, routing_auroc
from pertinence.evaluation.report import Evaluation
from pertinence.predictions.predictions import Predictions
from pertinence.routing.costs import PoolCosts


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return report_on(FRONT, REPORT, default="good", baselines=BASELINES, warnings=["Mind the gap."])


def row_of(evaluation: Evaluation, name: str) -> str:
    (row,) = [line for line in repr(evaluation).splitlines() if line.startswith(f"{name}  ")]
    return row


# What is measured


def test_points_are_measured_on_the_report_images_and_keep_what_the_search_knew(evaluation):
    for point, candidate in zip(evaluation.front, FRONT, strict=True):
        measured = evaluate_point(candidate.point, candidate.heads, REPORT).figures
        assert point == replace(candidate.point, report=measured)
        assert point.report.samples == 500
        assert point.select.samples == 800


def test_experts_and_the_oracle_are_measured_on_the_report_images(evaluation):
    assert evaluation.experts == tuple(one.figures for one in evaluate_experts(REPORT))
    assert evaluation.oracle == evaluate_oracle(REPORT).figures
    assert evaluation.expert_names == NAMES


def test_baselines_are_measured_on_the_report_images(evaluation):
    assert list(evaluation.baselines) == list(BASELINES)
    for name, (candidates, chosen) in BASELINES.items():
        series = evaluation.baselines[name]
        assert series.default == chosen
        for point, candidate in zip(series.points, candidates, strict=True):
            assert point.report == evaluate_point(candidate.point, candidate.heads, REPORT).figures
            assert point.select == candidate.point.select


def test_points_are_compared_with_the_largest_expert_on_the_same_images(evaluation):
    large = REPORT.correct()[:, 2].double()
    for series in (evaluation.series, *evaluation.baselines.values()):
        for point, versus in zip(series.points, series.versus_reference, strict=True):
            assert versus.mean == pytest.approx(point.report.accuracy - large.mean().item(), abs=1e-12)
            assert versus.interval[0] <= versus.mean <= versus.interval[1]
    good = evaluate_point(FRONT[2].point, FRONT[2].heads, REPORT)
    error = good.versus(evaluate_experts(REPORT)[2])[1]
    assert evaluation.series.versus_reference[2].standard_error == pytest.approx(error, rel=0.1)


def test_points_are_compared_with_a_random_mix_at_their_cost(evaluation):
    low, middle, high = (figures.accuracy for figures in evaluation.experts)
    for point, versus in zip(evaluation.front, evaluation.series.versus_mix, strict=True):
        cost = min(point.report.gmacs, 10)  # beyond the largest expert nothing is left to mix with
        chords = [low + (high - low) * (cost - 1) / 9]
        chords.append(low + (middle - low) * (cost - 1) / 2 if cost < 3 else middle + (high - middle) * (cost - 3) / 7)
        assert versus.mean == pytest.approx(point.report.accuracy - max(chords), abs=1e-12)
        assert evaluation.hull(cost) == pytest.approx(max(chords))


def test_the_default_is_judged_by_how_well_it_knows(evaluation):
    by_expert = routing_auroc(FRONT[2].point, FRONT[2].heads, REPORT)
    assert evaluation.default == "good"
    assert evaluation.auroc == {NAMES[expert]: value for expert, value in by_expert.items()}
    assert set(evaluation.auroc) == {"small", "large"}


# Areas


def test_hypervolumes_are_between_the_cheapest_accuracy_and_the_largest_cost(evaluation):
    floor = evaluation.experts[0].accuracy
    single = report_on(FRONT[2:3], REPORT)
    good = single.front[0].report
    assert single.hypervolumes["front"] == pytest.approx((10 - good.gmacs) / 10 * (good.accuracy - floor))
    oracle, first = evaluation.oracle, evaluation.experts[0]
    rising = (oracle.gmacs - first.gmacs) / 10 * (oracle.accuracy - floor) / 2  # random mixes of oracle and expert
    assert evaluation.hypervolumes["oracle"] == pytest.approx(
        rising + (10 - oracle.gmacs) / 10 * (oracle.accuracy - floor)
    )
    at = np.linspace(1, 10, 9001)
    area = np.trapezoid([evaluation.hull(cost) - floor for cost in at], at) / 10
    assert evaluation.hypervolumes["random-mix"] == pytest.approx(area, abs=1e-6)


def test_hypervolumes_come_in_order(evaluation):
    volumes = evaluation.hypervolumes
    assert set(volumes) == {"front", *BASELINES, "static", "random-mix", "oracle"}
    assert volumes["static"] < volumes["random-mix"]
    assert volumes["experts"] == pytest.approx(volumes["random-mix"])
    assert 0 < volumes["random-mix"] < volumes["oracle"]
    assert 0 < volumes["front"] < volumes["oracle"]


def test_the_gap_is_what_lies_between_random_mixes_and_the_oracle(evaluation):
    volumes = evaluation.hypervolumes
    above = volumes["front"] - volumes["random-mix"]
    assert evaluation.gap_closed == pytest.approx(above / (volumes["oracle"] - volumes["random-mix"]))
    assert f"closes {100 * evaluation.gap_closed:.1f} % of the gap from random mixes to the oracle" in repr(evaluation)


def test_where_nothing_can_be_gained_no_gap_is_closed():
    alike = Predictions.of_pool([REPORT.experts[2]] * 3, REPORT.labels, PoolCosts.in_gmacs(GMACS))
    evaluation = report_on(FRONT[:1], alike)
    assert evaluation.gap_closed is None
    assert "gap" not in repr(evaluation)
    assert evaluation.to_dict()["gap_closed"] is None


# From search to report


def test_the_drop_is_the_lead_on_the_search_images_less_that_on_the_report_images(evaluation):
    leads = []
    for images in (SEARCH, REPORT):
        large = evaluate_experts(images)[2].figures.accuracy
        leads.append([evaluate_point(c.point, c.heads, images).figures.accuracy - large for c in FRONT[1:]])
    assert evaluation.drop == pytest.approx(np.mean(leads[0]) - np.mean(leads[1]))
    assert evaluation.drop != 0
    how = "smaller" if evaluation.drop > 0 else "larger"
    assert f"is {100 * abs(evaluation.drop):.2f} points {how} on these images than stated" in repr(evaluation)


def test_on_the_search_images_themselves_nothing_drops():
    assert report_on(FRONT, SEARCH).drop == pytest.approx(0, abs=1e-12)


def test_single_experts_and_unknown_search_figures_have_no_drop():
    unknown = replace(FRONT[2], point=replace(FRONT[2].point, select=None))
    for evaluation in (
        report_on(FRONT[:1], REPORT),
        report_on(FRONT, REPORT, select_experts=()),
        report_on([unknown], REPORT),
    ):
        assert evaluation.drop is None
        assert "than stated" not in repr(evaluation)


# What is said


def test_points_below_a_random_mix_are_named(evaluation):
    # Pays for two experts on every image, and answers as the second alone does.
    wasteful = chain("wasteful", (0, 1), 1.1, SEARCH)
    found = report_on([wasteful, FRONT[2]], REPORT)
    assert found.below_mix == ["wasteful"]
    assert "Below a random mix of experts at the same cost: wasteful." in repr(found)
    assert found.to_dict()["below_random_mix"] == ["wasteful"]
    assert report_on(FRONT[2:], REPORT).below_mix == []
    assert "Below a random mix" not in repr(report_on(FRONT[2:], REPORT))


def test_the_table_has_a_row_for_everything_that_was_measured(evaluation):
    for name, figures in zip(NAMES, evaluation.experts, strict=True):
        row = row_of(evaluation, name)
        assert f"{100 * figures.accuracy:.2f} %" in row
        assert row.endswith(f"{100 * (1 - figures.gmacs / 10):.1f} %")
    assert f"{100 * evaluation.oracle.accuracy:.2f} %" in row_of(evaluation, "oracle")
    for name, shown in {"fastest": 0, "cheap": 1, "good *": 2, "most-accurate": 3}.items():
        versus = evaluation.series.versus_reference[shown]
        low, high = (f"{100 * end:+.2f}" for end in versus.interval)
        row = row_of(evaluation, name)
        assert f"{100 * evaluation.front[shown].report.accuracy:.2f} %" in row
        assert f"{100 * versus.mean:+.2f} ± {100 * versus.standard_error:.2f}" in row
        assert f"{low} .. {high}" in row
        assert row.endswith(f"{100 * evaluation.series.versus_mix[shown].mean:+.2f}")


def test_of_a_baseline_the_chosen_point_is_shown(evaluation):
    for name, (_, chosen) in BASELINES.items():
        figures = evaluation.baselines[name].points[chosen].report
        assert f"{100 * figures.accuracy:.2f} %" in row_of(evaluation, name)
        assert f" {figures.gmacs:.4g} " in row_of(evaluation, name)
    note = "Each baseline is shown at the point that the same rule chooses on the search images."
    assert note in repr(evaluation)
    assert note not in repr(report_on(FRONT, REPORT))


def test_warnings_come_last_and_go_into_the_record(evaluation):
    assert repr(evaluation).endswith("\nWarning: Mind the gap.")
    assert evaluation.to_dict()["warnings"] == ["Mind the gap."]
    assert "Warning" not in repr(report_on(FRONT, REPORT))


def test_notes_say_on_how_many_images_and_how_well_the_default_knows(evaluation):
    shown = repr(evaluation)
    assert "500 images; * default operating point; differences in points of accuracy" in shown
    assert f"Routing AUROC of good: small {evaluation.auroc['small']:.3f}, large" in shown
    front = f"front {100 * evaluation.hypervolumes['front']:.3f}, "
    assert f"Area under random mixes of points, in % of cost x accuracy: {front}" in shown
    assert "Routing AUROC" not in repr(report_on(FRONT[:1], REPORT))


def test_figures_of_mixtures_of_cut_scores_are_noted():
    search, report = make_predictions(300, 2, num_labels=300), make_predictions(300, 3, num_labels=300)
    alone = chain("alone", (0, 2), 0.5, search)
    mixing = replace(alone.point, name="mixing", stages=(Stage(0, "mix", (1.0,)), Stage(2, "mix", (0.5, 1.0))))
    note = "Scores were cut to the largest: figures of points that decide or mix are approximate."
    assert note in repr(report_on([alone, replace(alone, point=mixing)], report, search))
    single = Candidate(OperatingPoint("single", "static", (0,)), (), (0.0, 0.0))
    assert note not in repr(report_on([single], report, search))


# Records


def test_a_record_is_plain_json_and_says_what_the_object_says(evaluation):
    record = evaluation.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["operating_point"] == "good"
    assert [point["name"] for point in record["front"]] == [candidate.point.name for candidate in FRONT]
    for point, written, versus in zip(
        evaluation.front, record["front"], evaluation.series.versus_reference, strict=True
    ):
        assert Figures.from_dict(written) == point.report
        assert Figures.from_dict(written["select"]) == point.select
        assert written["versus_reference"]["mean"] == versus.mean
    assert [Figures.from_dict(expert) for expert in record["experts"]] == list(evaluation.experts)
    assert [expert["name"] for expert in record["experts"]] == list(NAMES)
    assert Figures.from_dict(record["oracle"]) == evaluation.oracle
    assert record["baselines"]["chains"]["default"] == 1
    assert [point["accuracy"] for point in record["baselines"]["chains"]["points"]] == [
        point.report.accuracy for point in evaluation.baselines["chains"].points
    ]
    assert record["hypervolumes"] == evaluation.hypervolumes
    assert record["search_to_report_drop"] == evaluation.drop


def test_agreement_is_never_called_accuracy():
    search, report = SEARCH.agreeing(), REPORT.agreeing()
    candidates = front_of(search)
    baselines = {"chains": ([chain("", (0, 2), 0.9, search)], 0)}
    # Calling a point most-accurate is all that is said of accuracy here, and not by the report.
    candidates[-1] = replace(candidates[-1], point=replace(candidates[-1].point, name="last"))
    evaluation = report_on(candidates, report, search, baselines=baselines, warnings=["Mind the gap."])
    assert evaluation.experts[2].accuracy == 1.0
    text = json.dumps(evaluation.to_dict()) + repr(evaluation)
    assert "accura" not in text.lower()
    assert all("agreement" in written for written in evaluation.to_dict()["front"])
    assert "points of agreement" in text


def test_where_cost_is_latency_everything_is_compared_by_latency(evaluation):
    milliseconds = (2.0, 3.0, 4.0)
    search, report = SEARCH.with_cost("latency", milliseconds), REPORT.with_cost("latency", milliseconds)
    timed = report_on(front_of(search), report, search)
    low, _, high = timed.experts
    good = timed.front.find("good").report
    assert timed.hull(3.5) != pytest.approx(evaluation.hull(3.5))
    width = high.latency - (timed.oracle.latency + low.latency) / 2  # random mixes of oracle and expert rise
    assert timed.hypervolumes["oracle"] == pytest.approx(width / high.latency * (timed.oracle.accuracy - low.accuracy))
    assert "GMACs" in repr(timed)
    assert " ms " in repr(timed).splitlines()[0]
    assert f" {100 * (1 - good.latency / high.latency):.1f} % " in row_of(timed, "good")
    assert timed.series.versus_mix[2].mean == pytest.approx(good.accuracy - timed.hull(good.latency), abs=1e-12)
