"""Models that are given loaded, of any origin."""

import re

import peft
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune
from transformers import (
    AutoImageProcessor,
    ImageClassificationPipeline,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from pertinence import PertinenceError, PertinenceForImageClassification


# peft asks transformers for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
from_experts = PertinenceForImageClassification.from_experts


@pytest.fixture(scope="module")
def other(make_expert, tmp_path_factory):
    return make_expert(tmp_path_factory.mktemp("other") / "other")


def vit() -> ViTForImageClassification:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=10, **small)).eval()


def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 32, "width": 32})


def tuned(**settings) -> peft.PeftModel:
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, **settings)
    return peft.get_peft_model(vit(), config)


def injected() -> nn.Module:
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules="all-linear"), vit())


def pruned() -> nn.Module:
    model = vit()
    prune.l1_unstructured(model.classifier, "weight", 0.5)
    return model


def with_head(head: nn.Module) -> nn.Module:
    model = vit()
    model.classifier = head
    return model


def compiled_in_part(how: str) -> nn.Module:
    model = vit()
    if how == "in place":
        model.compile(backend="eager")
    else:
        model.vit = torch.compile(model.vit, backend="eager")
    return model


def quantised() -> nn.Module:
    model = vit()
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return model


def without_memory() -> nn.Module:
    with torch.device("meta"):
        return vit()


def refusal(*experts):
    with pytest.raises(PertinenceError) as caught:
        from_experts(experts, 0.5)
    return str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
    ids=["parallel", "compiled", "compiled in parallel", "parallel compiled"],
)
def test_wrappers_are_taken_off(other, tmp_path, images, wrap):
    model = from_experts([{"model": wrap(vit()), "processor": processor()}, other], 0.5)
    expected = from_experts([{"model": vit(), "processor": processor()}, other], 0.5)
    assert model.config.expert_names == expected.config.expert_names
    assert torch.equal(model(images(4, 40)).logits, expected(images(4, 40)).logits)
    model.save_pretrained(tmp_path / "model", save_experts=True)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again(images(4, 40)).logits, model(images(4, 40)).logits)


def test_merged_adapters_are_saved_and_loaded(other, tmp_path, images):
    network = tuned(use_dora=True, modules_to_save=["classifier"])
    expected = network.eval()(images(4, 32) / 127.5 - 1).logits
    model = from_experts([{"model": network.merge_and_unload(), "processor": processor()}, other], 0.5)
    model.save_pretrained(tmp_path / "model", save_experts=True)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    expert = next(expert for expert in again.experts if expert.entry.name == "ViTForImageClassification")
    torch.testing.assert_close(expert(images(4, 32))[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: timm.create_model("test_convnext", num_classes=10), "timm.models.save_for_hf"),
        (lambda: nn.DataParallel(timm.create_model("test_convnext", num_classes=10)), "timm.models.save_for_hf"),
        (lambda: torchvision.models.squeezenet1_1(num_classes=10), "expected a loaded image classifier of transf"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), "expected a loaded image classifier of transf"),
        (lambda: torch.optim.swa_utils.AveragedModel(vit()), "give what it wraps, its `module`"),
        (tuned, "merge_and_unload"),
        (lambda: tuned(modules_to_save=["classifier"]).base_model, "merge_and_unload"),
        (lambda: nn.DataParallel(tuned()), "merge_and_unload"),
        (injected, "PeftModel.from_pretrained"),
        (lambda: ImageClassificationPipeline(vit(), image_processor=processor()), '"model": pipeline.model'),
        (lambda: ViTForImageClassification, "has the class ViTForImageClassification as `model`"),
        (lambda: "google/vit-base-patch16-224", "give a Hub id or a folder as `repo_id`"),
        (lambda: vit().state_dict(), "has a OrderedDict as `model`"),
        (quantised, "is quantised"),
        (without_memory, "not in memory"),
        (pruned, r"other weights than its config describes \(classifier.weight, classifier.weight_mask"),
        (lambda: with_head(nn.Linear(16, 7)), "other weights than its config describes"),
        (lambda: with_head(nn.Sequential(nn.Linear(16, 10))), "other weights than its config describes"),
        (lambda: compiled_in_part("in place"), "compile_experts"),
        (lambda: compiled_in_part("inside"), "compile_experts"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused(other, make, words):
    message = refusal({"model": make(), "processor": processor(), "name": "mine"}, other)
    assert message.startswith("expert 'mine'")
    assert re.search(words, message)


def test_what_is_given_alone_is_refused_alike(other):
    assert "timm.models.save_for_hf" in refusal(timm.create_model("test_convnext", num_classes=10), other)
    assert '"model": pipeline.model' in refusal(ImageClassificationPipeline(vit(), image_processor=processor()), other)
    assert "has the class" in refusal(ViTForImageClassification, other)


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda: "google/vit-base-patch16-224", "a str"),
        (lambda: ViTImageProcessor, "the class ViTImageProcessor"),
        (lambda: processor().to_dict(), "a dict"),
        (lambda: torchvision.transforms.ToTensor(), "a ToTensor"),
        (lambda: lambda images, **options: {"pixel_values": torch.zeros(len(images), 3, 32, 32)}, "a function"),
        (vit, "a ViTForImageClassification"),
    ],
)
def test_a_processor_of_another_kind_is_refused(other, made, kind):
    message = refusal({"model": vit(), "processor": made()}, other)
    assert f"its `processor` is {kind}, expected an image processor of transformers" in message


def test_what_would_be_ignored_is_refused(other, make_expert, tmp_path):
    folder = str(make_expert(tmp_path / "one"))
    assert "has a processor beside `repo_id`" in refusal({"repo_id": folder, "processor": processor()}, other)
    assert "which has no revisions" in refusal({"repo_id": folder, "revision": "main"}, other)
    loaded = {"model": vit(), "processor": processor(), "revision": "main"}
    assert "is a loaded model, which has no revisions" in refusal(loaded, other)


@pytest.mark.parametrize("experts", [None, 3, nn.Sequential(), nn.DataParallel(nn.Linear(1, 1)), AutoImageProcessor])
def test_what_is_no_list_of_experts_is_refused(experts):
    with pytest.raises(PertinenceError, match="experts come as a list of at least two"):
        from_experts(experts, 0.5)


def test_what_a_class_does_not_save_is_not_lost(other, tmp_path):
    model = vit()
    forward = model.forward

    def doubled(*args, **options):
        output = forward(*args, **options)
        output.logits = 2 * output.logits
        return output

    model.forward = doubled
    changed = from_experts([{"model": model, "processor": processor()}, other], 0.5)
    with pytest.raises(PertinenceError, match="cannot be saved, as its files answer otherwise"):
        changed.save_pretrained(tmp_path / "new/model", save_experts=True)
    assert not list(tmp_path.iterdir())


def test_a_class_that_transformers_does_not_know_is_not_saved(other, tmp_path):
    class OwnConfig(ViTConfig):
        model_type = "own_vit"

    class OwnClassifier(ViTForImageClassification):
        config_class = OwnConfig

    model = OwnClassifier(OwnConfig(**{**vit().config.to_dict(), "model_type": "own_vit"}))
    pool = from_experts([{"model": model, "processor": processor()}, other], 0.5)
    with pytest.raises(PertinenceError, match="'OwnClassifier' cannot be saved, as its files do not load"):
        pool.save_pretrained(tmp_path / "model", save_experts=True)
    assert not list(tmp_path.iterdir())


def test_networks_of_timm_load_by_the_advice(other, tmp_path, images):
    network = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    timm.models.save_for_hf(network, tmp_path / "timm", model_args={"img_size": 32}, safe_serialization=True)
    pool = from_experts([tmp_path / "timm", other], 0.5)
    expert = next(expert for expert in pool.experts if expert.entry.name == "timm")
    pixels = expert.preprocess(images(2, 32))
    torch.testing.assert_close(expert.model(pixels).logits, network(pixels))
