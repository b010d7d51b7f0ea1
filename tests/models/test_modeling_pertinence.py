"""The composed model: what it answers, what it is set to, what it refuses, and that it comes back as it was saved."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from pertinence import (
    Figures,
    Front,
    OperatingPoint,
    PertinenceConfig,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    PertinenceOutput,
    Stage,
)
from pertinence.experts.expert import Expert
from pertinence.routing.evidence import MIX, TOP_PROBABILITY, compute_evidence
from pertinence.routing.heads import Head


ARCHITECTURES = {"test_convnext": 32, "test_vit": 48, "test_efficientnet": 48, "test_vit2": 64, "test_resnet": 64}
"""Input size of each, by rising cost."""
FIELDS = {"logits", "expert_indices", "experts_run", "gmacs", "dispatcher_logits", "abstained"}
KNOTS = torch.linspace(-2, 4, 8)


def measured(accuracy: float, gmacs: float) -> Figures:
    return Figures(accuracy, (accuracy - 0.01, accuracy + 0.01), {"gmacs": gmacs}, (0.2,) * 5, 1000)


POINTS = [
    OperatingPoint("smallest", "static", (0,), select=measured(0.80, 1.0)),
    OperatingPoint("paper", "paper", (0, 1, 3), (Stage(0, "features"),), measured(0.85, 2.0)),
    OperatingPoint(
        "cascade",
        "cascade",
        (0, 2, 4),
        (Stage(0, "mix", (1.3,)), Stage(2, "both", (0.6, 1.1)), Stage(4, "mix", (0.4, 0.9, 1.2))),
        measured(0.95, 3.0),
    ),
    OperatingPoint("own-answers", "cascade", (1, 2, 3, 4), (Stage(1), Stage(2, "both"), Stage(3)), measured(0.9, 4.0)),
    OperatingPoint(
        "terminal",
        "cascade",
        (0, 2, 4),
        (Stage(0, "both", (0.8,)), Stage(4, "mix", (0.1, 0.2, 0.3))),
        measured(0.9, 5.0),
    ),
]
NAMES = [point.name for point in POINTS]


@pytest.fixture(scope="module")
def folders(make_expert, tmp_path_factory) -> list[Path]:
    """Five tiny experts, by rising cost."""
    folder = tmp_path_factory.mktemp("pool")
    model_args = {name: {"model_args": {"img_size": size}} for name, size in ARCHITECTURES.items() if "vit" in name}
    return [
        make_expert(folder / name, name, size, seed=seed, **model_args.get(name, {}))
        for seed, (name, size) in enumerate(ARCHITECTURES.items())
    ]


@pytest.fixture(scope="module")
def pool(folders) -> list[Expert]:
    experts = list(PertinenceForImageClassification.from_experts(folders, 0.5).experts)
    assert [expert.entry.name for expert in experts] == list(ARCHITECTURES)
    return experts


def heads_by_hand(point: OperatingPoint, pool: Sequence[Expert]) -> list[Head]:
    """One for each decision: the more doubtful an image, the further it goes, and every entry of the evidence counts.

    On features alone each action follows the score of one label.
    """
    heads = []
    for stage in point.decisions:
        later = [member for member in point.members if member > stage.after]
        labels = pool[stage.after].model.timm_model.get_classifier()
        on_labels, bias = labels.weight[: len(pool)], labels.bias[: len(pool)]
        size = compute_evidence(
            MIX, torch.zeros(1, 10), torch.zeros(1, 5).long(), torch.ones(1, 5).bool(), KNOTS
        ).shape[1]
        on_mix = torch.randn(len(pool), size, generator=torch.Generator().manual_seed(stage.after)) / 50
        doubt = torch.zeros(len(pool))
        for rank, member in enumerate(later, 1):
            on_mix[member, TOP_PROBABILITY] -= rank
            doubt[member] = 0.2 + 0.4 * rank
        heads.append(
            {
                "features": Head(on_labels, bias),
                "mix": Head(on_mix, doubt, KNOTS),
                "both": Head(torch.cat([on_labels / 5, on_mix], 1), bias / 5 + doubt, KNOTS),
            }[stage.evidence]
        )
    return heads


@pytest.fixture(scope="module")
def heads(pool) -> dict[str, list[Head]]:
    return {point.name: heads_by_hand(point, pool) for point in POINTS}


@pytest.fixture(scope="module")
def saved(pool, heads, tmp_path_factory) -> Path:
    """A model of five experts and five operating points, written by hand: config.json and model.safetensors."""
    folder = tmp_path_factory.mktemp("model")
    PertinenceConfig(
        experts=[expert.entry.to_dict() for expert in pool],
        front=[point.to_dict() for point in POINTS],
        operating_point="cascade",
        id2label={index: f"digit {index}" for index in range(10)},
        label2id={f"digit {index}": index for index in range(10)},
    ).save_pretrained(folder)
    stacked: dict[str, list[torch.Tensor]] = {}
    for point in POINTS:
        for stage, head in zip(point.decisions, heads[point.name], strict=True):
            for name, tensor in {"weight": head.weight, "bias": head.bias, "knots": head.statistics}.items():
                if tensor is not None:
                    stacked.setdefault(f"dispatcher.stages.{stage.after}_{stage.evidence}.{name}", []).append(tensor)
    tensors = {name: torch.stack(parts).detach() for name, parts in stacked.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    PertinenceImageProcessor().save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def model(saved) -> PertinenceForImageClassification:
    """The saved model, for tests that leave it as it is."""
    return load(saved)


@pytest.fixture
def own_model(saved) -> PertinenceForImageClassification:
    """The saved model, for one test to change."""
    return load(saved)


@pytest.fixture
def composed(pool, heads) -> PertinenceForImageClassification:
    """The same model made in memory, for one test to set; its experts are shared."""
    front = Front(POINTS, [expert.entry.name for expert in pool])
    return PertinenceForImageClassification.compose(pool, front, heads, "cascade")


@pytest.fixture(scope="module")
def batch(images) -> torch.Tensor:
    return images(48, 56, seed=1)


@pytest.fixture
def changed(saved, tmp_path) -> Callable[..., Path]:
    """A function: copies the saved model with one value of its config.json replaced; returns the folder."""

    def change(path: Sequence[Any], value: Any) -> Path:
        values = target = json.loads((saved / "config.json").read_text())
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
        return tmp_path

    return change


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def assert_same(actual: PertinenceOutput, expected: PertinenceOutput, tolerance: float = 0.0) -> None:
    """Equal within the tolerance; scores within the last bits, which change with where in memory the heads lie."""
    assert set(actual) == set(expected)
    for name in expected:
        atol = max(tolerance, 1e-5) if name == "dispatcher_logits" else tolerance
        torch.testing.assert_close(actual[name], expected[name], atol=atol, rtol=0, equal_nan=True, msg=name)


# The policy, against a plain loop over single images


Alone = list[tuple[torch.Tensor, torch.Tensor]]
"""What each expert says about one image: logits (C,) and what its last layer reads (F,)."""


@pytest.fixture(scope="module")
def alone(folders, batch) -> list[Alone]:
    """Each image, by itself, through each expert outside of any pool, with the expert's own processor."""
    models = [AutoModelForImageClassification.from_pretrained(folder).timm_model for folder in folders]
    processors = [AutoImageProcessor.from_pretrained(folder) for folder in folders]

    def ask(timm_model: nn.Module, processor: Any, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixel_values = processor(as_pil(image), return_tensors="pt")["pixel_values"]
        features = timm_model.forward_head(timm_model.forward_features(pixel_values), pre_logits=True)
        return timm_model(pixel_values)[0], features[0]

    with torch.no_grad():
        return [[ask(*expert, image) for expert in zip(models, processors, strict=True)] for image in batch]


@dataclass
class Outcome:
    """What became of one image: the experts that were run, the answer, the cost, the scores at each stage reached."""

    path: list[int]
    logits: torch.Tensor
    gmacs: float
    scores: dict[int, dict[int, float]]


def by_hand(point: OperatingPoint, heads: Sequence[Head], gmacs: Sequence[float], answers: Alone) -> Outcome:
    """One image through an operating point: run, mix, score, go on or answer."""
    head_after = {stage.after: head for stage, head in zip(point.decisions, heads, strict=True)}
    stage_after = {stage.after: stage for stage in point.stages}
    outcome = Outcome([], torch.zeros(0), 0.0, {})
    following = point.members[0]
    while following not in outcome.path:
        expert = following
        outcome.path.append(expert)
        outcome.gmacs += gmacs[expert]
        outcome.logits = answers[expert][0]
        stage, head = stage_after.get(expert), head_after.get(expert)
        if stage is not None and stage.mixing is not None:
            weight = dict(zip(point.members, stage.mixing, strict=False))
            outcome.logits = sum(weight[one] * answers[one][0].log_softmax(-1) for one in outcome.path)
        if head is not None:
            evidence = []
            if stage.evidence in ("features", "both"):
                evidence.append(answers[expert][1])
            if stage.evidence in ("mix", "both"):
                ran = torch.tensor([[one in outcome.path for one in range(len(answers))]])
                votes = torch.tensor([[logits.argmax() for logits, _ in answers]])
                evidence.append(compute_evidence(MIX, outcome.logits[None], votes, ran, head.statistics)[0])
            scores = head.weight @ torch.cat(evidence) + head.bias
            outcome.gmacs += head.weight.numel() / 1e9
            outcome.scores[expert] = {action: scores[action].item() for action in point.members if action >= expert}
            following = max(outcome.scores[expert], key=outcome.scores[expert].get)
    return outcome


@pytest.fixture(scope="module")
def outcomes(pool, heads, alone) -> dict[str, list[Outcome]]:
    """What becomes of every image at every operating point, by hand."""
    gmacs = [expert.entry.gmacs for expert in pool]
    with torch.no_grad():
        return {
            point.name: [by_hand(point, heads[point.name], gmacs, answers) for answers in alone] for point in POINTS
        }


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_comes_out_as_its_images_do_by_hand(model, batch, outcomes, name):
    out, expected = model(batch, operating_point=name), outcomes[name]
    decisions = [stage.after for stage in model.front.find(name).decisions]
    scores = torch.full((len(batch), len(decisions), 5), torch.nan)
    for image, outcome in enumerate(expected):
        for stage, actions in outcome.scores.items():
            for action, score in actions.items():
                scores[image, decisions.index(stage), action] = score
    assert [ran.nonzero().squeeze(1).tolist() for ran in out.experts_run] == [outcome.path for outcome in expected]
    assert out.expert_indices.tolist() == [outcome.path[-1] for outcome in expected]
    torch.testing.assert_close(out.logits, torch.stack([o.logits for o in expected]), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.dispatcher_logits, scores, atol=1e-4, rtol=0, equal_nan=True)
    assert out.gmacs.tolist() == pytest.approx([outcome.gmacs for outcome in expected], abs=2e-9)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("smallest", {(0,)}),
        ("paper", {(0,), (0, 1), (0, 3)}),
        ("cascade", {(0,), (0, 2), (0, 4), (0, 2, 4)}),
        ("terminal", {(0,), (0, 2), (0, 4)}),
    ],
)
def test_the_images_of_these_tests_take_every_path_there_is(outcomes, name, paths):
    assert {tuple(outcome.path) for outcome in outcomes[name]} == paths


def test_an_expert_that_answers_alone_is_not_touched(model, batch):
    """No mixing: logits are the expert's own, bit for bit."""
    out = model(batch, operating_point="paper")
    for expert in (0, 1, 3):
        rows = (out.expert_indices == expert).nonzero().squeeze(1)
        assert torch.equal(out.logits[rows], model.experts[expert](batch[rows])[0])


# From thresholds, without a search


@pytest.mark.parametrize(
    "thresholds",
    [0.6, [0.6, 0.6], (0.4, 0.9), 0, 1, [1.0, 0.0], np.float32(0.6), np.array([0.4, 0.9]), torch.tensor([0.6, 0.6])],
    ids=str,
)
def test_thresholds_make_a_confidence_cascade(folders, batch, alone, thresholds):
    model = PertinenceForImageClassification.from_experts([folders[1], folders[4], folders[0]], thresholds)
    values = np.broadcast_to(np.asarray(thresholds), 2).tolist()
    out = model(batch)
    for image, answers_of_five in enumerate(alone):
        answers = [answers_of_five[expert] for expert in (0, 1, 4)]
        confidence = [logits.softmax(-1).max() for logits, _ in answers]
        last = next(expert for expert, least in enumerate([*values, 0]) if confidence[expert] >= least)
        assert out.expert_indices[image] == last
        assert out.experts_run[image].tolist() == [expert <= last for expert in range(3)]
        torch.testing.assert_close(out.logits[image], answers[last][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "thresholds",
    [[], [0.5], [0.5, 0.5, 0.5], 1.1, -0.1, [0.5, 2.0], float("nan"), [0.5, float("nan")], [[0.5, 0.5]], "half", None],
    ids=str,
)
def test_thresholds_that_do_not_fit_are_refused(folders, thresholds):
    with pytest.raises(PertinenceError, match="3 experts take 2 thresholds between 0 and 1, one for each"):
        PertinenceForImageClassification.from_experts(folders[:3], thresholds)


# What goes in


@pytest.fixture(scope="module")
def ragged(images) -> list[torch.Tensor]:
    """Images of three sizes, mixed."""
    return [images(1, size, seed=seed)[0] for seed, size in enumerate([40, 64, 40, 90, 64, 40])]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda images: {"images": images},
        lambda images: {"images": tuple(images)},
        lambda images: {"images": [[image] for image in images]},
        lambda images: {"images": [images[:2], images[2:]]},
        lambda images: {"pixel_values": images},
        lambda images: {"images": [image / 255 for image in images]},
        lambda images: PertinenceImageProcessor()([as_pil(image) for image in images], return_tensors="pt"),
    ],
    ids=["list", "tuple", "nested", "nested-unevenly", "pixel_values", "float", "processor"],
)
def test_images_of_several_sizes_answer_as_each_does_alone(model, ragged, prepare):
    out = model(**prepare(ragged))
    expected = torch.cat([model(image[None]).logits for image in ragged])
    torch.testing.assert_close(out.logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "prepare",
    [
        list,
        lambda batch: [[image] for image in batch],
        lambda batch: batch / 255,
        lambda batch: batch.double() / 255,
        lambda batch: (batch / 255).half(),
        lambda batch: batch.contiguous(memory_format=torch.channels_last),
    ],
    ids=["list", "nested", "float32", "float64", "float16", "channels-last"],
)
def test_a_batch_is_the_same_in_every_form(model, batch, prepare):
    assert_same(model(prepare(batch)), model(batch), tolerance=1e-5)


WRONG = {
    "empty batch": (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "at least one image"),
    "empty list": ([], "at least one image"),
    "list of empty lists": ([[], []], "at least one image"),
    "normalised": (torch.randn(2, 3, 8, 8), r"float images must lie in \[0, 1\].*every expert normalises them itself"),
    "normalised list": ([torch.randn(3, 8, 8)], r"float images must lie in \[0, 1\]"),
    "NaN": (torch.full((2, 3, 8, 8), torch.nan), r"float images must lie in \[0, 1\]"),
    "integers": (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "must be uint8, or float"),
    "one image": (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(B, 3, H, W\), got shape \(3, 8, 8\)"),
    "grey": (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(B, 3, H, W\), got shape \(2, 1, 8, 8\)"),
    "channels last": (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"\(B, 3, H, W\), got shape \(2, 8, 8, 3\)"),
    "list of grey": ([torch.zeros(1, 8, 8, dtype=torch.uint8)], r"\(3, H, W\), got \(1, 8, 8\)"),
    "list of batches": ([torch.zeros(1, 3, 8, 8, dtype=torch.uint8)], r"\(3, H, W\), got \(1, 3, 8, 8\)"),
    "no pixels": (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), r"\(2, 3, 0, 8\)"),
    "list without pixels": ([torch.zeros(3, 8, 0, dtype=torch.uint8)], r"\(3, 8, 0\)"),
    "not decoded": ([Image.new("RGB", (8, 8))], "got Image: decode with PertinenceImageProcessor"),
    "numpy": (np.zeros((2, 3, 8, 8), np.uint8), "got ndarray"),
    "text": ("cat.jpg", "got str"),
}


@pytest.mark.parametrize("name", ["images", "pixel_values"])
@pytest.mark.parametrize(("wrong", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_batch_of_images_is_refused(model, wrong, words, name):
    with pytest.raises(PertinenceError, match=words) as refused:
        model(**{name: wrong})
    assert "\n" not in str(refused.value)


def test_images_are_given_once(model, batch):
    for inputs in ({}, {"images": batch, "pixel_values": batch}):
        with pytest.raises(PertinenceError, match="give the images once"):
            model(**inputs)


def test_a_model_without_experts_says_so(saved, batch):
    model = PertinenceForImageClassification(PertinenceConfig.from_pretrained(saved))
    with pytest.raises(PertinenceError, match="no experts yet: load it with from_pretrained"):
        model(batch)


def test_an_unknown_operating_point_is_refused(model, batch):
    with pytest.raises(PertinenceError, match="no operating point 'free'; this model has: smallest, paper, cascade"):
        model(batch, operating_point="free")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_expert_that_answers_no_numbers_is_named(own_model, batch, value):
    own_model.experts[2].model.timm_model.get_classifier().bias.fill_(value)
    with pytest.raises(PertinenceError, match="expert 'test_efficientnet' answers with NaN or infinite scores"):
        own_model(batch)
    assert torch.isfinite(own_model(batch, operating_point="paper").logits).all()
    own_model.experts[0].model.timm_model.get_classifier().bias.fill_(value)
    with pytest.raises(PertinenceError, match="answers with NaN or infinite scores"):
        own_model(batch[:1], operating_point="smallest")


# What comes out


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_batch_first(model, batch, name):
    out = model(batch[:7], operating_point=name)
    assert isinstance(out, PertinenceOutput)
    assert {field: (tuple(tensor.shape), tensor.dtype) for field, tensor in out.items()} == {
        "logits": ((7, 10), torch.float32),
        "expert_indices": ((7,), torch.int64),
        "experts_run": ((7, 5), torch.bool),
        "gmacs": ((7,), torch.float32),
        "dispatcher_logits": ((7, len(model.front.find(name).decisions), 5), torch.float32),
        "abstained": ((7,), torch.bool),
    }


def test_labels_add_the_cross_entropy(model, batch):
    labels = torch.arange(len(batch)) % 10
    out = model(batch, labels=labels)
    assert set(out) == FIELDS | {"loss"}
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits, labels))


@pytest.mark.parametrize("labels", [None, torch.tensor([1, 2, 3])], ids=["plain", "labelled"])
def test_a_plain_tuple_holds_the_same(model, batch, labels):
    out = model(batch[:3], labels=labels)
    plain = model(batch[:3], labels=labels, return_dict=False)
    assert type(plain) is tuple
    for actual, expected in zip(plain, out.values(), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)
    model.config.return_dict = False
    try:
        assert type(model(batch[:3])) is tuple
        assert not isinstance(model(batch[:3], return_dict=True), tuple)
    finally:
        model.config.return_dict = True


def margins(scores: torch.Tensor) -> torch.Tensor:
    """How clear the closest decision of each image was, from (B, stages, N)."""
    best = scores.nan_to_num(nan=-1e9).topk(2).values
    reached = ~scores.isnan().all(-1)
    return torch.where(reached, best[..., 0] - best[..., 1], torch.inf).amin(1)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_batch_answers_as_its_images_do_one_by_one(model, batch, name):
    together = model(batch, operating_point=name)
    single = [model(image[None], operating_point=name) for image in batch]
    clear = margins(together.dispatcher_logits) > 1e-4
    assert clear.sum() > len(batch) / 2
    for field in FIELDS:
        one_by_one = torch.cat([out[field] for out in single])
        torch.testing.assert_close(together[field][clear], one_by_one[clear], atol=1e-4, rtol=0, equal_nan=True)


def test_the_order_of_a_batch_does_not_matter(model, batch):
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    shuffled, out = model(batch[order]), model(batch)
    assert_same(shuffled, PertinenceOutput(**{field: tensor[order] for field, tensor in out.items()}), tolerance=1e-4)


# What it is set to


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ({"gmacs": 1.0}, "smallest"),
        ({"gmacs": 2.5}, "paper"),
        ({"gmacs": 9.9}, "cascade"),
        ({"accuracy": 0.8}, "smallest"),
        ({"accuracy": 0.86}, "cascade"),
        ({"operating_point": "terminal"}, "terminal"),
        ({"operating_point": "fastest"}, "smallest"),
        ({"operating_point": "most-accurate"}, "cascade"),
    ],
    ids=str,
)
def test_a_budget_chooses_for_the_calls_to_come(composed, batch, budget, name):
    composed.set_budget(operating_point="own-answers")
    assert composed.set_budget(**budget).name == name
    assert_same(composed(batch), composed(batch, operating_point=name))


def test_a_loss_is_allowed_against_the_reference_expert(composed):
    with pytest.raises(PertinenceError, match="the experts were not measured"):
        composed.set_budget(max_accuracy_loss=0.01)
    composed.config.experts[-1]["select"] = measured(0.90, 10.0).to_dict()
    assert composed.set_budget(max_accuracy_loss=0.1).name == "smallest"
    assert composed.set_budget(max_accuracy_loss=0.0).name == "cascade"
    with pytest.raises(PertinenceError, match="accuracy of 1 on the search images"):
        composed.set_budget(max_accuracy_loss=-0.1)
    for other in ({"accuracy": 0.9}, {"gmacs": 5.0}):
        with pytest.raises(PertinenceError, match="give one budget at most, got max_accuracy_loss and"):
            composed.set_budget(max_accuracy_loss=0.1, **other)


def test_a_share_of_the_cost_of_the_reference_expert_is_saved(composed):
    with pytest.raises(PertinenceError, match=r"saving=50 is out of range, .*: 50 % is 0\.5"):
        composed.set_budget(saving=50)
    with pytest.raises(PertinenceError, match="the experts were not measured"):
        composed.set_budget(saving=0.5)
    composed.config.experts[-1]["select"] = measured(0.90, 10.0).to_dict()
    for saving in (0, 0.5, 0.8):
        chosen = composed.set_budget(saving=saving)
        within = [point for point in composed.front if point.select and point.select.gmacs <= 10 * (1 - saving)]
        assert chosen.select.accuracy == max(point.select.accuracy for point in within)
        assert composed.config.operating_point == chosen.name
    with pytest.raises(PertinenceError, match="no operating point saves 99 % of the reference expert's cost"):
        composed.set_budget(saving=0.99)
    with pytest.raises(PertinenceError, match="give one budget at most, got max_accuracy_loss and saving"):
        composed.set_budget(saving=0.5, max_accuracy_loss=0.1)


def test_the_reference_expert_need_not_be_the_last(composed, tmp_path):
    composed.config.experts[0]["select"] = measured(0.85, 1.0).to_dict()
    composed.config.experts[-1]["select"] = measured(0.7, 10.0).to_dict()
    assert composed.set_budget(max_accuracy_loss=0.0).name == "smallest", "of the last expert, as none is named"
    composed.config.reference, composed.config.format_version = 0, 2
    assert composed.set_budget(max_accuracy_loss=0.0).name != "smallest"
    composed.save_pretrained(tmp_path)
    assert load(tmp_path).config.reference_index == 0
    composed.config.reference = 7
    with pytest.raises(PertinenceError, match="reference=7 is not the index of an expert, expected 0 to "):
        composed.config.check()


def test_saving_keeps_the_choice(composed, batch, tmp_path):
    composed.set_budget(gmacs=2.0)
    composed.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.operating_point == "paper"
    assert_same(again(batch), composed(batch, operating_point="paper"))


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"gmacs": 0.5}, "at most 0.5 GMACs on the search images; the cheapest, 'smallest', costs 1$"),
        ({"accuracy": 0.99}, "accuracy of 0.99 on the search images; the best, 'cascade', reaches 0.95"),
        ({"operating_point": "free"}, "no operating point 'free'"),
        ({}, "exactly one of"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_met_changes_nothing(model, budget, words):
    with pytest.raises(PertinenceError, match=words):
        model.set_budget(**budget)
    assert model.config.operating_point == "cascade"


def test_an_operating_point_of_one_call_leaves_the_model_as_it_is(model, saved, batch):
    before = model.config.to_dict()
    chosen = model(batch, operating_point="smallest")
    assert chosen.expert_indices.tolist() == [0] * len(batch)
    assert model.config.to_dict() == before
    assert_same(model(batch), load(saved)(batch))


def test_calls_from_several_threads_do_not_disturb_each_other(model, batch):
    expected = {name: model(batch, operating_point=name) for name in NAMES}
    names = NAMES * 2
    with ThreadPoolExecutor(4) as threads:
        for name, out in zip(names, threads.map(lambda n: model(batch, operating_point=n), names), strict=True):
            assert_same(out, expected[name])


def test_the_front_prints_as_a_table(model):
    words = [*NAMES, "accuracy", "GMACs", "95.00 %", "94.00 .. 96.00"]
    assert all(word in str(model.front) for word in words)
    assert all(word in repr(model.front) for word in [*words, *ARCHITECTURES])


# As transformers handles models


def test_experts_stay_frozen_and_in_evaluation_mode(own_model, batch):
    expected = own_model(batch)
    own_model.train()
    assert not any(module.training for module in own_model.experts.modules() if module is not own_model.experts)
    assert not any(parameter.requires_grad for parameter in own_model.experts.parameters())
    assert_same(own_model(batch), expected)


def test_the_trainer_evaluates_it(own_model, batch, tmp_path):
    """And `compute_metrics` is given the logits alone."""
    rows = [{"image": as_pil(image), "label": index % 10} for index, image in enumerate(batch)]
    dataset = Dataset.from_list(rows, features=Features({"image": ImageColumn(), "label": Value("int64")}))
    processor = PertinenceImageProcessor()
    given: list[EvalPrediction] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = processor([row["image"] for row in rows], return_tensors="pt")
        return {**inputs, "labels": torch.tensor([row["label"] for row in rows])}

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        given.append(prediction)
        return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean().item()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=20,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(own_model, arguments, collate, eval_dataset=dataset, compute_metrics=metrics)
    figures = trainer.evaluate()
    labels = torch.tensor(dataset["label"][:])
    out = own_model(batch, labels=labels)
    np.testing.assert_allclose(given[0].predictions, out.logits.numpy(), atol=1e-4)
    assert figures["eval_accuracy"] == pytest.approx((out.logits.argmax(-1) == labels).float().mean().item())
    assert figures["eval_loss"] == pytest.approx(out.loss.item(), abs=1e-4)


# Saved and loaded


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 100}], ids=["whole", "shards"])
@pytest.mark.parametrize("from_hub", [False, True])
def test_a_variant_comes_back(folders, batch, hub, tmp_path, options, from_hub):
    model = PertinenceForImageClassification.from_experts(folders[:3], 0.6)
    model.save_pretrained(tmp_path, variant="v1", save_experts=True, **options)
    assert not (tmp_path / "model.safetensors").exists()
    source = f"tester/variant-{len(options)}"
    if from_hub:
        hub.add_model(source, tmp_path)
    again = load(source if from_hub else tmp_path, variant="v1")
    assert torch.equal(again(batch).logits, model(batch).logits)


def test_it_comes_back_bit_for_bit(composed, batch, tmp_path):
    composed.save_pretrained(tmp_path)
    again = load(tmp_path)
    for name in NAMES:
        assert_same(again(batch, operating_point=name), composed(batch, operating_point=name))


def test_its_weights_are_the_heads_alone(model, saved, tmp_path):
    model.save_pretrained(tmp_path)
    expected = load_file(saved / "model.safetensors")
    actual = load_file(tmp_path / "model.safetensors")
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_saving_again_writes_the_same_bytes(model, tmp_path):
    model.save_pretrained(tmp_path / "first")
    load(tmp_path / "first").save_pretrained(tmp_path / "second")
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")]
    assert set(written[0]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert written[0] == written[1]


def test_auto_classes_find_everything(model, saved, batch):
    assert type(AutoConfig.from_pretrained(saved)) is PertinenceConfig
    assert type(AutoImageProcessor.from_pretrained(saved)) is PertinenceImageProcessor
    found = AutoModelForImageClassification.from_pretrained(saved)
    assert type(found) is PertinenceForImageClassification
    assert_same(found(batch), model(batch))


def test_it_loads_onto_a_device(model, saved, batch):
    placed = load(saved, device_map="cpu")
    assert placed.device == torch.device("cpu")
    assert_same(placed(batch), model(batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"], ids=str)
def test_in_bfloat16_the_dispatcher_stays_exact(model, saved, batch, dtype):
    half = load(saved, dtype=dtype)
    assert half.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.experts.parameters()} == {torch.bfloat16}
    assert_same_dispatcher(half, model)
    out = half(batch, operating_point="smallest")
    assert out.logits.dtype == torch.float32
    torch.testing.assert_close(out.logits, model(batch, operating_point="smallest").logits, atol=0.3, rtol=0.1)


def test_cast_to_bfloat16_the_dispatcher_stays_exact(model, own_model):
    own_model.to(torch.bfloat16)
    assert own_model.dtype == torch.bfloat16
    assert_same_dispatcher(own_model, model)


def assert_same_dispatcher(actual: nn.Module, expected: nn.Module) -> None:
    tensors, others = actual.dispatcher.state_dict(), expected.dispatcher.state_dict()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert set(tensors) == set(others)
    assert all(torch.equal(tensors[name], others[name]) for name in others)


def test_the_operating_point_can_be_chosen_on_loading(model, saved, batch):
    chosen = load(saved, operating_point="paper")
    assert chosen.config.operating_point == "paper"
    assert_same(chosen(batch), model(batch, operating_point="paper"))


def test_preprocessing_can_be_chosen_on_loading(model, saved, batch):
    fast = load(saved, preprocessing="fast")
    assert fast.config.preprocessing == "fast"
    exact_logits, fast_logits = (one(batch, operating_point="smallest").logits for one in (model, fast))
    assert not torch.equal(exact_logits, fast_logits)
    torch.testing.assert_close(fast_logits, exact_logits, atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"operating_point": "free"}, "no operating point 'free'"),
        ({"preprocessing": "slow"}, "preprocessing='slow' is not one of 'exact', 'fast'"),
    ],
    ids=str,
)
def test_an_unknown_choice_on_loading_is_refused(saved, option, words):
    with pytest.raises(PertinenceError, match=words):
        load(saved, **option)


def test_a_front_of_single_experts_is_saved_and_loaded(pool, batch, tmp_path):
    points = [OperatingPoint(f"static-{index}", "static", (index,)) for index in range(len(pool))]
    front = Front(points, [expert.entry.name for expert in pool])
    PertinenceForImageClassification.compose(pool, front, {}, "static-3").save_pretrained(tmp_path)
    model = load(tmp_path)
    assert torch.equal(model(batch).logits, pool[3](batch)[0])
    assert torch.equal(model(batch, operating_point="fastest").logits, pool[0](batch)[0])


def test_without_a_default_the_last_operating_point_is_used(changed, model, batch):
    assert_same(load(changed(["operating_point"], None))(batch), model(batch, operating_point="terminal"))


# Files of other versions, and damaged ones


def test_a_newer_format_warns_and_loads(changed, model, batch, caplog):
    newer = load(changed(["format_version"], 3))
    assert "format version 3, newer than 2" in caplog.text
    assert_same(newer(batch), model(batch))


@pytest.mark.parametrize(
    "path",
    [["new"], ["experts", 3, "new"], ["front", 2, "new"], ["front", 2, "stages", 1, "x"], ["front", 0, "select", "x"]],
    ids=str,
)
def test_an_unknown_key_does_no_harm(changed, model, batch, path):
    assert_same(load(changed(path, {"a": 1}))(batch), model(batch))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["experts"], None),
        (["experts", 1], {}),
        (["experts", 1, "repo_id"], None),
        (["experts", 1, "transform"], None),
        (["experts", 1, "transform"], "resize"),
        (["experts", 1, "transform"], {}),
        (["experts", 1, "transform", "rotate"], 90),
        (["experts", 1, "transform", "library"], "opencv"),
        (["experts", 1, "transform", "interpolation"], "nearby"),
        (["experts", 1, "label_map"], list(range(100, 110))),
        (["experts", 1, "label_map"], [0, 1]),
        (["front"], None),
        (["front", 1], {}),
        (["front", 2, "members"], [0, 2, 5]),
        (["front", 2, "stages", 0, "evidence"], "pixels"),
        (["id2label"], {"0": "cat", "1": "dog"}),
    ],
    ids=str,
)
def test_a_malformed_config_is_refused(changed, path, value):
    with pytest.raises(PertinenceError):
        load(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["front", 2, "stages", 0, "evidence"], "both"),
        (["front", 0], replace(POINTS[2], name="another").to_dict()),
        (["experts", 2, "features"], 7),
    ],
    ids=["another-stage", "another-point", "another-width"],
)
def test_heads_that_do_not_fit_the_front_are_refused(changed, path, value):
    """Rather than filled in with zeros, which would decide something that nobody measured."""
    with pytest.raises(PertinenceError):
        load(changed(path, value))


def test_a_model_file_that_is_damaged_is_refused(changed):
    folder = changed(["new"], 1)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)safetensors|header|metadata"):
        load(folder)


# In a fresh process


@pytest.fixture(scope="module")
def imported(saved) -> dict[str, set[str]]:
    """Which heavy packages are there after importing this one, and after running a saved model."""
    script = """if True:
        import json, sys
        heavy = ("pymoo", "fvcore", "datasets", "timm")
        import pertinence
        after_import = [name for name in heavy if name in sys.modules]
        import torch
        model = pertinence.PertinenceForImageClassification.from_pretrained(sys.argv[1])
        model(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
        after_run = [name for name in heavy if name in sys.modules]
        print(json.dumps({"import": after_import, "run": after_run}))
    """
    run = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {moment: set(names) for moment, names in json.loads(run.stdout.splitlines()[-1]).items()}


def test_importing_takes_nothing_heavy_along(imported):
    assert imported["import"] == set()


def test_running_a_model_needs_nothing_of_the_search(imported):
    assert imported["run"] & {"pymoo", "fvcore", "datasets"} == set()


def test_a_copy_of_a_model_answers_as_the_model(tiny_experts, images):
    model = PertinenceForImageClassification.from_experts(tiny_experts, 0.5)
    batch = images(6, 64)
    assert torch.equal(copy.deepcopy(model)(batch).logits, model(batch).logits)


def test_another_network_in_the_place_of_an_expert_is_refused(tiny_experts, make_expert, tmp_path):
    PertinenceForImageClassification.from_experts(tiny_experts, 0.5).save_pretrained(tmp_path / "model")
    other = make_expert(tmp_path / "other", "test_resnet")
    with pytest.raises(PertinenceError, match="it is another network"):
        PertinenceForImageClassification.from_pretrained(tmp_path / "model", expert_paths={"vit": other})


def test_every_expert_is_loaded_in_the_dtype_that_it_was_measured_in(make_expert, tmp_path, images):
    folders = [make_expert(tmp_path / name, size=size) for name, size in (("small", 32), ("large", 64))]
    half = AutoModelForImageClassification.from_pretrained(folders[0], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    model = PertinenceForImageClassification.from_experts([tmp_path / "half", folders[1]], thresholds=0.5)
    dtypes = [torch.bfloat16, torch.float32]
    assert [expert.model.dtype for expert in model.experts] == dtypes
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert [expert.model.dtype for expert in again.experts] == dtypes
    batch = images(4, 40)
    assert torch.equal(again(batch).logits, model(batch).logits)
    asked = load(tmp_path / "model", dtype=torch.float32)
    assert [expert.model.dtype for expert in asked.experts] == [torch.float32] * 2
    as_it_was_called = load(tmp_path / "model", torch_dtype=torch.float32)
    assert [expert.model.dtype for expert in as_it_was_called.experts] == [torch.float32] * 2


def test_every_expert_attends_in_its_own_way_unless_told_otherwise(tmp_path, images):
    """A ViT in torch's fused attention beside a CNN that knows none."""
    options = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    vit = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=5, **options))
    cnn = ResNetForImageClassification(
        ResNetConfig(hidden_sizes=[64, 128], depths=[1, 1], embedding_size=32, num_labels=5)
    )
    for name, model in (("vit", vit), ("cnn", cnn)):
        model.save_pretrained(tmp_path / name)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
    model = PertinenceForImageClassification.from_experts([tmp_path / "vit", tmp_path / "cnn"], thresholds=1.0)
    model.save_pretrained(tmp_path / "model")

    def ways(**options):
        loaded = load(tmp_path / "model", **options)
        found = {expert.entry.name: expert.model.config._attn_implementation for expert in loaded.experts}
        return loaded, found

    own, found = ways()
    assert found == {"vit": "sdpa", "cnn": "eager"}
    assert ways(attn_implementation="sdpa")[1] == found
    eager, found = ways(attn_implementation="eager")
    assert found == {"vit": "eager", "cnn": "eager"}
    batch = images(4, 40)
    torch.testing.assert_close(eager(batch).logits, own(batch).logits, atol=1e-5, rtol=0)
    with pytest.raises(PertinenceError, match="expert 'vit'.*no_such_way"):
        ways(attn_implementation="no_such_way")
