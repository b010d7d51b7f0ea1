"""Figures without a display, in any style of the user's, and with any names."""

import subprocess
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from pertinence import Advice, PredictionTable, SearchArguments, advise, search_predictions
from pertinence.evaluation.figures import LONGEST_NAME, add_legend, figure_file, palette, short_names


BACKENDS = {"module://not_installed.backend": True, "no_such_backend": False, "TkAgg": True}
"""Values of MPLBACKEND, and whether matplotlib is imported with them."""
DRAW = """
import os, sys
from pertinence.evaluation.figures import figure_file
with figure_file("x.png", 2, 2) as figure:
    figure.subplots().plot([1, 2])
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.get_backend(auto_select=False), "matplotlib.pyplot" in sys.modules)
"""
FORK = """
import os, sys
from pertinence_cli import postpone_package
postpone_package()  # figures need neither torch nor transformers
from pertinence.evaluation import figures
for backend in sys.argv[2:]:
    child = os.fork()
    if not child:
        os.environ["MPLBACKEND"] = backend
        exec(sys.argv[1])
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, backend
"""
NAMES = [
    "_first",
    "$1e^$",
    "50%_{x}\\y",
    "模型 😀",
    "نموذج",
    "e\u0301",
    "a`b|<c>&#*",
    "x" * 190 + "1",
    "x" * 190 + "2",
]


SHOWN = [NAMES[0], NAMES[1], NAMES[3]]


def table(names: list[str]) -> PredictionTable:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    scores = {name: rng.normal(size=(200, 5)) + (1 + i) * np.eye(5)[labels] for i, name in enumerate(names)}
    return PredictionTable.from_arrays(labels, scores, {name: 1.0 + i for i, name in enumerate(names)})


def search(names: list[str]):
    return search_predictions(table(names), SearchArguments())


@pytest.fixture
def legends(monkeypatch) -> list[list[str]]:
    """The texts of the legends of all figures that are written from now on."""
    found, write = [], Figure.savefig

    def savefig(figure, *args, **options):
        drawn = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
        found.extend([text.get_text() for text in legend.get_texts()] for legend in drawn)
        write(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_the_backend_of_another_environment_does_not_matter_and_is_kept(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", FORK, DRAW, *BACKENDS], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    for line, (backend, is_known) in zip(finished.stdout.splitlines(), BACKENDS.items(), strict=True):
        variable, kept, has_pyplot = line.split()
        assert (variable, kept == backend, has_pyplot) == (backend, is_known, "False")


def test_every_expert_is_in_the_legend_whatever_its_name(legends, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(SHOWN).save(tmp_path / "found")
    assert any(legend[1:] == SHOWN for legend in legends), "that of the shares"


def test_long_names_are_shortened_and_stay_different():
    short = short_names(NAMES)
    assert len(set(short)) == len(NAMES)
    assert all(len(name) <= LONGEST_NAME + 4 for name in short)
    assert short[:7] == NAMES[:7]
    alike = short_names(["y" * 99 + "1" + "y" * 99, "y" * 199])
    assert len(set(alike)) == 2, "they differ only in the middle, which is left out"


def test_advice_is_drawn_without_mathematics(tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: texts.extend(_texts(figure)))
    advice: Advice = advise(table(NAMES[:4]))
    advice.plot(tmp_path / "advice.png")
    assert set(NAMES[:4]) <= set(texts)
    assert not [text for text in texts if "mathdefault" in text]


def _texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def test_the_style_of_the_user_is_neither_used_nor_changed(tmp_path):
    style = {"text.usetex": True, "font.family": ["No Such Font"], "axes.prop_cycle": mpl.cycler(color=["k"]),
             "savefig.bbox": "tight", "lines.linestyle": "none"}  # fmt: skip
    for name, options in (("plain.png", {}), ("odd.png", style)):
        with mpl.rc_context(options):
            before = dict(mpl.rcParams.copy())
            with figure_file(tmp_path / name, 3, 2) as figure:
                figure.subplots().plot([1, 2], [3, 4])
            assert dict(mpl.rcParams.copy()) == before
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "odd.png").read_bytes()


def test_letters_that_the_usual_font_lacks_come_from_another(tmp_path):
    with figure_file(tmp_path / "x.png", 3, 2) as figure:
        axes = figure.subplots()
        axes.set_title("\u1d81")  # which STIX has, a font that comes with matplotlib
    assert len(axes.title.get_fontfamily()) > 1


def test_many_series_have_different_colours(tmp_path):
    for count in (1, 10, 23):
        assert len({tuple(color) for color in palette("tab10", count)}) == count
    with figure_file(tmp_path / "x.png", 3, 2) as figure:
        axes = figure.subplots()
        add_legend(axes, [(axes.plot([index])[0], f"_{index}") for index in range(12)])
    assert len(axes.get_legend().get_texts()) == 12
