"""The config: what a config.json may say, what it must not, and that it comes back as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pertinence import PertinenceConfig, PertinenceError
from pertinence._version import INSTALL


LABELS = ["cat", "dog", "ship"]


def expert(name: str, gmacs: float) -> dict[str, Any]:
    return {
        "name": name,
        "repo_id": f"user/{name}",
        "revision": "0" * 40,
        "gmacs": gmacs,
        "parameters": 1000,
        "features": 64,
        "dtype": "float32",
        "transform": {"library": "timm", "size": [32, 32], "resize": 35, "crop": [32, 32], "rescale": 1 / 255},
        "label_map": [2, 0, 1],
        "licence": "mit",
        "select": None,
        "report": None,
    }


def config_json() -> dict[str, Any]:
    """What stands in the config.json of a model of two experts."""
    figures = {"accuracy": 0.9, "interval": [0.88, 0.92], "gmacs": 0.3, "expert_shares": [0.75, 0.25], "samples": 800}
    point = {
        "name": "cascade",
        "recipe": "cascade",
        "members": [0, 1],
        "stages": [{"after": 0, "evidence": "mix", "mixing": [1.2]}, {"after": 1, "mixing": [0.4, 0.9]}],
        "select": figures,
        "report": None,
    }
    return {
        "model_type": "pertinence",
        "experts": [expert("small", 0.1), expert("large", 0.8)],
        "front": [point],
        "operating_point": "cascade",
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
        "format_version": 1,
    }


@pytest.fixture
def written(tmp_path):
    """A function: writes a config.json, with the value at a path replaced, and returns its folder."""

    def write(path: str = "", value: Any = None) -> Path:
        values = target = config_json()
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        for key in parents:
            target = target[key]
        if path:
            target[last] = value
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return write


# Reading and writing


def test_a_config_says_what_its_file_says(written):
    config = PertinenceConfig.from_pretrained(written())
    assert config.expert_names == ["small", "large"]
    assert config.experts == config_json()["experts"]
    assert config.num_labels == 3
    assert [config.id2label[index] for index in range(3)] == LABELS
    assert config.operating_point == "cascade"
    assert config.preprocessing == "exact"


def test_its_front_comes_as_objects(written):
    (point,) = PertinenceConfig.from_pretrained(written()).build_front()
    assert (point.name, point.recipe, point.members) == ("cascade", "cascade", (0, 1))
    assert [(stage.after, stage.evidence, stage.mixing) for stage in point.stages] == [
        (0, "mix", (1.2,)),
        (1, "mix", (0.4, 0.9)),
    ]
    assert point.select.accuracy == 0.9
    assert point.select.expert_shares == (0.75, 0.25)
    assert point.report is None


def test_the_auto_class_knows_it(written):
    assert type(AutoConfig.from_pretrained(written())) is PertinenceConfig


def test_saving_again_writes_the_same_bytes(written, tmp_path):
    PertinenceConfig.from_pretrained(written()).save_pretrained(tmp_path / "first")
    PertinenceConfig.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (tmp_path / name / "config.json" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    saved = json.loads(first.read_text())
    assert saved["experts"] == config_json()["experts"]
    assert [point["name"] for point in saved["front"]] == ["cascade"]


def test_a_config_without_experts_can_be_made_and_saved(tmp_path):
    PertinenceConfig().save_pretrained(tmp_path)
    config = PertinenceConfig.from_pretrained(tmp_path)
    assert config.expert_names == []
    assert list(config.build_front()) == []


@pytest.mark.parametrize(
    ("option", "value"), [("operating_point", "fastest"), ("operating_point", None), ("preprocessing", "fast")]
)
def test_an_option_replaces_what_the_file_says(written, option, value):
    assert getattr(PertinenceConfig.from_pretrained(written(), **{option: value}), option) == value


# From other versions


def test_a_newer_format_warns_and_loads(written, caplog):
    config = PertinenceConfig.from_pretrained(written("format_version", 3))
    assert config.expert_names == ["small", "large"]
    assert "format version 3, newer than 2" in caplog.text
    assert INSTALL in caplog.text


def test_this_format_does_not_warn(written, caplog):
    PertinenceConfig.from_pretrained(written())
    assert caplog.text == ""


def test_an_unknown_key_of_an_expert_warns_and_loads(written, caplog):
    assert PertinenceConfig.from_pretrained(written("experts.1.colour", "red")).expert_names == ["small", "large"]
    assert "'large' has unknown keys" in caplog.text
    assert "colour" in caplog.text


@pytest.mark.parametrize("path", ["colour", "front.0.colour", "front.0.stages.0.colour", "front.0.select.colour"])
def test_an_unknown_key_does_no_harm(written, path):
    known = PertinenceConfig.from_pretrained(written()).build_front()
    assert list(PertinenceConfig.from_pretrained(written(path, {"a": [1]})).build_front()) == list(known)


# What cannot be


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("experts", [], "`experts` has 0 entries, expected 1 to 256"),
        ("experts", [expert(str(index), 1.0) for index in range(257)], "`experts` has 257 entries, expected 1 to 256"),
        ("experts", [expert("small", 0.1)] * 2, r"different names, got \['small', 'small'\]"),
        ("experts.1", {"name": "large"}, "expert 1 of config.json has no features, gmacs, parameters, repo_id"),
        ("front", None, "no operating point 'cascade'"),
        ("front.0.members", [0, 2], "operating point 'cascade'.*do not fit a pool of 2"),
        ("front.0.stages.1.mixing", [1.0], "operating point 'cascade'.*1 mixing weights, expected 2"),
        ("operating_point", "free", "no operating point 'free'; this model has: cascade"),
        ("preprocessing", "slow", "preprocessing='slow' is not one of 'exact', 'fast'"),
        ("stem", {"repo_id": "user/stem"}, "the stem of config.json has no"),
        ("num_labels", 3_000_000, "more than 1000000 labels"),
        ("model_type", {"a": "pertinence"}, "has the model_type .*, expected text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_impossible_config_is_refused_in_one_sentence(written, path, value, words):
    with pytest.raises(PertinenceError, match=words) as refused:
        PertinenceConfig.from_pretrained(written(path, value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("experts", "small, large"),
        ("experts", [1, 2]),
        ("experts.1", None),
        ("experts.1.name", 7),
        ("experts.1.name", None),
        ("experts.1.name", ["large"]),
        ("experts.1.repo_id", 7),
        ("experts.1.revision", None),
        ("experts.1.gmacs", "much"),
        ("experts.1.gmacs", None),
        ("experts.1.features", "64"),
        ("experts.1.features", -1),
        ("experts.1.label_map", "by_name"),
        ("experts.1.label_map", [0, 1]),
        ("front", "cascade"),
        ("front", {"cascade": 1}),
        ("front", [1]),
        ("front.0", None),
        ("format_version", "new"),
    ],
    ids=str,
)
def test_a_malformed_config_is_refused(written, path, value):
    with pytest.raises(PertinenceError):
        PertinenceConfig.from_pretrained(written(path, value))


@pytest.mark.parametrize("key", ["name", "repo_id", "revision", "gmacs", "parameters", "features", "transform"])
def test_an_expert_without_one_of_its_keys_is_refused(written, key):
    values = expert("large", 0.8)
    del values[key]
    with pytest.raises(PertinenceError, match=f"expert 1 of config.json has no {key}$"):
        PertinenceConfig.from_pretrained(written("experts.1", values))


@pytest.mark.parametrize("key", ["dtype", "label_map", "licence", "select", "report"])
def test_the_other_keys_of_an_expert_may_be_missing(written, key):
    values = expert("large", 0.8)
    del values[key]
    assert PertinenceConfig.from_pretrained(written("experts.1", values)).expert_names == ["small", "large"]
