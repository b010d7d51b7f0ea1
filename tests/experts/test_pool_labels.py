"""Whether experts have their labels in one order: told by their names, however these are, or said not to be known."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions


BIRDS = ["kite", "wren", "tit", "kite", "swift", "rail"]
TURNED = ["rail", "tit", "kite", "swift", "kite", "wren"]
UNTOLD = "cannot be told from their names"


@pytest.fixture
def save(tmp_path: Path):
    """A function: writes a tiny classifier of six labels; `config` replaces entries of its config.json."""

    def save(name: str, labels: list[str] | None = None, **config) -> str:
        torch.manual_seed(len(list(tmp_path.iterdir())))
        names = {"num_labels": 6} if labels is None else {"id2label": dict(enumerate(labels))}
        small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], **names}
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**small))
        return write(tmp_path / name, model, ViTImageProcessor(size={"height": 32, "width": 32}), **config)

    return save


def write(folder: Path, model, processor, **config) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def load(*references):
    return load_pool(references, LoadOptions())


def test_names_that_repeat_are_no_reason_to_pass(save, images):
    first, second = save("first", BIRDS), save("second", TURNED)
    with pytest.raises(PertinenceError, match="'second' has the labels of 'first' in another order") as refused:
        load(first, second)
    proposed = json.loads(re.search(r"label_map=(\[[\d, ]+\])", str(refused.value))[1])
    assert proposed == [2, 5, 1, 4, 3, 0], "of the kites, the first is the first"
    assert "the first is taken for the first" in str(refused.value)
    alone = AutoModelForImageClassification.from_pretrained(second)
    pixels = images(2, 32)
    expected = alone(**AutoImageProcessor.from_pretrained(second)(pixels, return_tensors="pt")).logits
    for label_map in (proposed, "by_name"):
        pool = load(first, {"repo_id": second, "label_map": label_map})
        mapped = next(expert for expert in pool if expert.entry.name == "second")
        torch.testing.assert_close(mapped(pixels)[0], expected[:, proposed])
    assert load(first, save("third", BIRDS)), "the same names in the same order"


@pytest.mark.parametrize(
    "labels",
    [
        ["wren", "red kite", "tit", "black kite", "swift", "rail"],
        ["wren", "kite", "tit", "robin", "swift", "rail"],
        ["stork", "kite", "wren", "tit", "crow", "swift"],
    ],
    ids=["one-repeats", "one-differs", "moved-by-one"],
)
def test_names_that_stand_elsewhere_are_refused_though_others_differ(save, labels):
    names = ["kite", "wren", "tit", "crow", "swift", "rail"]
    with pytest.raises(PertinenceError, match=r"another order.* a label_map, .*list\(range\(6\)\)"):
        load(save("first", names), save("second", labels))
    assert load(save("third", names), {"repo_id": save("fourth", labels), "label_map": list(range(6))})


def test_experts_are_compared_also_where_the_first_has_no_names(save):
    with pytest.raises(PertinenceError, match="'third' has the labels of 'second' in another order"):
        load(save("first"), save("second", BIRDS), save("third", TURNED))
    pool = load(save("a"), save("b", BIRDS), {"repo_id": save("c", TURNED), "label_map": "by_name"})
    assert sorted(filter(None, (expert.entry.label_map for expert in pool))) == [[2, 5, 1, 4, 3, 0]]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (None, None, "those of 'b' and 'c' and 'a' are generic, LABEL_0"),
        (BIRDS, None, "those of 'b' and 'c' are generic"),
        (None, BIRDS, "those of 'a' are generic"),
        (list("012345"), BIRDS, "label 0 is 'kite' here and '0' there"),
        (["kite", "wren", "Meise", "Milan", "Segler", "Ralle"], ["kite", "wren", "tit", "crow", "swift", "rail"],
         "label 2 is 'tit' here and 'Meise' there"),
    ],
    ids=["both-generic", "generic-beside-names", "names-beside-generic", "numbers", "other-language"],
)  # fmt: skip
def test_an_order_that_is_not_known_is_said_once(save, caplog, first, second, reason):
    load(save("a", first), save("b", second), save("c", second))
    doubts = [record.getMessage() for record in caplog.records if UNTOLD in record.getMessage()]
    assert len(doubts) == 1
    assert reason in doubts[0]


def test_a_spelling_and_a_single_other_name_are_no_doubt(save, caplog):
    names = ["Black_Kite", "wren", "tit", "cafe\u0301", "swift", "rail"]
    load(save("a", names), save("b", ["black-kite", "Wren ", "tit", "caf\u00e9", "martin", "rail"]))
    assert not caplog.records


def test_a_label_map_that_its_names_contradict_is_used_and_said(save, caplog):
    turned = [2, 3, 4, 5, 0, 1]
    names = ["kite", "wren", "tit", "crow", "swift", "rail"]
    other = save("b", [names[index] for index in turned])
    load(save("a", names), {"repo_id": other, "label_map": [4, 5, 0, 1, 2, 3]})
    assert not caplog.records
    load(save("c", names), {"repo_id": other, "label_map": turned})
    assert "'b' has the labels of 'c' in another order: label 0 is 'swift' here and 'kite' there" in caplog.text


def test_label2id_that_contradicts_id2label_is_said(save, caplog):
    names = ["kite", "wren", "tit", "crow", "swift", "rail"]
    load(save("a", names, label2id={name: str(index) for index, name in enumerate(names)}), save("b", names))
    load(save("c", BIRDS, label2id={name: index for index, name in enumerate(BIRDS)}), save("d", BIRDS))
    assert not caplog.records, "the last of two kites"
    load(save("e", names, label2id={name: 5 - index for index, name in enumerate(names)}), save("f", names))
    assert "'kite' is label 0 by id2label and 5 by label2id" in caplog.text


def test_a_config_of_a_number_of_labels_alone(tmp_path, save, images):
    small = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    network = transformers.PvtForImageClassification(transformers.PvtConfig(num_labels=6, image_size=64, **small))
    assert network.config.id2label is None
    processor = transformers.PvtImageProcessor(size={"height": 64, "width": 64})
    own = write(tmp_path / "own", network, processor)
    model = PertinenceForImageClassification.from_experts([own, save("other", BIRDS)], 0.5)
    assert list(model.config.id2label.values()) == BIRDS
    model.save_pretrained(tmp_path / "model", save_experts=True)
    for lazy in (False, True):
        again = PertinenceForImageClassification.from_pretrained(tmp_path / "model", lazy=lazy)
        torch.testing.assert_close(again(images(2, 64)).logits, model(images(2, 64)).logits)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"id2label": BIRDS}, r"has id2label \['kite', .*\], expected a mapping of indices to names"),
        ({"id2label": dict.fromkeys(TURNED, 0)}, "expected a mapping of indices to names"),
        ({"id2label": {str(index + (index > 2)): name for index, name in enumerate(BIRDS)}}, "expected 0 to 5"),
        ({"label_names": "kite"}, "has label_names 'kite', expected a list"),
    ],
    ids=["list", "names-of-indices", "a-gap", "text"],
)
def test_names_that_cannot_be_read_are_refused(save, config, words):
    with pytest.raises(PertinenceError, match=words):
        load(save("a", **config), save("b"))


def test_names_that_are_no_text(save, caplog):
    values = {"0": None, "1": 7, "2": True, "3": ["a", "b"], "4": "swift", "5": "rail"}
    pool = load(save("a", id2label=values), save("b", BIRDS))
    assert list(next(expert for expert in pool if expert.entry.name == "a").labels.values()) == [
        "LABEL_0", "7", "True", "['a', 'b']", "swift", "rail",
    ]  # fmt: skip
    assert UNTOLD in caplog.text
