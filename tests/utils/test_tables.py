"""Which rows of a long table are shown."""

import pytest

from pertinence.utils.tables import evenly_spaced, output_width


@pytest.mark.parametrize(
    ("count", "most", "needed", "shown"),
    [
        (3, 8, (), [0, 1, 2]),
        (9, 3, (), [0, 4, 8]),
        (9, 3, (5,), [0, 5, 8]),
        (9, 3, (4,), [0, 4, 8]),
        (5, 1, (3,), [3]),
        (1, 4, (0,), [0]),
        (0, 4, (), []),
        (4, 2, (9,), [0, 3]),
    ],
)
def test_rows_are_spread_evenly_and_those_needed_are_kept(count, most, needed, shown):
    assert evenly_spaced(count, most, needed) == shown


@pytest.mark.parametrize(("columns", "width"), [("70", 70), ("250", 100), (None, 100)])
def test_the_output_is_as_wide_as_the_terminal_up_to_a_hundred_columns(columns, width, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert output_width() == width
