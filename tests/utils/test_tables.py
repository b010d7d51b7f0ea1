"""Which rows of a long table are shown."""

import pytest

from pertinence.utils.tables import evenly_spaced


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
