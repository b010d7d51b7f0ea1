"""JSON and YAML that others wrote: read within limits, and refused in a sentence."""

from __future__ import annotations

import pytest
import yaml

from pertinence import PertinenceError
from pertinence.utils.json_files import MAX_PARTS, MAX_TEXT, parse_json, read_text
from pertinence.utils.parsing import MAX_YAML, parse_yaml, read_mapping


def test_what_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "ä"]}', encoding="utf-8")
    (tmp_path / "a.yaml").write_text("a: [1, ä]", encoding="utf-8")
    assert read_mapping(tmp_path / "a.json", parse_json) == read_mapping(tmp_path / "a.yaml", parse_yaml)
    assert read_mapping(tmp_path / "nowhere.json", parse_json) is None


@pytest.mark.parametrize(
    ("text", "parse", "words"),
    [
        ("{", parse_json, "is damaged .*: search again, or remove it"),
        ("[1]", parse_json, "is damaged: search again, or remove it"),
        ("{" * 100_000, parse_json, "is damaged"),
        ("[" + "{}," * MAX_PARTS + "{}]", parse_json, "is too large .*lists and mappings"),
        ("a: &b [1]\nc: *b", parse_yaml, "it has aliases"),
        ("a: !!python/name:os.system", parse_yaml, "is damaged"),
        ("a: 2026-13-45", parse_yaml, "is damaged"),
        ("a: " + "b" * MAX_YAML, parse_yaml, "more than 524,288 bytes"),
        (b"\xff\xfe{}", parse_json, "is damaged"),
    ],
    ids=["cut", "list", "nested", "parts", "aliases", "code", "date", "long", "encoding"],
)
def test_what_is_refused(tmp_path, text, parse, words):
    path = tmp_path / "record"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PertinenceError, match=words) as refused:
        read_mapping(path, parse)
    assert "\n" not in str(refused.value)


def test_a_large_file_is_not_read(tmp_path):
    with (tmp_path / "large").open("w") as file:
        file.truncate(MAX_TEXT + 1)
    with pytest.raises(PertinenceError, match="67,108,865 bytes"):
        read_text(tmp_path / "large")


def test_yaml_is_of_plain_values():
    assert parse_yaml("a: 1\nb: [x, 2.5, null]") == {"a": 1, "b": ["x", 2.5, None]}
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")
