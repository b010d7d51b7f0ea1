"""What every kind of evidence keeps to: ours, and one from outside the package (examples/plugins/evidence.py)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pertinence import (
    PertinenceError,
    PertinenceForImageClassification,
    SearchArguments,
    evaluate_model,
    register_evidence,
)
from pertinence.commands.main import main
from pertinence.data.dataset import LabelledImages
from pertinence.evaluation.outcomes import evaluate_point
from pertinence.predictions.predict import ExpertPredictions, Predictions
from pertinence.routing.costs import PoolCosts
from pertinence.routing.evidence import READINGS, Known, no_votes, observe
from pertinence.routing.registry import EVIDENCE
from pertinence.search.front_search import prepare_recipes


EXPERTS, LABELS, FEATURES, COUNT = 3, 8, 5, 20
KINDS = ("features", "mix", "both", "energy")


@pytest.fixture(scope="module", autouse=True)
def example(plug_in):
    return plug_in("evidence")


@pytest.fixture(params=KINDS)
def evidence(request):
    return EVIDENCE.get(request.param)


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return 3 * torch.randn(COUNT, LABELS, generator=torch.Generator().manual_seed(0))


def known_of(evidence, logits: torch.Tensor, tail: int = 1, on_host: bool = True) -> Known:
    """What is known when the second of three experts has run."""
    features = torch.linspace(-1, 1, len(logits) * FEATURES).view(len(logits), FEATURES)
    if on_host:
        logits, features = logits.numpy(), features.numpy()
    label, seen = observe(evidence.reads, logits, logits, features, tail)
    votes = no_votes(len(logits), EXPERTS)
    votes[:, 0], votes[:, 1] = 0, label
    return Known(votes, tail=tail, **seen)


def compute(evidence, logits: torch.Tensor, **how) -> np.ndarray:
    """As a stage does, with statistics that are fitted to the same answers."""
    statistics = evidence.fit(logits, how.get("tail", 1))
    return evidence.compute(known_of(evidence, logits, **how), None if statistics is None else statistics.numpy())


def test_the_example_is_short(example):
    assert len(Path(example.__file__).read_text().splitlines()) <= 30


def test_it_says_what_it_reads(evidence):
    assert evidence is EVIDENCE.get(evidence.name)
    assert isinstance(evidence.version, int)
    assert evidence.reads
    assert set(evidence.reads) <= set(READINGS)


def test_its_statistics_are_as_many_as_it_says(evidence, logits):
    statistics = evidence.fit(logits)
    if evidence.num_statistics:
        assert (statistics.shape, statistics.dtype) == ((evidence.num_statistics,), torch.float32)
    else:
        assert statistics is None


def test_it_is_as_wide_as_it_says(evidence, logits):
    values = compute(evidence, logits)
    assert (values.shape, values.dtype) == ((COUNT, evidence.width(EXPERTS, FEATURES)), np.float32)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e30])
def test_it_is_finite(evidence, logits, scale):
    assert np.isfinite(compute(evidence, logits * scale)).all()


def test_of_one_image_it_is_the_same_as_in_a_batch(evidence, logits):
    known, statistics = known_of(evidence, logits), evidence.fit(logits)
    statistics = None if statistics is None else statistics.numpy()
    alone = [
        evidence.compute(
            known._replace(
                votes=known.votes[[row]],
                **{name: getattr(known, name)[[row]] for name in evidence.reads},
            ),
            statistics,
        )
        for row in range(COUNT)
    ]
    assert np.array_equal(np.concatenate(alone), evidence.compute(known, statistics))


def test_it_changes_nothing(evidence, logits):
    known, again = known_of(evidence, logits), known_of(evidence, logits)
    statistics = evidence.fit(logits)
    evidence.compute(known, None if statistics is None else statistics.numpy())
    for before, after in zip(again, known, strict=True):
        assert np.array_equal(before, after)


def test_answers_on_an_accelerator_give_the_same(evidence, logits):
    expected = compute(evidence, logits)
    assert compute(evidence, logits, on_host=False) == pytest.approx(expected, abs=1e-4)


def test_labels_that_share_a_column_give_the_same(evidence, logits):
    """Of very many labels a column stands for all that no expert thinks likely."""
    if "logits" in evidence.reads:
        with pytest.raises(PertinenceError, match="reads logits, but with so many labels only the largest log-prob"):
            compute(evidence, logits, tail=5)
        return
    unlikely = logits[:, :-1].amin(1, keepdim=True) - 1
    whole = torch.cat([logits[:, :-1], unlikely.repeat(1, 5)], 1)
    assert compute(evidence, whole[:, :LABELS], tail=5) == pytest.approx(compute(evidence, whole), abs=1e-4)


def test_log_probabilities_are_normalised(logits):
    whole = torch.cat([logits, logits[:, -1:], logits[:, -1:]], 1)
    _, seen = observe(["log_probs"], None, logits.numpy(), None, 3)
    assert seen["log_probs"] == pytest.approx(whole.log_softmax(1)[:, :LABELS].numpy(), abs=1e-5)


# In a search


@pytest.fixture(scope="module")
def predictions(logits) -> Predictions:
    labels = logits.argmax(1).repeat(10)
    generator = torch.Generator().manual_seed(1)
    experts = [
        ExpertPredictions.keep(
            logits.repeat(10, 1) + noise * torch.randn(10 * COUNT, LABELS, generator=generator),
            torch.randn(10 * COUNT, FEATURES, generator=generator),
        )
        for noise in (4.0, 2.0, 1.0)
    ]
    return Predictions.of_pool(experts, labels, PoolCosts.in_gmacs((1.0, 3.0, 10.0)))


def paper(predictions: Predictions, evidence) -> tuple:
    """The recipe, and the images that it is judged on."""
    args = SearchArguments(recipe="paper", evidence=evidence.name, epochs=2)
    (recipe,), problem = prepare_recipes(predictions, args, True, "cpu")
    judged = problem.judged
    return recipe, judged


def one_candidate(recipe):
    return next(iter(recipe.evaluate(recipe.space.neutral[:1])))


def test_heads_are_fitted_to_it_and_judged_as_the_model_decides(evidence, predictions):
    recipe, judged = paper(predictions, evidence)
    candidate = one_candidate(recipe)
    (stage,) = candidate.point.decisions
    assert (stage.evidence, stage.evidence_version) == (evidence.name, evidence.version)
    assert candidate.heads[0].weight.shape == (EXPERTS, evidence.width(EXPERTS, FEATURES))
    measured, select = evaluate_point(candidate.point, candidate.heads, judged).figures, candidate.point.select
    assert measured.accuracy == pytest.approx(select.accuracy)
    assert measured.costs == pytest.approx(select.costs)


def test_a_table_has_no_features(evidence, predictions):
    without = [replace(expert, features=None) for expert in predictions.experts]
    recipe, _ = paper(replace(predictions, experts=tuple(without)), evidence)
    expected = "mix" if "features" in evidence.reads else evidence.name
    assert one_candidate(recipe).point.decisions[0].evidence == expected


def test_a_separate_stem_has_nothing_but_features(evidence, predictions):
    stem = replace(predictions, stem=predictions.experts[0])
    if "features" in evidence.reads:
        assert one_candidate(paper(stem, evidence)[0]).point.decisions[0].evidence == "features"
    else:
        with pytest.raises(PertinenceError, match=f"evidence '{evidence.name}' reads what an expert predicts: leave"):
            paper(stem, evidence)


# From outside the package

LOADED = """
import json, sys
from pertinence import PertinenceError, PertinenceForImageClassification, LabelledImages
import datasets
folder, images = sys.argv[1:]
try:
    PertinenceForImageClassification.from_pretrained(folder)
except PertinenceError as error:
    print(json.dumps([str(error), "evidence" in sys.modules]))
import evidence
model = PertinenceForImageClassification.from_pretrained(folder)
images = LabelledImages(datasets.Dataset.from_parquet(images))
print(json.dumps(model([images[row] for row in range(9)], operating_point=%r).logits.tolist()))
"""


@pytest.fixture(scope="module")
def point(record) -> dict:
    """An operating point that the example decides at."""
    return next(point for point in record["front"] if point["recipe"] == "paper")


def test_searched_and_saved(searched, record, point):
    assert record["settings"]["evidence"] == "energy"
    assert [stage["evidence"] for stage in point["stages"]] == ["energy"]
    assert (searched / "model.safetensors").is_file()


def test_where_it_is_not_imported_its_model_is_refused_and_nothing_imported(
    searched, point, workplace, run_python, digits
):
    test = workplace / "data" / "test.parquet"
    (sentence, is_imported), logits = run_python(LOADED % point["name"], searched, test, cwd=workplace)
    assert (
        "evidence 'energy' is not one of features, confidence, mix, both, which are registered: import the module"
        in sentence
    )
    assert not is_imported
    model = PertinenceForImageClassification.from_pretrained(searched)
    images = LabelledImages(digits[2])
    expected = model([images[row] for row in range(9)], operating_point=point["name"])
    assert logits == expected.logits.tolist()


def test_evaluated_in_a_fresh_process(evaluated, record):
    for point, searched in zip(evaluated["front"], record["front"], strict=True):
        assert point["accuracy"] == searched["report"]["accuracy"]
        assert point["costs"] == searched["report"]["costs"]


def test_a_command_without_it_says_what_to_do_in_one_sentence(searched, workplace, monkeypatch, capsys):
    monkeypatch.delitem(EVIDENCE._registered, "energy")
    assert main(["evaluate", str(searched), "--dataset", str(workplace / "data"), "--split", "test"]) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("error: ")
    assert "evidence 'energy' is not one of features, confidence, mix, both" in sentence
    assert sentence.endswith("(--plugins MODULE on the command line)")


@pytest.mark.nightly
def test_another_version_of_it_is_refused(searched, digits, monkeypatch):
    monkeypatch.setattr(type(EVIDENCE.get("energy")), "version", 2)
    with pytest.raises(PertinenceError, match="fitted to version 1 of the evidence 'energy', and version 2 is here"):
        evaluate_model(searched, digits[2])


class Mine:
    name, version, reads, num_statistics = "mine", 1, ("summary",), 0

    def width(self, num_experts, num_features):
        return 1

    def fit(self, logits, tail=1):
        return None

    def compute(self, known, statistics):
        return known.summary[:, :1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "mix"}, "evidence 'mix' is a part of pertinence: choose another name"),
        ({"name": "a.b"}, "must consist of letters, digits, - and _, got 'a.b'"),
        ({"name": None}, "must consist of letters, digits, - and _, got None"),
        (
            {"reads": ("pixels",)},
            "evidence 'mine' reads pixels, expected some of summary, log_probs, logits, features",
        ),
    ],
)
def test_an_evidence_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        register_evidence(type("Changed", (Mine,), changes)())
    assert "mine" not in EVIDENCE.names


def test_an_evidence_that_lacks_something_is_refused():
    lacking = type("Lacking", (), {"name": "mine", "version": 1, "reads": (), "fit": None, "compute": None})()
    with pytest.raises(PertinenceError, match="the evidence 'mine' has no num_statistics, width: see `Evidence`"):
        register_evidence(lacking)
