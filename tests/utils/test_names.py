"""Names as a terminal, a figure and a disk can take them."""

import pytest

from pertinence.utils.names import display_width, file_name, padded, shortened
from pertinence.utils.validation import is_name


@pytest.mark.parametrize(("text", "width"), [("resnet", 6), ("模型", 4), ("e\u0301", 1), ("می\u200cخ", 3), ("😀", 2)])
def test_width_in_a_terminal(text, width):
    assert display_width(text) == width
    assert padded(text, 8) == text + " " * (8 - width)
    assert padded(text, 8, right=True) == " " * (8 - width) + text


@pytest.mark.parametrize("text", ["a" * 200, "模" * 200, "模a" * 100, "short"])
@pytest.mark.parametrize("most", [5, 20, 48])
def test_long_names_lose_their_middle(text, most):
    short = shortened(text, most)
    assert display_width(short) <= most
    assert short[0] == text[0]
    assert short == text or ("…" in short and len(short) > most // 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet50.a1_in1k", "resnet50.a1_in1k"), ("user/model", "user--model"), ("a:b*c?\\d", "a-b-c--d"),
        ("模型", "--"), ("aux.v1", "aux-.v1"), ("NUL", "NUL-"), ("console", "console"), ("x" * 200, "x" * 100),
    ],
)  # fmt: skip
def test_files_have_names_that_every_system_takes(text, expected):
    assert file_name(text) == expected


@pytest.mark.parametrize("text", ["模型", "نموذج", "👩\u200d🔬", "می\u200cخواهم", "$a$", "_x", "-x", "[a](b)"])
def test_any_line_is_a_name(text):
    assert is_name(text)


@pytest.mark.parametrize("text", ["", "a\nb", "\u200d", "\x1b[31m", "\u202eabc", "x" * 201, "\udcff", 3])
def test_what_cannot_be_seen_or_controls_a_terminal_is_no_name(text):
    assert not is_name(text)
