"""The model card: one whole card, word by word, and what changes it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pertinence import PertinenceConfig
from pertinence.hub.model_card import Card, markdown_table, plain, render_card


EXPECTED = Path(__file__).parents[1] / "expected_model_card.md"


def figures(accuracy: float, gmacs: float, *shares: float, samples: int = 1000) -> dict:
    interval = [accuracy - 0.02, accuracy + 0.02]
    return {"accuracy": accuracy, "interval": interval, "gmacs": gmacs, "expert_shares": shares, "samples": samples}


def expert(name: str, gmacs: float, accuracy: float, *shares: float, **values) -> dict:
    return {
        "name": name, "repo_id": f"user/{name}", "revision": {"small": "5", "large": "1"}[name] * 40, "gmacs": gmacs,
        "parameters": 12345, "features": 64, "transform": {"library": "timm", "size": [8, 8]}, "licence": "mit",
        "select": figures(accuracy, gmacs, *shares, samples=500),
        "report": figures(accuracy, gmacs, *shares), **values,
    }  # fmt: skip


def point(name: str, recipe: str, members: list[int], *measured) -> dict:
    stages = [{"after": 0}] if len(members) > 1 else []
    return {"name": name, "recipe": recipe, "members": members, "stages": stages,
            "select": figures(*measured, samples=500), "report": figures(*measured)}  # fmt: skip


FRONT = [
    point("fastest", "static", [0], 0.8, 0.1, 1.0, 0.0),
    point("cheapest-lossless", "cascade", [0, 1], 0.91, 0.4, 0.75, 0.25),
    point("most-accurate", "static", [1], 0.9, 1.0, 0.0, 1.0),
]
VERSUS = {"mean": 0.01, "standard_error": 0.003, "interval": [0.004, 0.016]}
RECORD = {
    "settings": {"recipe": "cascade", "population": 50, "experts": [], "stem": None, "images": {}},
    "versions": {"pertinence": "0.1.0", "torch": "2.9.0"},
    "images": {"cross_fit": 500, "folds": 5, "select": 500, "report": 1000, "report_from": "report split"},
    "baselines": {
        "max-softmax chain of 2": {"default": 0, "points": [{**FRONT[1]["report"], "versus_reference": VERSUS}]},
    },
    "report": {
        "front": [{"name": one["name"], **one["report"], "versus_reference": VERSUS} for one in FRONT],
        "experts": [{"name": "small", **FRONT[0]["report"]}, {"name": "large", **FRONT[2]["report"]}],
        "oracle": figures(0.95, 0.2, 0.9, 0.1),
        "warnings": ["Mind the gap."],
    },
}  # fmt: skip
SETTINGS = {
    "dataset": "user/images", "split": "validation", "report_split": "test", "recipe": "cascade", "population": 50,
    "experts": [f"user/small@{'5' * 40}", f"user/large@{'1' * 40}"],
}  # fmt: skip


@pytest.fixture
def card() -> Card:
    experts = [expert("small", 0.1, 0.8, 1.0, 0.0), expert("large", 1.0, 0.9, 0.0, 1.0)]
    config = PertinenceConfig(experts=experts, front=FRONT, operating_point="cheapest-lossless", num_labels=10)
    return Card("user/composed", config, RECORD, SETTINGS, figures=("front.png", "shares.png"))


def test_the_whole_card(card):
    assert render_card(card) == EXPECTED.read_text()


def test_classes_that_lose_are_on_the_card(card):
    def group(name: str, loses: bool, q_value: float | None) -> dict:
        return {"name": name, "images": 100, "accuracy": 0.7, "reference_accuracy": 0.8, "losses": 12, "wins": 2,
                "interval": [-0.17, -0.03], "p_value": 0.01, "q_value": q_value, "first_share": 0.6,
                "difference": -0.1, "loses": loses}  # fmt: skip

    def with_classes(*groups: dict) -> str:
        compared = {"by": "class", "operating_point": "cheapest-lossless", "reference": "large", "first": "small",
                    "first_share": 0.75, "false_discovery_rate": 0.05, "groups": groups}  # fmt: skip
        return render_card(replace(card, record={**RECORD, "report": {**RECORD["report"], "by_class": compared}}))

    text = with_classes(group("a *cat*", True, 0.03), group("dog", False, 0.4), group("emu", False, None))
    assert "Of 2 classes with enough report images to tell, 1 lose more accuracy than chance allows" in text
    assert r"| a \*cat\* | 100 | 70.0 % | 80.0 % | -10.0 | -17.0 .. -3.0 | 60 % |" in text
    assert "| dog |" not in text
    assert "`small` alone answers 75 % of all images." in text
    assert with_classes(group("dog", False, 0.4)) == EXPECTED.read_text()


def test_what_is_uncertain_about_a_cost_is_on_the_card(card):
    small, large = card.config.experts
    noted = {**small, "cost_note": "the operation own::kernel is not counted"}
    config = PertinenceConfig(**{**card.config.to_dict(), "experts": [noted, large]})
    text = render_card(replace(card, config=config))
    assert "- The cost of `small` is uncertain: the operation own::kernel is not counted." in text


@pytest.mark.parametrize("key", ["images", "versions"])
def test_a_record_of_another_shape_is_said_to_be(card, key):
    with pytest.raises(ValueError, match="the record is of another shape"):
        render_card(replace(card, record={**RECORD, key: None}))


def test_a_card_is_a_pure_function(card):
    assert render_card(card) == render_card(replace(card))


def test_what_is_copied_has_a_licence_and_keeps_its_origin(card):
    experts = [
        {**entry, "repo_id": f"./experts/{i}", "origin": entry["repo_id"], "licence": licence}
        for i, (entry, licence) in enumerate(zip(card.config.experts, ("mit", "cc-by-nc-4.0"), strict=True))
    ]
    card.config.experts = experts
    text = render_card(replace(card, needs_code=("small",)))
    data = ModelCard(text).data
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", ["user/small", "user/large"])
    assert f"[experts/0](experts/0), from [user/small](https://huggingface.co/user/small/tree/{'5' * 40})" in text
    assert "small brings modelling code (in `experts/`)" in text
    assert text.count("trust_remote_code=True)\n") == 2
    experts[0]["licence"] = None
    text = render_card(card)
    assert ModelCard(text).data.license == "unknown"
    assert "not stated" in text
    assert "ask its owner" in text


def test_local_data_is_no_data_set_of_the_hub(card):
    text = render_card(replace(card, settings=SETTINGS | {"dataset": "mine"}, folders={"dataset": ["mine"]}))
    data = ModelCard(text).data
    assert data.datasets is None
    assert {result.dataset_type for result in data.eval_results} == {"custom"}
    assert "to be replaced by your own first: dataset (mine)" in text


def test_a_guarantee_is_on_the_card_with_its_assumptions(card):
    tested = [{"operating_point": "cheapest-lossless", "losses": 2, "wins": 30, "p_value": 0.001}]
    card.config.guarantee = {
        "operating_point": "cheapest-lossless", "max_accuracy_loss": 0.005, "confidence": 0.95, "samples": 2000,
        "images": "0" * 16, "tested": tested, "assumptions": ["images to come are like these"],
    }  # fmt: skip
    text = render_card(card)
    assert "loses less than 0.5 points of accuracy against the largest expert, with 95 % confidence" in text
    assert "Assumes: images to come are like these" in text


def test_text_from_others_is_not_markup(card):
    name, settings = "![x](https://evil/pixel.png) `a` <b> __bold__", {"dataset": "a\n```\n# Heading\n"}
    card.config.experts[0]["name"] = card.config.experts[0]["licence"] = name
    card.config.front[0]["name"] = name
    text = render_card(replace(card, settings=SETTINGS | settings, needs_code=(name,)))
    blocks = r"^(`{3,})\w*\n.*?^\1$|(?<![\\`])`[^`\n]+`"
    outside = re.sub(blocks, "", text.split("---", 2)[2], flags=re.MULTILINE | re.DOTALL)
    assert "# Heading" not in outside
    for markup in ("[x", "<b", "`a", "__bold"):
        assert markup in text
        assert re.search(rf"(?<!\\){re.escape(markup)}", outside) is None


@pytest.mark.parametrize("text", ["$$a$$", "&lt;b&gt;", "# a", "- a", "+ a"])
def test_mathematics_entities_and_lists_are_not_markup(text):
    assert plain(text) != text
    assert plain(text).replace("\\", "") == text


def test_a_name_cannot_close_the_block_of_a_guarantee(card):
    name = "```\n# Heading".replace("\n", " ")
    card.config.front[1]["name"] = card.config.operating_point = name
    card.config.guarantee = {
        "operating_point": name, "max_accuracy_loss": 0.005, "confidence": 0.95, "samples": 2000, "images": "0" * 16,
        "tested": [{"operating_point": name, "losses": 2, "wins": 30, "p_value": 0.001}], "assumptions": ["none"],
    }  # fmt: skip
    text = render_card(replace(card, record=None))
    assert re.search(r"^````$.*?```.*?^````$", text, re.MULTILINE | re.DOTALL)


def test_names_cannot_break_a_table():
    table = markdown_table(["a", "b"], [["x | y", "two\nlines"]])
    assert table.splitlines()[-1] == "| x \\| y | two lines |"
