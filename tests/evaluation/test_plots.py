"""The front as a picture: what its axes show, and how experts far below all else are marked."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from pertinence import PredictionTable, SearchArguments, search_predictions


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Search a pool of experts with these shares of right answers and costs, and return the figure of its front."""
    figures, write = {}, Figure.savefig

    def savefig(figure, path, **options):
        figures[Path(path).name] = figure
        write(figure, path, **options)

    def run(accuracy: list[float], costs: list[float]) -> Figure:
        result = search_predictions(table(accuracy, costs), SearchArguments())
        result.save(tmp_path / "found")
        return figures["front.png"]

    monkeypatch.setattr(Figure, "savefig", savefig)
    return run


def table(accuracy: list[float], costs: list[float], count: int = 500, labels: int = 10) -> PredictionTable:
    """Experts that fail on the same hard images, and are less sure near the limit of what they know."""
    rng = np.random.default_rng(0)
    right, difficulty = rng.integers(0, labels, count), rng.uniform(size=count)
    scores = {}
    for index, share in enumerate(accuracy):
        answers = np.where(difficulty < share, right, (right + rng.integers(1, labels, count)) % labels)
        sure = 1 + 8 * abs(difficulty - share) + 0.3 * rng.uniform(size=count)
        noise = rng.normal(scale=0.3, size=(count, labels))
        scores[f"expert-{index}"] = noise + sure[:, None] * np.eye(labels)[answers]
    return PredictionTable.from_arrays(right, scores, {f"expert-{i}": cost for i, cost in enumerate(costs)})


def names(figure: Figure) -> dict[str, mpl.text.Annotation]:
    return {text.get_text(): text for text in figure.axes[0].texts}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of names that run into each other."""
    figure.draw_without_rendering()
    boxes = {name: mpl.text.Text.get_window_extent(text) for name, text in names(figure).items()}
    return [(a, b) for a in boxes for b in boxes if a < b and boxes[a].overlaps(boxes[b])]


def test_the_axes_of_an_ordinary_pool_contain_every_expert(draw):
    figure = draw([0.8, 0.88, 0.93], [0.5, 1, 4])
    axes = figure.axes[0]
    assert list(names(figure)) == ["expert-0", "expert-1", "expert-2"]
    for text in names(figure).values():
        assert axes.get_xlim()[0] < text.xy[0] < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < text.xy[1] < axes.get_ylim()[1]
    assert "expert below the axes" not in legend(figure)


@pytest.mark.parametrize(
    ("accuracy", "costs", "marked", "at"),
    [
        pytest.param([0.86, 0.3, 0.92, 0.95], [0.5, 1, 2, 4], 1, 1, id="within the costs of the others"),
        pytest.param([0.86, 0.92, 0.95, 0.2], [0.5, 1, 2, 40], 3, None, id="also much more expensive"),
        pytest.param([0.2, 0.9, 0.93, 0.95], [0.9, 1, 2, 4], 0, 0.9, id="the cheapest, and so on the front"),
    ],
)
def test_a_poor_expert_is_marked_at_the_edge_and_does_not_flatten_the_front(draw, accuracy, costs, marked, at):
    figure = draw(accuracy, costs)
    axes = figure.axes[0]
    bottom, right = axes.get_ylim()[0], axes.get_xlim()[1]
    assert bottom > 70
    assert right < 5
    (label,) = [name for name in names(figure) if name.startswith(f"expert-{marked}")]
    share = float(label.partition(": ")[2].partition(" %")[0])
    assert share == pytest.approx(100 * accuracy[marked], abs=6)
    assert label.endswith(" at 40 GMACs") is (costs[marked] == 40)
    assert names(figure)[label].xy == pytest.approx((right if at is None else at, bottom))
    (mark,) = [line for line in axes.lines if line.get_marker() == "v"]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == names(figure)[label].xy
    assert "expert below the axes" in legend(figure)
    assert len(names(figure)) == len(accuracy), "the others have their names in their places"


def test_a_front_of_one_point_has_an_interval_and_an_axis(draw):
    figure = draw([0.95, 0.6], [0.5, 4])
    axes = figure.axes[0]
    (interval,) = [one for one in axes.collections if isinstance(one, mpl.collections.LineCollection)]
    low, high = interval.get_segments()[0][:, 1]
    assert axes.get_ylim()[0] < low < high < axes.get_ylim()[1]
    assert axes.get_xlim()[1] > 4, "the cost of one expert makes no axis"


def test_names_of_close_experts_keep_apart(draw):
    figure = draw([0.85, 0.9, 0.9, 0.91, 0.92, 0.93], [0.5, 0.51, 0.52, 0.53, 0.54, 4])
    assert len(names(figure)) == 6
    assert overlaps(figure) == []
