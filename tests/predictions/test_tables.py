"""Tables of predictions: real ones, every format, and one sentence for each bad one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pertinence import PertinenceError, PredictionTable
from pertinence.evaluation.outcomes import evaluate_experts


RESNETS = {"resnet8": 0.0127, "resnet20": 0.0412, "resnet32": 0.0698, "resnet44": 0.0983, "resnet56": 0.1268}
"""GMACs of the CIFAR-10 experts of the zoo."""
COSTS = {"small": 1, "large": 4.5}


@pytest.fixture
def load(tmp_path) -> Callable[..., PredictionTable]:
    """A function: writes costs, and a table where columns are given, and loads it."""

    def load(table: Path | dict[str, Any], costs: Any = COSTS, split: str | None = None, suffix: str = ".npz"):
        if isinstance(table, dict):
            table = write(tmp_path / f"table{suffix}", table)
        path = tmp_path / "costs.json"
        path.write_text(costs if isinstance(costs, str) else json.dumps(costs), encoding="utf-8")
        return PredictionTable.load(table, path, split)

    return load


def write(path: Path, columns: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **columns)
        return path
    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, double_precision=15)
    return path


def accuracies(table: PredictionTable) -> list[float]:
    return [outcome.figures.accuracy for outcome in evaluate_experts(table.predictions)]


def classes(count: int = 60, num_labels: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, num_labels, count)
    wrong = rng.integers(0, num_labels, (2, count))
    return {
        "label": label,
        "small": np.where(rng.random(count) < 0.5, label, wrong[0]),
        "large": np.where(rng.random(count) < 0.9, label, wrong[1]),
    }


def scores(count: int = 60, num_labels: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, num_labels, count)
    right = np.eye(num_labels)[label]
    return {
        "label": label,
        "small": right + rng.normal(size=right.shape),
        "large": 3 * right + rng.normal(size=right.shape),
    }


# Real tables


@pytest.mark.parametrize(("split", "count"), [("validation", 5000), ("test", 3000)])
def test_scores_of_a_split(load, zoo, split, count):
    table = load(zoo / "predictions" / "cifar10-logits.npz", RESNETS, split)
    arrays = np.load(zoo / "predictions" / "cifar10-logits.npz")
    assert table.names == tuple(RESNETS)
    assert table.predictions.costs.of_experts == tuple(RESNETS.values())
    assert len(table.predictions) == count
    assert np.array_equal(table.predictions.targets, arrays[f"{split}_label"])
    for name, expert in zip(table.names, table.predictions.experts, strict=True):
        assert np.array_equal(expert.scores, arrays[f"{split}_{name}"])
    right = [(arrays[f"{split}_{name}"].argmax(1) == arrays[f"{split}_label"]).mean() for name in RESNETS]
    assert accuracies(table) == pytest.approx(right)


@pytest.mark.parametrize("split", ["validation", "test", None])
def test_classes_of_a_split(load, zoo, split):
    frame = pd.read_parquet(zoo / "predictions" / "cifar10-top1.parquet")
    models = [name for name in frame if name not in ("split", "row", "label")]
    table = load(zoo / "predictions" / "cifar10-top1.parquet", {name: i for i, name in enumerate(models, 1)}, split)
    frame = frame if split is None else frame[frame["split"] == split]
    assert table.names == tuple(models)
    assert accuracies(table) == pytest.approx([(frame[name] == frame["label"]).mean() for name in models])


def test_best_classes_of_a_thousand(load, zoo):
    costs = {"alexnet": 0.71, "resnet18": 1.82, "nasnetalarge": 23.9}
    predictions = load(zoo / "predictions" / "imagenet-val-top5.npz", costs).predictions
    arrays = np.load(zoo / "predictions" / "imagenet-val-top5.npz")
    assert predictions.num_labels == 1000
    assert predictions.candidates is not None
    for index, name in enumerate(costs):
        assert np.array_equal(predictions.experts[index].top_labels(), arrays[name][:, 0])
        right = (arrays[name][:, 0] == arrays["label"]).mean()
        assert predictions.correct()[:, index].double().mean().item() == pytest.approx(right)


# What columns mean


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv", ".json"])
def test_classes_in_every_format(load, suffix):
    columns = classes()
    table = load(columns, suffix=suffix)
    assert accuracies(table) == [(columns[name] == columns["label"]).mean() for name in COSTS]
    assert np.array_equal(table.predictions.targets, columns["label"])


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".json"])
def test_scores_in_every_format_that_holds_them(load, suffix):
    columns = scores()
    experts = load(columns, suffix=suffix).predictions.experts
    for expert, name in zip(experts, COSTS, strict=True):
        np.testing.assert_allclose(expert.scores, columns[name], rtol=1e-6)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".json"])
def test_of_several_classes_the_first_is_the_answer(load, suffix):
    columns = classes()
    ranked = {name: np.stack([columns[name], (columns[name] + 1) % 5], 1) for name in COSTS}
    table = load(columns | ranked, suffix=suffix)
    assert accuracies(table) == accuracies(load(columns))


@pytest.mark.parametrize("num_labels", [5, 300])
def test_a_class_alone_is_taken_to_be_nine_tenths_likely(load, num_labels):
    columns = classes(num_labels=num_labels) | {"label": np.arange(60) % num_labels}
    columns["label"][-1] = num_labels - 1
    predictions = load(columns).predictions
    answers = predictions.outputs(0, torch.arange(60))[0]
    likely = answers.exp()
    assert likely.max(1).values.tolist() == pytest.approx([0.9] * 60)
    total = likely[:, :-1].sum(1) + predictions.tail * likely[:, -1]
    assert total.tolist() == pytest.approx([1.0] * 60, abs=1e-5)


def test_many_scores_are_cut_and_the_answers_stay(load):
    columns = scores(num_labels=300)
    predictions = load(columns).predictions
    for index, name in enumerate(COSTS):
        assert predictions.experts[index].is_cut
        assert np.array_equal(predictions.experts[index].top_labels(), columns[name].argmax(1))


def test_a_model_of_scores_and_one_of_classes_share_a_table(load):
    columns = scores() | {"small": classes()["small"]}
    right = [columns["small"] == columns["label"], columns["large"].argmax(1) == columns["label"]]
    assert accuracies(load(columns)) == [each.mean() for each in right]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_integers_of_every_width_are_classes(load, dtype):
    columns = {name: values.astype(dtype) for name, values in classes().items()}
    assert accuracies(load(columns)) == accuracies(load(classes()))


def test_a_label_that_no_model_answers_with_is_a_label(load):
    columns = classes()
    columns["label"][0] = 11
    predictions = load(columns).predictions
    assert predictions.num_labels == 12
    assert not predictions.correct()[0].any()


def test_costs_choose_the_models_and_their_order(load):
    columns = classes() | {"unnamed": np.array(["text"] * 60)}
    table = load(columns, {"large": 2, "absent": 1, "small": 3})
    assert table.names == ("large", "small")
    assert table.predictions.costs.of_experts == (2.0, 3.0)
    assert accuracies(table) == accuracies(load(columns))[::-1]


def test_a_fingerprint_is_of_content(load):
    columns = classes()
    fingerprint = load(columns).fingerprint
    assert load(columns | {"unnamed": columns["small"]}, suffix=".parquet").fingerprint == fingerprint
    label, small = columns["label"].copy(), columns["small"].copy()
    label[0], small[0] = (label[0] + 1) % 5, (small[0] + 1) % 5
    others = [
        load(columns | {"label": label}),
        load(columns | {"small": small}),
        load(columns, {"small": 1, "large": 5}),
    ]
    assert len({fingerprint, *(other.fingerprint for other in others)}) == 4


def softmax(values: np.ndarray) -> np.ndarray:
    likely = np.exp(values - values.max(1, keepdims=True))
    return likely / likely.sum(1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_probabilities_are_said_to_be_and_their_logarithms_taken(load, caplog, dtype):
    columns = scores()
    table = load(columns | {"large": softmax(columns["large"]).astype(dtype)})
    assert [record.message.split("/")[-1] for record in caplog.records] == [
        "table.npz has probabilities of large: their logarithms are taken as scores."
    ]
    assert accuracies(table) == accuracies(load(columns))
    likely = table.predictions.outputs(1, torch.arange(60))[0].softmax(1)
    np.testing.assert_allclose(likely, softmax(columns["large"]), rtol=1e-2 if dtype == "float16" else 1e-5)


def test_impossible_classes_have_finite_scores(load):
    columns = scores()
    certain = load(columns | {"large": np.eye(5)[columns["label"]]}).predictions.experts[1].scores
    assert torch.isfinite(certain).all()
    assert np.array_equal(certain.argmax(1), columns["label"])


def test_scores_that_do_not_sum_to_one_are_left_alone(load, caplog):
    columns = scores()
    columns["large"] = softmax(columns["large"]) * np.where(np.arange(60) == 7, 0.9, 1)[:, None]
    np.testing.assert_allclose(load(columns).predictions.experts[1].scores, columns["large"], rtol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize("columns", [scores(), classes()], ids=["scores", "classes"])
def test_a_table_of_arrays_is_that_of_a_file(load, columns):
    answers = {name: values for name, values in columns.items() if name != "label"}
    table, loaded = PredictionTable.from_arrays(columns["label"], answers, COSTS), load(columns)
    assert (table.names, table.fingerprint) == (loaded.names, loaded.fingerprint)
    assert torch.equal(table.predictions.targets, loaded.predictions.targets)
    for ours, theirs in zip(table.predictions.experts, loaded.predictions.experts, strict=True):
        assert torch.equal(ours.scores, theirs.scores)
    assert len(PredictionTable.from_arrays(None, answers, COSTS).predictions) == 60


# Bad input


@pytest.mark.parametrize(
    ("changes", "costs", "words"),
    [
        ({}, {"small": 1}, "the table has answers and costs of 1 models: at least two are needed"),
        ({}, {"small": 0, "large": 1}, "the table: the cost of 'small' must be a positive number of GMACs, got 0"),
        ({}, {"small": "1", "large": 1}, "the table: the cost of 'small' must be a positive number of GMACs, got 1"),
        ({"small": np.zeros((9, 5))}, COSTS, "column 'small' of the table has 9 rows, but there are 60 labels"),
        ({"small": ["cat"] * 60}, COSTS, "column 'small' of the table holds neither scores .* nor classes"),
    ],
)
def test_bad_arrays_get_one_sentence(changes, costs, words):
    columns = scores() | changes
    refused(words, PredictionTable.from_arrays, columns.pop("label"), columns, costs)


def refused(words: str, load: Callable[..., PredictionTable], *arguments, **options) -> None:
    with pytest.raises(PertinenceError, match=words) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)


NOT_CLASSES = "column 'small' of .* holds neither scores .* nor classes"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": None}, r"table.npz has no column 'label'; it has small, large"),
        ({"label": np.full(60, -1)}, "column 'label' of .* must hold class indices from 0"),
        ({"label": np.zeros(60)}, "column 'label' of .* must hold class indices from 0"),
        ({"label": np.zeros((60, 1), dtype=int)}, "column 'label' of .* must hold class indices from 0"),
        ({"label": np.zeros(0, dtype=int)}, "column 'small' of .* has 60 rows, but there are 0 labels"),
        ({"small": None}, r"costs.json names 1 of the models in .*: at least two are needed; the table has large"),
        ({"small": np.array(["cat"] * 60)}, NOT_CLASSES),
        ({"small": np.zeros(60)}, NOT_CLASSES),
        ({"small": np.zeros((60, 2, 2), dtype=int)}, NOT_CLASSES),
        ({"small": np.full(60, -1)}, NOT_CLASSES),
        ({"small": np.zeros((60, 7))}, "column 'large' of .* has scores of 5 classes, but there are 7"),
        ({"label": np.full(60, 8)}, "column 'small' of .* has scores of 5 classes, but there are 9"),
        ({"small": np.full((60, 5), np.nan)}, "column 'small' of .* has scores that are not finite"),
        ({"small": np.full((60, 5), np.inf)}, "column 'small' of .* has scores that are not finite"),
        ({"small": np.array([None] * 60)}, "table.npz cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_a_bad_column_gets_one_sentence(load, changes, words):
    columns = {name: values for name, values in (scores() | changes).items() if values is not None}
    refused(words, load, columns)


@pytest.mark.parametrize(
    ("suffix", "small", "words"),
    [
        (".csv", ["cat", "dog"], NOT_CLASSES),
        (".csv", [0, None], NOT_CLASSES),
        (".parquet", ["cat", "dog"], NOT_CLASSES),
        (".parquet", [[0.1, 0.9], [0.1]], "column 'small' of .* has rows of different lengths"),
        (".parquet", [["cat"], ["dog"]], NOT_CLASSES),
        (".json", [[0.1, 0.9], [0.1]], "column 'small' of .* has rows of different lengths"),
        (".json", [[0.1, None], [0.1, 0.9]], NOT_CLASSES),
    ],
)
def test_a_bad_column_of_a_data_frame_gets_one_sentence(load, suffix, small, words):
    refused(words, load, {"label": [0, 1], "small": small, "large": [0, 1]}, suffix=suffix)


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ("{", "the costs in .*costs.json cannot be read .*: expected JSON like"),
        ("[1, 2]", "the costs in .*costs.json cannot be read .*: expected JSON like"),
        ('{"small": "cheap", "large": 2}', "the costs in .*costs.json cannot be read .*: expected JSON like"),
        ('{"small": null, "large": 2}', "the costs in .*costs.json cannot be read .*: expected JSON like"),
        ('{"small": -1, "large": 2}', "the cost of 'small' must be a positive number of GMACs, got -1"),
        ('{"small": NaN, "large": 2}', "the cost of 'small' must be a positive number of GMACs, got nan"),
        ('{"small": 1, "large": Infinity}', "the cost of 'large' must be a positive number of GMACs, got inf"),
        ("{}", "names 0 of the models in .*: at least two are needed; the table has small, large"),
    ],
)
def test_bad_costs_get_one_sentence(load, costs, words):
    refused(words, load, classes(), costs)


def test_missing_files_get_one_sentence(load, tmp_path):
    for name in ("absent.npz", "absent.parquet", "absent.csv", "absent.json"):
        refused(f"the predictions in .*{name} cannot be read", load, tmp_path / name)
    with pytest.raises(PertinenceError, match="the costs in .*absent.json cannot be read"):
        PredictionTable.load(write(tmp_path / "table.npz", classes()), tmp_path / "absent.json")


@pytest.mark.parametrize("suffix", [".txt", ".npy", ""])
def test_a_file_of_another_kind_gets_one_sentence(load, tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    path.write_text("label,small,large\n0,0,0\n")
    refused("is not a table: expected .parquet, .csv, .json, .npz", load, path)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npz", "flipped"),
        (".npz", "foreign"),
        (".parquet", "truncated"),
        (".parquet", "foreign"),
        (".json", "truncated"),
    ],
)
def test_a_damaged_file_gets_one_sentence(load, tmp_path, suffix, damage):
    path = write(tmp_path / f"table{suffix}", classes())
    content, middle = path.read_bytes(), path.stat().st_size // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"truncated": content[:middle], "flipped": flipped, "foreign": b"not a table at all"}[damage])
    refused("the predictions in .* cannot be read: ", load, path)


def test_a_pickle_in_an_npz_is_not_opened(load, tmp_path):
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return Path.touch, (opened,)

    refused("cannot be read: Object arrays cannot be loaded", load, classes() | {"small": np.array([Trap()] * 60)})
    assert not opened.exists()


def test_a_split_that_is_not_there_gets_one_sentence(load):
    columns = {name: values.tolist() for name, values in classes(4).items()}
    with_splits = columns | {"split": ["train", "train", "test", "test"]}
    refused(
        "has no column 'split', so it has no split 'test': leave --split out", load, columns, COSTS, "test", ".csv"
    )
    refused("has no split 'valid'; it has test, train", load, with_splits, COSTS, "valid", ".parquet")
    refused("has no column 'label' of split 'valid'", load, classes(), COSTS, "valid")
    assert len(load(with_splits, COSTS, "test", ".parquet").predictions) == 2
    assert len(load(with_splits, COSTS, None, ".csv").predictions) == 4


def test_columns_of_another_length_are_refused(tmp_path):
    costs = tmp_path / "costs.json"
    costs.write_text('{"a": 1, "b": 2}')
    np.savez(tmp_path / "table.npz", label=np.arange(10) % 3, a=np.arange(12) % 3, b=np.arange(10) % 3)
    with pytest.raises(PertinenceError, match="column 'a' of .* has 12 rows, but there are 10 labels"):
        PredictionTable.load(tmp_path / "table.npz", costs)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", np.arange(3).tobytes()])
def test_damaged_npz_gets_one_sentence(content, tmp_path):
    (tmp_path / "table.npz").write_bytes(content)
    (tmp_path / "costs.json").write_text('{"a": 1, "b": 2}')
    with pytest.raises(PertinenceError, match="cannot be read"):
        PredictionTable.load(tmp_path / "table.npz", tmp_path / "costs.json")


def test_models_of_one_cost_have_one_order(tmp_path):
    """Whatever the order that a process happens to hash names in."""
    names = [f"model {index}" for index in range(12)]
    answers = {name: np.arange(60) % (3 + index % 2) for index, name in enumerate(names)}
    np.savez(tmp_path / "table.npz", label=np.arange(60) % 3, **answers)
    (tmp_path / "costs.json").write_text(json.dumps(dict.fromkeys(reversed(names), 1.0)))
    assert PredictionTable.load(tmp_path / "table.npz", tmp_path / "costs.json").names == tuple(sorted(names))


def test_splits_may_be_numbers(tmp_path):
    frame = pd.DataFrame({"label": [0, 1, 2, 0], "a": [0, 1, 2, 1], "b": [0, 1, 1, 0], "split": [0, 0, 1, 1]})
    frame.to_parquet(tmp_path / "table.parquet")
    (tmp_path / "costs.json").write_text('{"a": 1, "b": 2}')
    assert len(PredictionTable.load(tmp_path / "table.parquet", tmp_path / "costs.json", "1").predictions) == 2


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31m", "x" * 201, 7])
def test_names_that_no_table_could_show_are_refused(name):
    labels = np.arange(20) % 4
    with pytest.raises(PertinenceError, match="a model cannot be called"):
        PredictionTable.from_arrays(labels, {name: labels, "large": labels}, {name: 1.0, "large": 2.0})


def test_costs_that_an_editor_of_windows_wrote(load):
    columns = {"label": np.arange(20) % 4, "小": np.arange(20) % 4, "large": np.arange(20) % 4}
    assert load(columns, "\ufeff" + json.dumps({"小": 1, "large": 2}, ensure_ascii=False)).names == ("小", "large")
