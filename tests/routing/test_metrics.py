"""How figures are shown in tables."""

from pertinence.routing.metrics import format_table
from pertinence.utils.names import display_width


def test_columns_are_aligned_whatever_the_width_of_letters():
    table = format_table(["expert", "模型"], [["resnet", "1"], ["大型模型", "22"], ["e\u0301", "333"]])
    header, rule, *rows = table.splitlines()
    assert {display_width(line) for line in (header, rule, *rows)} == {14}
    assert rows[1] == "大型模型    22"
