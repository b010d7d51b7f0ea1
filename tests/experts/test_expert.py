"""Experts: image classifiers of any kind, from anywhere, which answer inside a pool exactly as they do alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import transformers
from datasets import load_dataset
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions


LABELS = [f"digit {index}" for index in range(10)]
ROTATED = LABELS[3:] + LABELS[:3]
NUM_LABELS = 7
VIT = {"patch_size": 8, "hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 192}
LEVIT = {"hidden_sizes": [64, 96, 128], "depths": [1] * 3, "num_attention_heads": [2] * 3, "key_dim": [8] * 3}
PHOTO_SIZES = [(501, 375), (333, 500), (97, 61), (73, 73), (31, 300), (32, 32), (97, 61), (640, 480), (73, 73)]


def cascade(experts: Iterable[Any], threshold: float = 0.5, **options: Any) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_experts(list(experts), threshold, **options)


def load(folder: Path | str, **options: Any) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(folder, **options)


def refusal(experts: Iterable[Any], **options: Any) -> str:
    """The one line that says why these experts do not make a pool."""
    with pytest.raises(PertinenceError) as refused:
        cascade(experts, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def assert_same_logits(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Equal but for `tolerance` of how far the logits of different images lie apart."""
    spread = expected.std(0).mean().item()
    assert spread > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * spread)


def as_pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]


def copy_folder(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    return target


# Loaded classifiers, made on the spot

Loaded = tuple[PreTrainedModel, Any]
"""A model and its image processor."""


def timm_model(architecture: str, size: int = 64, num_labels: int = NUM_LABELS, **model_args: Any) -> Loaded:
    config = transformers.TimmWrapperConfig(
        architecture=architecture,
        num_labels=num_labels,
        model_args=model_args,
        pretrained_cfg=timm_transform(input_size=[3, size, size]),
    )
    processor = transformers.TimmWrapperImageProcessor(config.pretrained_cfg, architecture=architecture)
    return with_statistics(transformers.TimmWrapperForImageClassification(config), size), processor


def timm_transform(**values: Any) -> dict[str, Any]:
    return {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", **values}


def native_model(name: str, processor: Any = None, size: int = 32, **config: Any) -> Loaded:
    model_class = getattr(transformers, f"{name}ForImageClassification")
    model = model_class(model_class.config_class(**{"num_labels": NUM_LABELS, **config}))
    processor = processor or ViTImageProcessor(size={"height": size, "width": size})
    return with_statistics(model, size), processor


def with_statistics(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """Batch normalisation with the statistics of some images, without which random layers answer all images alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(pixel_values=torch.rand(8, 3, size, size) * 2 - 1)
    return model.eval()


def loaded(model: PreTrainedModel, processor: Any) -> dict[str, Any]:
    return {"model": model, "processor": processor}


@torch.no_grad()
def answers_alone(model: PreTrainedModel, processor: Any, photos: Sequence[Image.Image]) -> torch.Tensor:
    """What an expert says in a pipeline of its own, image by image."""
    return torch.cat([model(**processor(photo, return_tensors="pt")).logits for photo in photos])


def folder_alone(folder: Path, photos: Sequence[Image.Image], **options: Any) -> torch.Tensor:
    """The same of an expert that lies in a folder."""
    model = AutoModelForImageClassification.from_pretrained(folder, **options)
    return answers_alone(model, AutoImageProcessor.from_pretrained(folder), photos)


# Evidence: whatever the architecture, its own logits, and what its last layer reads


@dataclass(frozen=True)
class Architecture:
    """A classifier small enough for a test.

    Attributes:
        name: what pytest calls it.
        last: path of its final layer, found by reading its code.
        make: makes it.
        one_head: whether the final layer alone gives the logits; the answers of two heads are put together.
    """

    name: str
    last: str
    make: Callable[[], Loaded]
    one_head: bool = True


def in_timm(last: str, name: str, one_head: bool = True, **options: Any) -> Architecture:
    return Architecture(f"timm-{name}", f"timm_model.{last}", partial(timm_model, name, **options), one_head)


def in_transformers(last: str, name: str, **options: Any) -> Architecture:
    return Architecture(name, last, partial(native_model, name, **options))


ARCHITECTURES = [
    in_timm("fc", "test_resnet"),
    in_timm("head", "test_vit", img_size=64),
    in_timm("head.fc", "test_convnext"),
    in_timm("classifier", "test_efficientnet"),
    in_timm("classifier", "mobilenetv3_large_100"),
    in_timm("head.fc", "swin_tiny_patch4_window7_224", size=56, img_size=56, depths=(1, 1), num_heads=(3, 6)),
    # The final layer is a convolution.
    in_timm("head.fc", "resnetv2_50", layers=(1, 1), channels=(64, 128), stem_chs=32),
    # A head for the class token and one for the distillation token.
    in_timm("head_dist", "deit_tiny_distilled_patch16_224", one_head=False, img_size=64, embed_dim=96, depth=1),
    # Two heads that begin with a normalisation.
    in_timm("head_dist.linear", "levit_128s", one_head=False, img_size=64, depth=(1, 1, 1), key_dim=8),
    # The final layer answers for every token.
    in_timm("aux_head", "volo_d1_224", one_head=False, img_size=64),
    in_transformers("classifier", "ViT", image_size=32, **VIT),
    in_transformers("classifier", "DeiT", image_size=32, **VIT),
    in_transformers("classifier", "Dinov2", image_size=32, **VIT),
    in_transformers("classifier", "Swin", image_size=32, depths=[1, 1], num_heads=[3, 6], window_size=4),
    in_transformers("classifier", "ConvNext", hidden_sizes=[64, 128], depths=[1, 1], num_stages=2),
    in_transformers("classifier.1", "ResNet", hidden_sizes=[64, 128], depths=[1, 1], embedding_size=32),
    in_transformers("classifier", "MobileNetV2", finegrained_output=False, depth_multiplier=1.4),
    in_transformers("classifier.linear", "Levit", size=64, image_size=64, **LEVIT),
]


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def case(request: pytest.FixtureRequest) -> tuple[Architecture, Any, Expert]:
    """An architecture, and of one such model the processor and the expert."""
    torch.manual_seed(0)
    model, processor = request.param.make()
    expert = load_expert(ExpertReference.parse(loaded(model, processor)), LoadOptions())
    return request.param, processor, expert


def test_an_expert_answers_as_its_model_does(case, images):
    _, processor, expert = case
    batch = images(5, 72)
    logits, _ = expert(batch)
    assert logits.shape == (5, NUM_LABELS)
    assert_same_logits(logits, answers_alone(expert.model, processor, as_pil(batch)))


def test_features_are_what_the_final_layer_reads(case, images):
    architecture, _, expert = case
    layer, inputs = expert.model.get_submodule(architecture.last), []
    hook = layer.register_forward_pre_hook(lambda module, positional: inputs.extend(positional))
    logits, features = expert(images(5, 72))
    hook.remove()
    assert features.shape == (5, expert.entry.features)
    torch.testing.assert_close(features, mean_over_positions(inputs[0], layer))
    if architecture.one_head:
        assert_same_logits(nn.functional.linear(features, layer.weight.flatten(1), layer.bias), logits)


def mean_over_positions(features: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


# Cost


def test_gmacs_agree_with_torchs_own_counter(case):
    _, _, expert = case
    image = torch.zeros(1, 3, *expert.preprocess.transform.size)
    # Attention as matrix products, since torch before 2.14 overlooks any other on the CPU.
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        expert.model(pixel_values=image)
    # A multiply-add is two operations for torch and one for fvcore, which counts normalisation and pooling, too.
    assert expert.entry.gmacs == pytest.approx(counter.get_total_flops() / 2e9, rel=0.04)
    assert expert.entry.cost_note is None


def test_gmacs_are_the_known_ones():
    known = {"vit_tiny_patch16_224": 1.258, "resnet50": 4.11}
    pool = cascade(loaded(*timm_model(name, size=224, num_labels=1000)) for name in reversed(known))
    assert [entry["gmacs"] for entry in pool.config.experts] == pytest.approx(list(known.values()), rel=0.01)


# From the Hub


@pytest.fixture(scope="module")
def on_hub(hub, tiny_experts) -> dict[str, str]:
    """The tiny experts as public repositories: the commit of each by its Hub id, in order of cost."""
    return {f"tester/{folder.name}": hub.add_model(f"tester/{folder.name}", folder) for folder in tiny_experts}


def test_experts_from_the_hub_are_pinned_to_their_commits(on_hub, tiny_experts, images):
    pool = cascade(reversed(on_hub))
    assert {entry["repo_id"]: entry["revision"] for entry in pool.config.experts} == on_hub
    assert pool.config.expert_names == ["vit", "efficientnet"]
    assert_same_logits(pool(images(8, 120)).logits, cascade(tiny_experts)(images(8, 120)).logits)


def test_a_revision_is_loaded_as_it_was(hub, on_hub, make_expert, tmp_path, images):
    old_folder, new_folder = (make_expert(tmp_path / name, seed=seed) for name, seed in [("old", 0), ("new", 1)])
    old = hub.add_model("tester/changing", old_folder)
    huggingface_hub.HfApi(token=hub.token).create_tag("tester/changing", tag="v1")
    cascade(["tester/changing", *on_hub]).save_pretrained(tmp_path / "model")
    new = hub.add_model("tester/changing", new_folder)

    def check(pool: PertinenceForImageClassification, commit: str, folder: Path) -> None:
        index = pool.config.expert_names.index("changing")
        assert pool.config.experts[index]["revision"] == commit
        alone = folder_alone(folder, as_pil(images(8, 64)))
        assert_same_logits(pool.experts[index](images(8, 64))[0], alone)

    check(cascade([f"tester/changing@{old}", *on_hub]), old, old_folder)
    check(cascade(["tester/changing@v1", *on_hub]), old, old_folder)
    check(cascade(["tester/changing", *on_hub]), new, new_folder)
    check(load(tmp_path / "model"), old, old_folder)


def test_a_folder_of_the_same_name_is_not_mistaken_for_the_hub(
    on_hub, tiny_experts, make_expert, tmp_path, monkeypatch, images
):
    cascade(on_hub).save_pretrained(tmp_path / "model")
    make_expert(tmp_path / "tester" / "vit", "test_vit", 96, seed=1, model_args={"img_size": 96})
    monkeypatch.chdir(tmp_path)
    assert_same_logits(load("model")(images(8, 120)).logits, cascade(tiny_experts)(images(8, 120)).logits)


@pytest.mark.parametrize("options", [{"local_files_only": True}, {}], ids=["local-files-only", "offline"])
def test_what_is_cached_needs_no_request(hub, on_hub, tmp_path, monkeypatch, images, options):
    pool = cascade(on_hub)
    pool.save_pretrained(tmp_path)
    if not options:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    again, reloaded = cascade(on_hub, **options), load(tmp_path, **options)
    assert hub.requests == []
    for model in (again, reloaded):
        assert {entry["repo_id"]: entry["revision"] for entry in model.config.experts} == on_hub
        assert_same_logits(model(images(8, 120)).logits, pool(images(8, 120)).logits)


def test_the_token_reaches_a_private_expert(hub, on_hub, make_expert, tmp_path):
    hub.add_model("tester/private", make_expert(tmp_path / "expert"), private=True)
    pool = cascade(["tester/private", "tester/vit"], token=hub.token)
    assert "private" in pool.config.expert_names
    pool.save_pretrained(tmp_path / "model")
    assert hub.token not in (tmp_path / "model" / "config.json").read_text()
    empty = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(PertinenceError, match="'private'.*pass a token"):
        load(tmp_path / "model", **empty)
    assert "private" in load(tmp_path / "model", token=hub.token, **empty).config.expert_names


# What cannot be loaded is refused in one sentence that names it


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("tester/nowhere", "'nowhere'.*neither a local folder nor a repository on the Hub.*check the name"),
        ("nowhere", "'nowhere'.*neither a local folder nor a repository on the Hub"),
        ("tester/vit@v9", "'vit'.*no revision 'v9'"),
        (f"tester/vit@{'0' * 40}", "'vit'.*no revision '0{40}'"),
        ("tester/secret", "'secret'.*pass a token if it is private"),
        ("tester/gated", "'gated'.*is gated.*ask for access"),
        (
            "tester/a/b",
            "'tester/a/b': there is no folder tester/a/b here, and no repository on the Hub can have this name",
        ),
        ("./nowhere", "'./nowhere': there is no folder ./nowhere here, and no repository"),
        ("~/nowhere", "'~/nowhere': there is no folder ~/nowhere here, and no repository"),
        ("/nowhere/at/all", "there is no folder /nowhere/at/all here, and no repository"),
        (Path("nowhere"), "'nowhere'.*no such folder"),
        ("", "Hub id, a local folder, a mapping or a loaded model"),
        (7, "Hub id, a local folder, a mapping or a loaded model, got int"),
        ({"repo": "tester/vit"}, "mapping is not understood.*repo.*known keys: repo_id, revision"),
        ({"name": "vit"}, "needs either `repo_id` or `model`"),
    ],
    ids=str,
)
def test_a_reference_that_leads_nowhere(hub, on_hub, tiny_experts, reference, words):
    hub.add_model("tester/secret", tiny_experts[0], private=True)
    hub.add_model("tester/gated", tiny_experts[0], gated=True)
    assert re.search(words, refusal([reference, "tester/efficientnet"]))


def test_a_folder_without_a_config(tmp_path, tiny_experts):
    message = refusal([tmp_path, tiny_experts[0]])
    assert re.search(f"{tmp_path.name!r}.*{tmp_path} has no config.json", message)


def test_a_repository_without_a_config(hub, tiny_experts, tmp_path):
    (tmp_path / "README.md").write_text("Nothing but a card.")
    hub.add_model("tester/card", tmp_path)
    assert re.search("'card'.*tester/card.*config.json", refusal(["tester/card", tiny_experts[0]]))


def test_weights_that_do_not_fit_the_config(tiny_experts, tmp_path):
    folder = copy_folder(tiny_experts[0], tmp_path / "misfit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_classes": 12, "label_names": None}))
    message = refusal([folder, tiny_experts[1]])
    assert re.search("'misfit'.*(shape|size)", message)
    assert "ignore_mismatched_sizes" not in message


def test_damaged_weights(tiny_experts, tmp_path):
    folder = copy_folder(tiny_experts[0], tmp_path / "damaged")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert re.search(f"'damaged': {folder}/model.safetensors is damaged", refusal([folder, tiny_experts[1]]))


@pytest.mark.parametrize("experts", ["tester/vit", Path("vit")], ids=repr)
def test_experts_come_as_a_list(experts):
    with pytest.raises(PertinenceError, match="list"):
        PertinenceForImageClassification.from_experts(experts, thresholds=0.5)


def test_an_unknown_option_of_loading(tiny_experts):
    assert re.search("dytpe.*experts are loaded with: dtype", refusal(tiny_experts, dytpe="bfloat16"))


def test_a_backbone_without_a_head(tmp_path, tiny_experts):
    transformers.ViTModel(transformers.ViTConfig(image_size=32, **VIT)).save_pretrained(tmp_path / "backbone")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "backbone")
    message = refusal([tmp_path / "backbone", tiny_experts[0]])
    assert re.search(r"'backbone' lacks weights \(classifier.*without a trained classification head", message)


def test_a_timm_backbone_without_a_head(tmp_path, tiny_experts):
    backbone = timm.create_model("test_convnext", num_classes=0)
    timm.models.save_for_hf(backbone, tmp_path / "backbone", safe_serialization=True)
    message = refusal([tmp_path / "backbone", tiny_experts[0]])
    assert re.search("'backbone'.*without a trained classification head", message)


class TouchOnLoad:
    """Unpickling one creates a file: so does code that somebody hides in a checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_pickle_is_never_opened(hub, tiny_experts, tmp_path, place):
    folder = copy_folder(tiny_experts[0], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"head.weight": TouchOnLoad(tmp_path / "opened")}, folder / "pytorch_model.bin")
    if place == "hub":
        hub.add_model("tester/pickled", folder)
    message = refusal([folder if place == "folder" else "tester/pickled", tiny_experts[1]])
    assert re.search("'pickled'.*safetensors", message)
    assert "use_safetensors" not in message  # which the user did not set
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_code_runs_only_where_it_is_trusted(hub, zoo, tmp_path, monkeypatch, place):
    folder = copy_folder(zoo / "cifar10" / "resnet8", tmp_path / f"coded-{place}")
    with (folder / "configuration_cifar_resnet.py").open("a") as code:
        code.write(f"\n\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    coded, other = folder, zoo / "cifar10" / "resnet20"
    if place == "hub":
        hub.add_model(coded := f"tester/{folder.name}", folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))

    message = refusal([coded, other])
    assert re.search(f"{folder.name!r} needs code of its own from .*{folder.name}.*trust_remote_code=True", message)
    assert not (tmp_path / "ran").exists()

    pool = cascade([coded, other], trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    pool.save_pretrained(tmp_path / "saved", save_experts=True)
    with pytest.raises(PertinenceError, match=f"{folder.name!r} needs code of its own"):
        load(tmp_path / "saved")
    assert load(tmp_path / "saved", trust_remote_code=True).config.expert_names == pool.config.expert_names


# Label spaces


@pytest.mark.parametrize("larger_first", [False, True])
def test_more_labels_need_a_map(make_expert, tmp_path, images, larger_first):
    ten = make_expert(tmp_path / "ten")
    eleven = make_expert(tmp_path / "eleven", size=96, labels=["background", *LABELS])
    order = -1 if larger_first else 1
    message = refusal([ten, eleven][::order])
    assert re.search("has 10 labels|has 11 labels", message)
    assert re.search("label 0 is '(digit 0|background)' here and '(digit 0|background)' there", message)
    assert "give the one with more labels a `label_map`" in message

    pool = cascade([ten, {"repo_id": str(eleven), "label_map": list(range(1, 11))}][::order])
    assert list(pool.config.id2label.values()) == LABELS
    alone = folder_alone(eleven, as_pil(images(8, 96)))
    assert_same_logits(pool.experts[1](images(8, 96))[0], alone[:, 1:])


@pytest.mark.parametrize("sizes", [(64, 96), (96, 64)], ids=["mapped-is-larger", "mapped-is-smaller"])
def test_another_order_of_the_same_labels_needs_a_map(make_expert, tmp_path, images, sizes):
    plain = make_expert(tmp_path / "plain", size=sizes[0])
    rotated = make_expert(tmp_path / "rotated", size=sizes[1], labels=ROTATED)
    message = refusal([plain, rotated])
    assert "'rotated' has the labels of 'plain' in another order" in message
    assert "label 0 is 'digit 3' here and 'digit 0' there" in message
    proposed = json.loads(re.search(r"give 'rotated' label_map=(\[.*?\])", message)[1])

    alone = folder_alone(rotated, as_pil(images(8, 96)))
    expected = alone[:, [ROTATED.index(label) for label in LABELS]]
    for label_map in (proposed, "by_name"):
        pool = cascade([plain, {"repo_id": str(rotated), "label_map": label_map}])
        index = pool.config.expert_names.index("rotated")
        assert list(pool.config.id2label.values()) == LABELS
        assert_same_logits(pool.experts[index](images(8, 96))[0], expected)


@pytest.mark.parametrize(
    "labels",
    [[f"LABEL_{index}" for index in range(10)], [f"the {label}, a numeral" for label in LABELS], ["crane"] * 10],
    ids=["generic", "spelt-differently", "not-unique"],
)
def test_other_names_pass(make_expert, tmp_path, labels):
    pool = cascade([make_expert(tmp_path / "a"), make_expert(tmp_path / "b", size=96, labels=labels)])
    assert list(pool.config.id2label.values()) == LABELS


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        ([0, 1, 2], "must list 10 different indices from 0 to 9"),
        ([0] * 10, "must list 10 different indices"),
        (list(range(1, 11)), "must list 10 different indices"),
        ("by-name", "must list 10 different indices"),
        ("by_name", "cannot place 10 labels, the first of them 'digit 0'"),
    ],
    ids=str,
)
def test_a_label_map_that_does_not_fit(make_expert, tiny_experts, tmp_path, label_map, words):
    other = make_expert(tmp_path / "other", labels=["crane"] * 10)
    message = refusal([tiny_experts[0], {"repo_id": str(other), "label_map": label_map}])
    assert re.search(words, message)
    assert "'other'" in message


@pytest.mark.parametrize(
    "config",
    [{"problem_type": "multi_label_classification"}, {"problem_type": "regression"}, {"num_labels": 1}],
    ids=str,
)
def test_other_problems_are_refused(tiny_experts, config):
    model = native_model("ViT", image_size=32, **VIT, **config)
    message = refusal([loaded(*model), tiny_experts[0]])
    assert re.search("'ViTForImageClassification' is not a single-label classifier", message)


def test_labels_that_do_not_count_from_zero_are_refused(tiny_experts, tmp_path):
    for part in native_model("ViT", image_size=32, **VIT):
        part.save_pretrained(tmp_path / "expert")
    path = tmp_path / "expert" / "config.json"
    labels = {"id2label": {index: f"label {index}" for index in range(1, NUM_LABELS + 1)}}
    path.write_text(json.dumps(json.loads(path.read_text()) | labels))
    words = rf"'expert' numbers its labels \[1, 2, 3, .*\], expected 0 to {NUM_LABELS - 1}"
    assert re.search(words, refusal([tmp_path / "expert", tiny_experts[0]]))


def test_an_expert_of_grey_images_is_refused(tiny_experts):
    network = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, num_channels=1, **VIT))
    grey = loaded(network, ViTImageProcessor(size={"height": 32, "width": 32}))
    assert re.search(r"takes images of 1 channels, expected 3 \(RGB\)", refusal([tiny_experts[0], grey]))


def test_a_classifier_of_something_else_than_images_is_refused_in_a_sentence(tiny_experts):
    """ImageGPT takes clusters of colours."""
    config = transformers.ImageGPTConfig(n_embd=8, n_layer=1, n_head=2, vocab_size=17, n_positions=16, num_labels=4)
    network = transformers.ImageGPTForImageClassification(config)
    model = loaded(network, ViTImageProcessor(size={"height": 4, "width": 4}))
    assert re.search("the operations of ImageGPTForImageClassification cannot be counted", refusal([model, model]))


def test_a_saved_multi_label_expert_is_refused(make_expert, tiny_experts, tmp_path):
    tagger = make_expert(tmp_path / "tagger", problem_type="multi_label_classification")
    assert re.search("'tagger' is not a single-label classifier.*multi label", refusal([tagger, tiny_experts[0]]))


def test_one_expert_is_no_pool(tiny_experts):
    assert "at least two experts, got 1" in refusal(tiny_experts[:1])


def test_the_same_expert_twice_is_refused(on_hub, tiny_experts, tmp_path):
    model = loaded(*native_model("ViT", image_size=32, **VIT))
    twin = copy_folder(tiny_experts[0], tmp_path / "twin")
    for pair in ([tiny_experts[0]] * 2, [tiny_experts[0], twin], ["tester/vit"] * 2, [model, model]):
        assert re.search("the same checkpoint with the same settings: leave one out", refusal(pair))


def test_experts_of_one_name_are_told_apart(tiny_experts, tmp_path):
    folders = [
        copy_folder(folder, tmp_path / place / "best") for place, folder in zip("ab", tiny_experts, strict=True)
    ]
    assert cascade(folders).config.expert_names == ["a/best", "b/best"]
    named = [{"repo_id": str(folder), "name": name} for folder, name in zip(folders, ("small", "large"), strict=True)]
    assert cascade(named).config.expert_names == ["small", "large"]


def test_what_timm_pushes_today_loads(hub, on_hub, images, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)  # timm 1.0.20 forgets the one that it is given
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=10).eval()
    timm.models.push_to_hf_hub(
        model, "tester/pushed", token=hub.token, safe_serialization=True, model_config={"label_names": LABELS}
    )
    pushed = json.loads(hub.files("tester/pushed")["config.json"])
    assert pushed.get("model_args", {"num_classes": 10})["num_classes"] == 10  # older versions note no arguments
    pool = cascade(["tester/pushed", *on_hub])
    batch = images(8, 160)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        alone = model(torch.stack([transform(image) for image in as_pil(batch)]))
    assert_same_logits(pool.experts[pool.config.expert_names.index("pushed")](batch)[0], alone)


# Saving and loading


def test_a_local_expert_is_found_from_any_directory(tiny_experts, tmp_path, monkeypatch, images):
    monkeypatch.chdir(tiny_experts[0].parent)
    pool = cascade(["./vit", "efficientnet"])
    assert all(entry["revision"].startswith("sha256:") for entry in pool.config.experts)
    pool.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "experts").exists()
    monkeypatch.chdir(tmp_path)
    assert_same_logits(load("model")(images(8, 120)).logits, pool(images(8, 120)).logits)


def test_a_moved_expert_is_named_and_found(tiny_experts, tmp_path, images):
    here, there = copy_folder(tiny_experts[0], tmp_path / "here" / "vit"), tmp_path / "there"
    pool = cascade([here, tiny_experts[1]])
    pool.save_pretrained(tmp_path / "model")
    here.rename(there)
    with pytest.raises(PertinenceError, match=rf"'vit' was in the folder {here}.*expert_paths=\{{'vit': folder\}}"):
        load(tmp_path / "model")
    with pytest.raises(PertinenceError, match=r"expert_paths names \['vti'\], but the experts are vit, efficientnet"):
        load(tmp_path / "model", expert_paths={"vti": there})
    moved = load(tmp_path / "model", expert_paths={"vit": there})
    assert_same_logits(moved(images(8, 120)).logits, pool(images(8, 120)).logits)
    moved.save_pretrained(tmp_path / "mended")
    assert_same_logits(load(tmp_path / "mended")(images(8, 120)).logits, pool(images(8, 120)).logits)


@pytest.mark.parametrize(
    "reference", ["someone/model@", "@v1", {"repo_id": "someone/model@v1", "revision": "v2"}], ids=str
)
def test_a_reference_is_one_repository_at_one_revision(reference):
    with pytest.raises(PertinenceError, match="write id@revision|named at two revisions"):
        ExpertReference.parse(reference)


def test_a_changed_folder_warns(tiny_experts, make_expert, tmp_path, caplog):
    changing = copy_folder(tiny_experts[0], tmp_path / "changing")
    cascade([changing, tiny_experts[1]]).save_pretrained(tmp_path / "model")
    load(tmp_path / "model")
    assert "has changed" not in caplog.text
    other = make_expert(tmp_path / "other", "test_vit", 96, seed=1, model_args={"img_size": 96})
    shutil.copyfile(other / "model.safetensors", changing / "model.safetensors")
    load(tmp_path / "model")
    assert f"Expert 'changing' in {changing} has changed since this model was made" in caplog.text


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_saved_experts_need_nothing_else(hub, on_hub, tiny_experts, tmp_path, images, caplog, place):
    originals = [copy_folder(folder, tmp_path / "originals" / folder.name) for folder in tiny_experts]
    pool = cascade(originals if place == "folder" else on_hub)
    pool.save_pretrained(tmp_path / "saved", save_experts=True)
    shutil.rmtree(tmp_path / "originals")
    (tmp_path / "saved").rename(tmp_path / "moved")
    hub.requests.clear()

    reloaded = load(tmp_path / "moved")
    assert hub.requests == []
    assert "has changed" not in caplog.text
    assert [entry["repo_id"] for entry in reloaded.config.experts] == ["./experts/0", "./experts/1"]
    assert_same_logits(reloaded(images(8, 120)).logits, pool(images(8, 120)).logits)
    for index, original in enumerate(tiny_experts):
        copies = {path.name: path.read_bytes() for path in (tmp_path / "moved" / "experts" / str(index)).iterdir()}
        assert copies == {path.name: path.read_bytes() for path in original.iterdir()}


def test_a_model_with_its_experts_is_saved_over_itself(tiny_experts, tmp_path, images):
    pool = cascade(tiny_experts)
    pool.save_pretrained(tmp_path / "0", save_experts=True)
    for index, save_experts in enumerate([True, False]):
        folder = tmp_path / str(index)
        load(folder).save_pretrained(folder, save_experts=save_experts)
        moved = folder.rename(tmp_path / str(index + 1))
        assert_same_logits(load(moved)(images(8, 120)).logits, pool(images(8, 120)).logits)


def test_a_model_with_its_experts_is_saved_over_another(tiny_experts, tmp_path, images, caplog):
    torch.manual_seed(0)
    others = [loaded(*native_model(name, image_size=32, **VIT)) for name in ("ViT", "DeiT", "Dinov2")]
    cascade(others).save_pretrained(tmp_path / "model", save_experts=True)
    pool = cascade(tiny_experts)
    pool.save_pretrained(tmp_path / "model", save_experts=True)
    kept = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model" / "experts").glob("*/*")}
    assert kept == {f"experts/{index}/{name}" for index in (0, 1) for name in ("config.json", "model.safetensors")}
    assert_same_logits(load(tmp_path / "model")(images(8, 120)).logits, pool(images(8, 120)).logits)
    assert "has changed" not in caplog.text


def test_saved_experts_load_from_the_hub(hub, tiny_experts, tmp_path, images, caplog):
    pool = cascade(tiny_experts)
    pool.save_pretrained(tmp_path / "saved", save_experts=True)
    commit = hub.add_model("tester/composite", tmp_path / "saved", private=True)
    hub.requests.clear()
    reloaded = load("tester/composite", token=hub.token)
    assert_same_logits(reloaded(images(8, 120)).logits, pool(images(8, 120)).logits)
    weights = [r.path for r in hub.requests if r.method == "GET" and r.path.endswith("model.safetensors")]
    assert sorted(weights) == [
        f"/tester/composite/resolve/{commit}/{path}"
        for path in ("experts/0/model.safetensors", "experts/1/model.safetensors", "model.safetensors")
    ]
    assert "has changed" not in caplog.text

    reloaded.save_pretrained(tmp_path / "referring")
    assert not (tmp_path / "referring" / "experts").exists()
    again = load(tmp_path / "referring")
    assert_same_logits(again(images(8, 120)).logits, pool(images(8, 120)).logits)


def test_a_loaded_expert_is_saved_only_with_its_files(tmp_path, images, caplog):
    torch.manual_seed(0)
    pool = cascade([loaded(*native_model("ViT", image_size=32, **VIT)), loaded(*timm_model("test_convnext"))])
    with pytest.raises(PertinenceError, match="'ViTForImageClassification' was given as a loaded.*save_experts=True"):
        pool.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    pool.save_pretrained(tmp_path / "saved", save_experts=True)
    reloaded = load(tmp_path / "saved")
    for before, after in zip(pool.experts, reloaded.experts, strict=True):
        assert_same_logits(after(images(8, 72))[0], before(images(8, 72))[0])
    assert "has changed" not in caplog.text


def test_a_loaded_timm_expert_brings_its_processor(tiny_experts, images):
    model = AutoModelForImageClassification.from_pretrained(tiny_experts[0])
    pool, expected = cascade([model, tiny_experts[1]]), cascade(tiny_experts)
    assert_same_logits(pool(images(8, 120)).logits, expected(images(8, 120)).logits)
    torch.manual_seed(0)
    vit, _ = native_model("ViT", image_size=32, **VIT)
    assert re.search('without an image processor: pass {"model": model', refusal([vit, tiny_experts[0]]))


# Fidelity: inside a pool as alone


def check_fidelity(
    pool: PertinenceForImageClassification, alone: torch.Tensor, photos: Sequence[Image.Image], tolerance: float
) -> None:
    """Each expert, and each answer of the whole, against what the experts (N, B, C) say alone."""
    inputs = PertinenceImageProcessor()(photos)
    for expert, expected in zip(pool.experts, alone, strict=True):
        logits, _ = expert(inputs["images"])
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
        assert torch.equal(logits.argmax(1), expected.argmax(1))
    output = pool(**inputs)
    assert len(output.expert_indices.unique()) > 1
    answered = alone[output.expert_indices, torch.arange(len(photos))]
    torch.testing.assert_close(output.logits, answered, rtol=0, atol=tolerance)


def photos_from(path: Path, count: int) -> list[Image.Image]:
    """So many images of a data set, evenly spread."""
    dataset = load_dataset("parquet", data_files=str(path), split="train")
    return [photo.convert("RGB") for photo in dataset[:: len(dataset) // count]["image"][:count]]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Smooth images of many sizes."""
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (9, 9, 3), dtype=np.uint8) for _ in PHOTO_SIZES]
    return [
        Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c, size in zip(coarse, PHOTO_SIZES, strict=True)
    ]


def test_cifar_experts_inside_as_alone(zoo):
    folders = [zoo / "cifar10" / name for name in ("resnet8", "resnet20", "resnet56")]
    photos = photos_from(zoo / "cifar10" / "data" / "validation-00000-of-00001.parquet", 64)
    alone = torch.stack([folder_alone(folder, photos, trust_remote_code=True) for folder in folders])
    check_fidelity(cascade(folders, 0.9, trust_remote_code=True), alone, photos, 1e-4)


@pytest.fixture(scope="module")
def imagenet(zoo) -> tuple[list[Path], list[Image.Image], torch.Tensor]:
    """Two real experts, photographs of many sizes, and what each expert alone says of them."""
    folders = [zoo / "imagenet" / f"tf_efficientnet_lite{index}" for index in (0, 2)]
    photos = photos_from(zoo / "imagenet" / "data" / "validation-00000-of-00001.parquet", 24)
    assert len({photo.size for photo in photos}) > 10
    return folders, photos, torch.stack([folder_alone(folders[0], photos), answers_in_timm(folders[1], photos)])


@torch.no_grad()
def answers_in_timm(folder: Path, photos: Sequence[Image.Image]) -> torch.Tensor:
    """What timm makes of a checkpoint that transformers alone does not load."""
    model = timm.create_model(folder.name, checkpoint_path=folder / "model.safetensors").eval()
    transform = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(transform))
    return torch.cat([model(transform(photo).unsqueeze(0)) for photo in photos])


@pytest.mark.parametrize(
    ("preprocessing", "tolerance"), [("exact", 1e-3), pytest.param("fast", 0.05, marks=pytest.mark.nightly)]
)
def test_imagenet_experts_inside_as_alone(imagenet, preprocessing, tolerance):
    folders, photos, alone = imagenet
    check_fidelity(cascade(folders, 0.9, preprocessing=preprocessing), alone, photos, tolerance)


def test_timm_experts_inside_as_alone(tiny_experts, photos):
    alone = torch.stack([folder_alone(folder, photos) for folder in tiny_experts])
    check_fidelity(cascade(tiny_experts, 0.5), alone, photos, 1e-3)


def test_native_experts_inside_as_alone(photos):
    torch.manual_seed(0)
    crop = transformers.BitImageProcessor(size={"shortest_edge": 256})
    models = [
        native_model("ViT", image_size=32, **VIT),
        native_model("ConvNext", PROCESSORS["own-code"](), hidden_sizes=[64, 128], depths=[1, 1], num_stages=2),
        native_model("ResNet", crop, hidden_sizes=[64, 128], depths=[1, 1], embedding_size=32),
    ]
    alone = torch.stack([answers_alone(*model, photos) for model in models])
    pool = cascade([loaded(*model) for model in models], 0.2)
    assert [type(expert.model) for expert in pool.experts] == [type(model) for model, _ in models]
    check_fidelity(pool, alone, photos, 1e-4)


def timm_processor(**transform: Any) -> Any:
    return transformers.TimmWrapperImageProcessor(timm_transform(**transform), architecture="test_convnext")


PROCESSORS = {
    "timm-center": timm_processor,
    "timm-squash": partial(timm_processor, crop_mode="squash", interpolation="bilinear"),
    "timm-border": partial(timm_processor, crop_mode="border", crop_pct=0.9),
    "timm-oblong": partial(timm_processor, input_size=[3, 48, 80]),
    "square": partial(ViTImageProcessor, size={"height": 64, "width": 48}, resample=Image.Resampling.BICUBIC),
    "square-crop": transformers.DeiTImageProcessor,
    "shortest-edge": transformers.CLIPImageProcessor,
    "shortest-edge-crop": transformers.MobileNetV2ImageProcessor,
    "crop-larger-than-image": partial(transformers.DeiTImageProcessor, size={"shortest_edge": 32}),
    "unscaled": partial(ViTImageProcessor, do_rescale=False, do_normalize=False),
    "own-code": partial(transformers.ConvNextImageProcessor, size={"shortest_edge": 64}, crop_pct=0.875),
    "own-scale": transformers.EfficientNetImageProcessor,
    "pil": partial(transformers.ViTImageProcessorPil, size={"height": 32, "width": 32}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_exact_pixels_are_those_of_the_processor(photos, name):
    processor = PROCESSORS[name]()
    model, _ = native_model("ResNet", hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)
    expert = load_expert(ExpertReference.parse(loaded(model, processor)), LoadOptions())
    pixels = expert.preprocess(PertinenceImageProcessor()(photos)["images"])
    alone = [processor(photo, return_tensors="pt")["pixel_values"] for photo in photos]
    assert torch.equal(pixels, torch.cat(alone))


def test_a_model_of_local_experts_is_not_pushed(tiny_experts, hub):
    model = PertinenceForImageClassification.from_experts(tiny_experts, thresholds=[0.5])
    hub.requests.clear()
    with pytest.raises(PertinenceError, match="is on this machine only.*save_experts=True"):
        model.push_to_hub("tester/leak", token=hub.token)
    assert not hub.requests
