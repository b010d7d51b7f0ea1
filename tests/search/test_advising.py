"""Advice before a search: which experts are worth taking, and whether one model is enough."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pertinence import PertinenceError, PredictionTable, SearchArguments, advise, search_predictions
from pertinence.commands.main import main
from pertinence.predictions.predictions import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.search.advising import advise_on


def pool(skills, costs, count: int = 2000, seed: int = 0, noise_seeds=None) -> Predictions:
    """Experts who find the same images hard; equal noise seeds make equal experts."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    ease = torch.rand(count, 1, generator=generator) * torch.nn.functional.one_hot(labels, 5)
    experts = []
    for place, skill in enumerate(skills):
        own = torch.Generator().manual_seed(100 + (noise_seeds or range(len(skills)))[place])
        experts.append(ExpertPredictions.keep(6 * skill * ease + torch.randn(count, 5, generator=own)))
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs(costs))


def test_two_equal_experts_are_one_too_many():
    advice = advise_on(["cheap", "expensive"], pool((1.0, 1.0), (1.0, 5.0), noise_seeds=(0, 0)))
    assert advice.is_one_enough
    assert (advice.taken, advice.reference, advice.saving) == ((0,), 0, 0.0)
    assert advice.sentence.startswith("One model is enough: cheap.")
    assert advice.experts[1].dominated_by == "cheap"
    assert advice.best_partner(1) is None


def test_a_small_expert_that_knows_when_it_is_right_is_taken():
    advice = advise_on(["small", "big"], pool((0.8, 1.5), (1.0, 10.0)))
    assert not advice.is_one_enough
    assert advice.taken == (0, 1)
    assert advice.best_partner(1).members == (0, 1)
    assert advice.saving > 0.1
    assert "Search with small, big. Expected without any tuning, against big: it saves" in advice.sentence


def test_experts_far_below_the_reference_may_be_worth_taking():
    """No point is lossless for certain, but the pairs gain: one model is not enough."""
    advice = advise_on(["small", "middle", "big"], pool((0.5, 0.8, 1.5), (1.0, 3.0, 10.0)))
    assert any(pair.is_worth_having for pair in advice.pairs)
    assert not advice.is_one_enough


def test_an_expert_that_a_cheaper_one_beats_is_left_out():
    advice = advise_on(["small", "bad", "big"], pool((0.9, 0.3, 1.5), (1.0, 5.0, 10.0)))
    assert advice.experts[1].dominated_by == "small"
    assert advice.experts[1].clearly
    assert 1 not in advice.taken
    assert all(1 not in pair.members for pair in advice.pairs)


def test_of_a_large_pool_a_few_are_taken():
    skills = np.linspace(0.3, 1.5, 24)
    advice = advise_on([f"m{i}" for i in range(24)], pool(skills, np.geomspace(1, 50, 24), count=3000))
    assert 2 <= len(advice.taken) <= 4
    assert advice.reference in advice.taken
    if len(advice.pairs) < 24 * 23 / 2:
        assert advice.notes


def test_the_expectation_holds_on_other_images():
    """The experts are chosen on these images; what is expected of them must not be flattered by that."""
    skills, costs = np.linspace(0.5, 1.4, 6), np.geomspace(1, 20, 6)
    names = [f"m{i}" for i in range(6)]
    expected, reached = [], []
    for seed in range(4):
        advice = advise_on(names, pool(skills, costs, count=1500, seed=seed))
        other = advise_on(names, pool(skills, costs, count=6000, seed=50 + seed))
        expected.append([advice.at[percent][0] for percent in (20, 40, 60)])
        reached.append([other.at[percent][0] for percent in (20, 40, 60)])
    assert np.mean(expected, 0) == pytest.approx(np.mean(reached, 0), abs=0.02)


def test_predictions_without_scores_are_called_out():
    scored = pool((0.8, 1.5), (1.0, 10.0))
    experts = [
        ExpertPredictions.keep(4 * torch.nn.functional.one_hot(one.top_labels(), 5).float()) for one in scored.experts
    ]
    classes = Predictions.of_pool(experts, scored.labels, scored.costs)
    assert any("no scores" in note for note in advise_on(["small", "big"], classes).notes)
    assert not advise_on(["small", "big"], scored).notes


def test_two_experts_of_the_same_skill_are_not_worth_the_expensive_one():
    """They differ, but by no more than the noise, and neither knows when the other is right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (1000,), generator=generator)
    right = torch.rand(1000, 1, generator=generator) < 0.8
    wrong = torch.nn.functional.one_hot((labels + 1) % 5, 5)
    scores = torch.where(right, torch.nn.functional.one_hot(labels, 5), wrong).float()
    flipped, rows = scores.clone(), right.squeeze(1)
    flipped[rows.nonzero()[:3, 0]] = wrong[rows.nonzero()[:3, 0]].float()
    other = (~rows).nonzero()[:2, 0]
    flipped[other] = torch.nn.functional.one_hot(labels[other], 5).float()
    experts = [ExpertPredictions.keep(4 * one) for one in (flipped, scores)]
    advice = advise_on(["cheap", "expensive"], Predictions.of_pool(experts, labels, PoolCosts.in_gmacs((1.0, 5.0))))
    assert advice.sentence.startswith("One model is enough: cheap.")
    for pair in advice.pairs:
        assert pair.saving_interval[0] <= pair.saving


def test_it_prints_draws_and_is_plain_values(tmp_path):
    advice = advise_on(["small", "middle", "big"], pool((0.6, 1.0, 1.5), (1.0, 4.0, 10.0)))
    text = repr(advice)
    assert "small + big" in text
    assert "dominated by" in text
    assert text.endswith(advice.sentence)
    values = json.loads(json.dumps(advice.to_dict()))
    assert values["reference"] == "big"
    assert [pair["experts"] for pair in values["pairs"]][0] == [advice.names[i] for i in advice.pairs[0].members]
    advice.plot(tmp_path / "advice.png")
    with Image.open(tmp_path / "advice.png") as picture:
        assert picture.size == (1200, 750)


@pytest.fixture
def table(zoo, tmp_path):
    costs = tmp_path / "costs.json"
    costs.write_text('{"resnet20": 0.041, "resnet32": 0.07, "resnet56": 0.127}')
    return str(zoo / "predictions/cifar100-logits.npz"), str(costs)


@pytest.mark.nightly
def test_a_search_reaches_what_is_expected(table):
    """On CIFAR-100: advised on the validation images, searched there, and reported on the test images."""
    tables = [PredictionTable.load(*table, split) for split in ("validation", "test")]
    advice = advise(tables[0])
    assert not advice.is_one_enough
    evaluation = search_predictions(tables[0], SearchArguments(baselines=False, device="cpu"), tables[1]).evaluation
    default = evaluation.series.points[evaluation.series.default]
    saved = 1 - default.report.cost / evaluation.experts[evaluation.reference].cost
    assert saved == pytest.approx(advice.saving, abs=0.15)


def test_on_the_command_line(table, tmp_path, capsys):
    arguments = ["advise", "--predictions", table[0], "--costs", table[1], "--split", "validation"]
    assert main([*arguments, "--figure", str(tmp_path / "advice.png")]) == 0
    shown = capsys.readouterr().out
    assert "resnet20 + resnet56" in shown
    assert (
        f"Next: pertinence search --predictions {table[0]} --costs {table[1]} --split validation --output-dir" in shown
    )
    assert (tmp_path / "advice.png").is_file()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "resnet56"


def test_experts_run_once_over_the_images(digits, digit_experts, tmp_path, capsys):
    digits[1].to_parquet(tmp_path / "validation.parquet")
    arguments = ["--dataset", str(tmp_path), "--split", "validation", "--cache-dir", str(tmp_path / "cache")]
    experts = list(map(str, digit_experts))
    assert main(["advise", "--experts", *experts, *arguments, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    taken = [name for name in experts if f"--experts {name}" in shown or f" {name} --dataset" in shown]
    assert "One model is enough" in shown or taken
    assert (tmp_path / "cache").is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--figure", "advice"], "figure='advice' must end in .png, .svg, .pdf, .jpg"),
        ([], "advice needs --experts and --dataset, or --predictions and --costs"),
        (
            ["--predictions", "table.npz"],
            "--predictions takes --costs, and neither --experts nor --dataset nor --limit",
        ),
    ],
)
def test_what_is_missing_is_said(arguments, words, capsys):
    assert main(["advise", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {words}\n"


def test_in_python_images_are_needed(table, digits):
    with pytest.raises(PertinenceError, match="advice on experts needs images to run them on"):
        advise(["a", "b"])
    with pytest.raises(PertinenceError, match="a table holds the predictions for its images"):
        advise(PredictionTable.load(*table, "test"), digits[1])


def test_an_expert_near_chance_is_told():
    (note,) = advise_on(["lost", "big"], pool((0.0, 1.5), (1.0, 10.0))).notes
    assert note.startswith("Expert 'lost' is right on ")
    assert "no better than chance among 5 labels" in note
    assert "--label-map by_name" in note
    assert note.endswith("; a search refuses it.")
    few = advise_on(["lost", "big"], pool((0.2, 1.5), (1.0, 10.0), count=20)).notes
    assert any(note.endswith("; more images would tell.") for note in few)
    assert advise_on(["small", "big"], pool((0.8, 1.5), (1.0, 10.0))).notes == ()


def test_pairs_are_counted_in_english():
    assert "\n1 pair; on 2000 images, without any tuning." in repr(
        advise_on(["small", "big"], pool((0.8, 1.5), (1.0, 10.0)))
    )
    skills = (0.5, 0.7, 0.9, 1.1, 1.5)
    assert "\n10 pairs, of which the best 8 are shown; on" in repr(
        advise_on(list("abcde"), pool(skills, (1.0, 2.0, 4.0, 7.0, 10.0)))
    )
