"""What is stored of an expert: read strictly, written as it was, never changed in place."""

import dataclasses
import json
from pathlib import Path

import pytest

from pertinence import PertinenceError
from pertinence.runtime.entry import ExpertEntry


FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1" / "config.json"


@pytest.fixture
def values():
    """Of an expert of a model that was saved by the first version."""
    return json.loads(FORMAT_1.read_text())["experts"][1]


def test_written_as_it_was_read(values):
    for saved in json.loads(FORMAT_1.read_text())["experts"]:
        assert ExpertEntry.from_dict(saved).to_dict() == saved
    with_latency = {**values, "latency": 0.5, "origin": "user/vit", "origin_revision": "0" * 40}
    entry = ExpertEntry.from_dict(with_latency)
    assert entry.costs == {"gmacs": values["gmacs"], "latency": 0.5}
    assert entry.to_dict() == with_latency


def test_further_units_of_cost_and_backends_have_keys_of_their_own(values):
    more = {**values, "costs": {"joules": 3.0}, "backend": "mine"}
    entry = ExpertEntry.from_dict(more)
    assert entry.costs == {"gmacs": values["gmacs"], "joules": 3.0}
    assert (entry.backend, entry.quantization) == ("mine", None)
    assert entry.to_dict() == more
    assert "backend" not in entry.replace(backend="torch").to_dict()
    eight_bits = ExpertEntry.from_dict({**values, "quantization": "int8"})
    assert eight_bits.backend == "torch-int8"
    assert eight_bits.to_dict() == {**values, "quantization": "int8"}


def test_unknown_keys_are_kept(values):
    more = {**values, "colour": "blue"}
    entry = ExpertEntry.from_dict(more)
    assert entry.unknown == {"colour": "blue"}
    assert entry.replace(name="other").to_dict() == {**more, "name": "other"}


def test_it_is_not_changed_in_place(values):
    entry = ExpertEntry.from_dict(values)
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.name = "other"
    assert entry.replace(name="other").name == "other"
    assert entry == ExpertEntry.from_dict(values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gmacs": -1}, "expert 7 has gmacs -1, expected a number that is not negative"),
        ({"costs": {"joules": "many"}}, "expert 7 has costs {'joules': 'many'}, expected a mapping of units to"),
        ({"backend": 8}, "expert 7 has backend 8, expected a line of text"),
        ({"backend": "mine", "quantization": "int8"}, "expert 7 has a quantization and a backend, expected one"),
        ({"quantization": "int4"}, "expert 7 has quantization 'int4', expected one of int8"),
        ({"features": None}, "expert 7 has features None, expected a width"),
        ({"label_map": [-1]}, r"expert 7 has label_map \[-1\], expected a list of indices"),
        ({"transform": {"library": "timm"}}, "an expert's `transform` is malformed"),
    ],
)
def test_values_that_are_refused(values, change, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        ExpertEntry.from_dict({**values, **change}, "expert 7")


def test_what_is_missing_is_named(values):
    del values["gmacs"], values["name"]
    with pytest.raises(PertinenceError, match="expert 7 has no gmacs, name"):
        ExpertEntry.from_dict(values, "expert 7")
    with pytest.raises(PertinenceError, match="expert 7 must be a mapping, got list"):
        ExpertEntry.from_dict([], "expert 7")


@pytest.mark.parametrize(
    ("repo_id", "kind"),
    [("user/vit", "is_on_hub"), ("/models/vit", "is_local"), ("./experts/stem", "is_embedded"), (None, None)],
)
def test_where_it_lies(values, repo_id, kind):
    entry = ExpertEntry.from_dict({**values, "repo_id": repo_id, "revision": "1" * 40})
    assert {name for name in ("is_on_hub", "is_local", "is_embedded") if getattr(entry, name)} == {kind} - {None}
    copy = entry.copied_to("1")
    assert copy.repo_id == "./experts/1"
    assert (copy.origin, copy.origin_revision) == ((repo_id, "1" * 40) if kind == "is_on_hub" else (None, None))


@pytest.mark.parametrize(
    ("repo_id", "is_local"),
    [
        ("C:\\models\\vit", True), ("d:/models/vit", True), ("\\\\server\\share\\vit", True), ("/models/vit", True),
        ("user/vit", False), ("./experts/0", False),
    ],
)  # fmt: skip
def test_a_reference_is_the_same_on_every_operating_system(values, repo_id, is_local):
    entry = ExpertEntry.from_dict({**values, "repo_id": repo_id})
    assert (entry.is_local, entry.is_on_hub) == (is_local, repo_id == "user/vit")


@pytest.mark.parametrize("repo_id", ["C:\\models\\..\\vit", "/models/../vit", "C:vit", "models\\vit", "C:\\a\nb"])
def test_other_paths_are_no_reference(values, repo_id):
    with pytest.raises(PertinenceError, match="expected a Hub id, an absolute folder, or ./experts/<i>"):
        ExpertEntry.from_dict({**values, "repo_id": repo_id})
