"""The summary of an evaluation: a table that fits a terminal, and what it means in sentences."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from graded_reports import BASELINES, FRONT, REPORT, chain, make_predictions, report_on

from pertinence.evaluation.report import Evaluation


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return report_on(FRONT, REPORT, default="good", baselines=BASELINES, warnings=["Mind the gap."])


def test_the_table_has_at_most_eight_rows_of_a_hundred_columns():
    many = [
        replace(one, point=replace(one.point, name=f"a-very-long-name-of-an-operating-point-{index}"))
        for index, one in enumerate(FRONT * 6)
    ]
    series = {f"a baseline with a long name {index}": BASELINES["chains"] for index in range(6)}
    shown = str(report_on(many, REPORT, baselines=series)).split("\n\n")[0].splitlines()
    assert len(shown) == 2 + 8
    assert max(map(len, shown)) <= 100
    assert any(line.startswith("large ") for line in shown), "the reference expert"
    assert sum(" *" in line for line in shown) == 1, "the default"


def test_the_sentences_say_what_the_default_saves_and_beats(evaluation):
    saving, beaten, against = str(evaluation).splitlines()[-3:]
    default, large = evaluation.front.find("good").report, evaluation.experts[-1]
    versus = evaluation.series.versus_reference[evaluation.series.default]
    assert f"good, saves {100 * (1 - default.cost / large.cost):.1f} % of the GMACs of large" in saving
    assert f"at {100 * versus.mean:+.2f} points of accuracy" in saving
    medium = evaluation.experts[1]
    assert medium.cost <= default.cost < large.cost
    lead, noise = default.accuracy - medium.accuracy, (versus.interval[1] - versus.interval[0]) / 2
    assert lead > noise
    assert f"it beats the best expert alone (medium) by {100 * lead:.2f} points" in beaten
    assert "only 800 search images chose it (take 1,000 or more)" in against
    assert "1 warning, above" in against
    assert "Warning: Mind the gap." in str(evaluation).splitlines()


def test_a_better_baseline_speaks_against_the_default():
    search = make_predictions(1200, seed=2)
    poor = [chain("fastest", (0,), 0.0, search), chain("poor", (0, 2), 0.4, search)]
    pairs = ([chain("", (0, 1), threshold, search) for threshold in (0.3, 0.5, 0.7)], 1)
    found = report_on(poor, make_predictions(4000, seed=3), search, baselines={"pairs": pairs})
    default, points = found.series.figures[1], found.baselines["pairs"].figures
    there = np.interp(default.cost, [figures.cost for figures in points], [figures.accuracy for figures in points])
    beaten, against, classes = str(found).splitlines()[-3:]
    assert classes.startswith("4 of 4 classes lose more than chance allows against large: ")
    assert beaten.endswith(f"it is worse than pairs by {100 * (there - default.accuracy):.2f} points.")
    assert there > default.accuracy
    assert "at its cost there is better: pairs" in against


def test_what_these_images_cannot_tell_is_no_victory():
    search = make_predictions(1200, seed=2)
    points = [chain("fastest", (0,), 0.0, search), chain("good", (0, 1, 2), 0.7, search)]
    same = ([chain("", (0, 1, 2), threshold, search) for threshold in (0.69, 0.71)], 1)
    found = report_on(points, make_predictions(100, seed=3), search, baselines={"same": same})
    beaten = str(found).splitlines()[-2]
    assert re.search(r"it is not measurably different from .*same \([+-]\d\.\d\d points\)", beaten)
    assert "beats same" not in beaten


def test_nothing_against_it_is_said_as_well():
    search = make_predictions(1500, seed=4)
    lossless = [chain("fastest", (0,), 0.0, search), chain("cheapest-lossless", (0, 1, 2), 0.95, search)]
    found = report_on(lossless, search, search)
    assert str(found).splitlines()[-1] == "Against it: nothing on these 1500 images."


def test_rows_go_to_pandas_csv_and_notebooks(evaluation, tmp_path):
    frame = evaluation.to_pandas()
    assert list(frame["kind"].unique()) == ["expert", "oracle", "front", "chains", "experts"]
    good = frame[frame["name"] == "good"].iloc[0]
    assert good["accuracy"] == evaluation.front.find("good").report.accuracy
    assert good["saved"] == 1 - good["gmacs"] / evaluation.experts[-1].gmacs
    evaluation.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == evaluation.to_csv()
    assert evaluation._repr_html_().count("<tr") == 1 + len(frame)
