"""Names of labels from files."""

import json
from pathlib import Path
from typing import Any

import pytest

from pertinence import PertinenceError
from pertinence.data.label_files import read_label_names


NAMES = ["cat", "dog", "Île d'Oléron"]


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\nÎle d'Oléron\n",
        "\ufeffcat\r\ndog\r\nÎle d'Oléron\r\n\r\n",
        {"id2label": {"0": "cat", "2": "Île d'Oléron", "1": "dog"}},
        {"dog": 1, "cat": 0, "Île d'Oléron": 2},
        {"0": "cat", "1": "dog", "2": "Île d'Oléron"},
        NAMES,
    ],
    ids=["lines", "lines of Windows", "a config.json", "label2id", "id2label", "a list"],
)
def test_names_are_read_in_the_order_of_the_outputs(content: Any, tmp_path: Path) -> None:
    path = tmp_path / ("labels.txt" if isinstance(content, str) else "labels.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert read_label_names(path) == NAMES


def test_names_may_be_a_mapping() -> None:
    assert read_label_names({1: "dog", 0: "cat"}) == ["cat", "dog"]


def test_digits_are_called_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "digits.txt"
    path.write_text("\n".join("0123456789"))
    assert read_label_names(path) == list("0123456789")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("0\n1\n2\n", "only numbers its labels (0, 1, ...)"),
        ("LABEL_0\nLABEL_1\n", "only numbers its labels"),
        ("cat\n\ndog\n", "label 1 is '', expected a name of one line"),
        ("cat\n", "holds 1 label names, expected at least two"),
        ('{"0": "cat", "2": "dog"}', "the label 1 is missing"),
        ('{"cat": 0, "dog": 1, "wolf": 1}', "two labels have the same index"),
        ('{"0": "cat", ', "holds no label names"),
        ('{"a": "cat", "b": "dog"}', "holds no label names"),
        ("\x80\x04", "holds no label names"),
    ],
)
def test_what_names_no_labels_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(PertinenceError) as refused:
        read_label_names(path)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_number_in_the_place_of_the_file_is_refused() -> None:
    with pytest.raises(PertinenceError, match="it is a number, and there is no such file"):
        read_label_names("10")
