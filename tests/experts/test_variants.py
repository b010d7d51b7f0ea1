"""Experts made from one checkpoint, by a smaller input or in 8 bits: what they see, cost and share, through save and
load; and which of them a search proposes."""

import copy

import datasets
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers import (
    AutoModelForImageClassification,
    CLIPImageProcessor,
    SwinForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    SearchArguments,
)
from pertinence.experts.expert import load_expert
from pertinence.experts.pool import load_pool
from pertinence.experts.preprocessing import Preprocessor, resize_transform, resolve_transform
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.experts.variants import possible_sizes
from pertinence.search.proposals import Trial, best_variant, price_of_pool


SIZE, SMALLER = 64, 56


@pytest.fixture(scope="module")
def folder(make_expert, tmp_path_factory):
    return make_expert(tmp_path_factory.mktemp("sizes") / "convnext", size=SIZE)


@pytest.fixture(scope="module")
def references(folder):
    return [{"repo_id": str(folder), "image_size": SMALLER}, str(folder)]


@pytest.mark.parametrize("preprocessing", ["exact", "fast"])
def test_a_smaller_expert_sees_the_middle_of_what_the_whole_one_sees(references, images, preprocessing):
    small, whole = load_pool(references, LoadOptions(), preprocessing)
    assert (small.entry.name, whole.entry.name) == ("convnext-56px", "convnext")
    assert small.entry.gmacs < 0.85 * whole.entry.gmacs
    for shape in (SIZE, 50, 97):  # taken as it is, enlarged and shrunk by the expert's own processor
        batch = images(3, shape)
        pixels = tvF.center_crop(whole.preprocess(batch), [SMALLER, SMALLER])
        assert torch.equal(small.preprocess(batch), pixels)
        assert torch.equal(small(batch)[0], whole.model(pixel_values=pixels).logits)


@pytest.mark.parametrize("preprocessing", ["exact", "fast"])
def test_a_resized_expert_sees_what_its_library_would_make_at_that_size(folder, images, preprocessing):
    reference = {"repo_id": str(folder), "image_size": 48, "image_size_by": "resize"}
    small = load_pool([reference, str(folder)], LoadOptions(), preprocessing)[0]
    assert small.entry.name == "convnext-48px-resized"
    config = {**small.model.config.pretrained_cfg, "input_size": [3, 48, 48]}
    own = TimmWrapperImageProcessor(config)
    for shape in (SIZE, 50, 97):
        batch = images(3, shape)
        pixels = own([Image.fromarray(image) for image in batch.permute(0, 2, 3, 1).numpy()], return_tensors="pt")
        tolerance = 0 if preprocessing == "exact" else 2.5 / 127.5
        assert (small.preprocess(batch) - pixels["pixel_values"]).abs().max() <= tolerance


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 64, "width": 64}},
        {"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
        {"size": {"height": 72, "width": 72}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
    ],
)
def test_a_processor_of_transformers_is_set_to_another_size(settings, images):
    processor = (CLIPImageProcessor if "crop_size" in settings else ViTImageProcessor)(do_resize=True, **settings)
    transform = resolve_transform(processor)
    smaller = resize_transform(transform, processor, 48)
    assert (smaller.size, smaller.processor_size) == ((48, 48), (48, 48))
    whole, part = (Preprocessor(t, processor)(images(2, 80)) for t in (transform, smaller))
    assert (whole.shape[-1], part.shape[-1]) == (64, 48)
    # All of it, smaller: the same picture at another size.
    again = torch.nn.functional.interpolate(whole, (48, 48), mode="bilinear", antialias=True)
    assert (again - part).abs().mean() < 0.1 * whole.std()


@pytest.mark.parametrize("save_experts", [False, True])
def test_eight_bits_in_linear_layers(make_expert, images, tmp_path, save_experts):
    folder = make_expert(tmp_path / "vit", "test_vit", 96, model_args={"img_size": 96})
    model = PertinenceForImageClassification.from_experts(
        [{"repo_id": str(folder), "quantization": "int8"}, str(folder)], thresholds=1.0
    )
    small, whole = model.experts
    assert (small.entry.name, small.entry.quantization) == ("vit-int8", "int8")
    kinds = {type(module).__module__ for module in small.model.modules() if "Linear" in type(module).__name__}
    assert any("quantized" in kind for kind in kinds), "nothing computes in 8 bits"
    batch = images(16, 96)
    ours, theirs = small(batch)[0], whole(batch)[0]
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().mean() < 0.1 * theirs.std()
    assert small(batch)[1].shape == whole(batch)[1].shape
    model.save_pretrained(tmp_path / "model", save_experts=save_experts)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again.experts[0](batch)[0], ours)
    assert torch.equal(again.experts[1](batch)[0], theirs)


def test_eight_bits_without_a_linear_layer_are_refused(folder, make_expert, tmp_path):
    cnn = make_expert(tmp_path / "resnet", "test_resnet", 64)
    with pytest.raises(PertinenceError, match="has no linear layer before its last"):
        load_pool([{"repo_id": str(cnn), "quantization": "int8"}, str(folder)], LoadOptions())
    with pytest.raises(PertinenceError, match="quantization='int4' is not one of int8"):
        load_pool([{"repo_id": str(folder), "quantization": "int4"}, str(folder)], LoadOptions())


def test_sizes_that_an_architecture_allows(folder, make_expert, tmp_path):
    assert possible_sizes(load_expert(ExpertReference.parse(str(folder)), LoadOptions()).checkpoint) == [32]
    vit = make_expert(tmp_path / "vit", "vit_tiny_patch16_224", 96, model_args={"img_size": 96, "depth": 1})
    assert possible_sizes(load_expert(ExpertReference.parse(str(vit)), LoadOptions()).checkpoint) == [80, 64, 48]
    fixed = make_expert(tmp_path / "fixed", "test_vit", 96, model_args={"img_size": 96, "dynamic_img_size": False})
    assert possible_sizes(load_expert(ExpertReference.parse(str(fixed)), LoadOptions()).checkpoint) == []


def test_the_variant_that_loses_the_least_for_its_saving_is_proposed():
    """A kind is left at the first that loses more than the pool itself asks."""
    found = {
        "a": Trial("a", 0.01, 0.0, 0.2),
        "b": Trial("b", 0.01, 0.01, 0.4),
        "c": Trial("c", 0.3, 0.1, 0.6),
        "d": Trial("d", 0.0, 0.0, 0.9),
    }
    assert best_variant([["a", "b", "c", "d"]], found.get, 0.1).variant == "b", "d comes after one that loses too much"
    assert best_variant([["c"], ["d"]], found.get, 0.1).variant == "d"
    assert best_variant([["c"], []], found.get, 0.1) is None
    assert best_variant([["c"]], found.get, 0.2).variant == "c", "0.3 ± 0.1 is not clearly above 0.12"
    right = torch.tensor([[True, True], [False, True], [False, True], [True, False]])
    assert price_of_pool(right, [1.0, 2.0]) == pytest.approx(0.25 / 0.5)
    assert price_of_pool(right, [2.0, 2.0]) == 0.0  # nothing is saved, so nothing may be lost


def test_a_search_with_variants(zoo, tmp_path):
    """Variants stand beside their experts in the pool, share their weights, run first, and are loaded again."""
    files = sorted(str(path) for path in (zoo / "cifar10/data").glob("validation-*.parquet"))
    dataset = datasets.load_dataset("parquet", data_files=files, split="train").select(range(800))
    args = SearchArguments(
        population=8,
        generations=1,
        variants="auto",
        baselines=False,
        trust_remote_code=True,
        cache_dir=str(tmp_path / "cache"),
        device="cpu",
    )
    pool = [str(zoo / "cifar10" / name) for name in ("resnet8", "resnet20")]
    result = DispatcherSearch(pool, dataset, args).run()
    names = [entry["name"] for entry in result.model.config.experts]
    assert names[-1] == "resnet20"
    (variant,) = {name for name in names if name.startswith("resnet8-")}
    assert variant.startswith("resnet8-28px")
    by_name = {expert.entry.name: expert for expert in result.model.experts}
    assert by_name[variant].checkpoint is by_name["resnet8"].checkpoint
    for point in result.front:
        members = [names[member] for member in point.members]
        assert not {"resnet8", variant} <= set(members), "the variant runs in place of its expert"
    assert any(variant in [names[member] for member in point.members] for point in result.front)
    result.save(tmp_path / "run")
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "run", trust_remote_code=True)
    batch = PertinenceImageProcessor()(list(dataset.select(range(20))["image"][:]))["images"]
    assert torch.equal(again(batch).logits, result.model(batch).logits)


@pytest.mark.nightly
def test_variants_of_time_are_measured_once(digits, digit_experts, tmp_path):
    """By time 8-bit layers are tried, too; what was measured is kept for a search that goes on."""
    args = SearchArguments(
        population=4,
        generations=1,
        variants="auto",
        cost="latency",
        baselines=False,
        cache_dir=str(tmp_path / "cache"),
        device="cpu",
        output_dir=str(tmp_path / "run"),
    )
    DispatcherSearch(digit_experts, digits[1], args, report_dataset=digits[2]).run()
    kept = {path.stem for path in (tmp_path / "run").rglob("latency of *.json")}
    assert any(name.endswith("px") for name in kept)


def test_weights_are_loaded_once_and_features_kept_apart(references, images):
    small, whole = load_pool(references, LoadOptions())
    assert small.model is whole.model
    batch = images(2, SIZE)
    alone = [load_pool(references, LoadOptions())[i](batch) for i in (0, 1)]
    for expert, (logits, features) in zip((small, whole), alone, strict=True):
        assert torch.equal(expert(batch)[0], logits)
        assert torch.equal(expert(batch)[1], features)
    assert not torch.equal(alone[0][1], alone[1][1])


@pytest.mark.parametrize("save_experts", [False, True])
def test_saved_and_loaded_again(references, images, tmp_path, save_experts):
    model = PertinenceForImageClassification.from_experts(references, thresholds=0.5)
    model.save_pretrained(tmp_path / "model", save_experts=save_experts)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    batch = PertinenceImageProcessor()(list(images(8, 70)))["images"]
    expected, found = model(batch), again(batch)
    assert torch.equal(expected.logits, found.logits)
    assert torch.equal(expected.gmacs, found.gmacs)
    assert again.experts[0].model is again.experts[1].model
    if save_experts:
        assert len(list((tmp_path / "model").rglob("experts/*/model.safetensors"))) == 1
        again.save_pretrained(tmp_path / "again", save_experts=True)
        third = PertinenceForImageClassification.from_pretrained(tmp_path / "again")
        assert torch.equal(third(batch).logits, expected.logits)


def test_searched_like_any_other_expert(digits, digit_experts, tmp_path):
    largest, size = digit_experts[1], 40
    args = SearchArguments(population=4, generations=1, cache_dir=str(tmp_path / "cache"), device="cpu")
    pool = [{"repo_id": str(largest), "image_size": size, "name": "middle"}, str(largest)]
    result = DispatcherSearch(pool, digits[1], args, report_dataset=digits[2]).run()
    stores = {path.name for path in (tmp_path / "cache/predictions").iterdir()}
    assert len(stores) == 4  # two experts, two splits
    names = [entry["name"] for entry in result.model.config.experts]
    assert names == ["middle", largest.name]
    result.save(tmp_path / "run")
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "run")
    some = datasets.Dataset.select(digits[2], range(20))
    batch = PertinenceImageProcessor()(list(some["image"][:]))["images"]
    assert torch.equal(again(batch).logits, result.model(batch).logits)


@pytest.mark.parametrize("size", [SIZE, SIZE + 1, 0, -8, 48.0, "48"])
def test_a_size_that_is_not_smaller_is_refused(folder, size):
    with pytest.raises(PertinenceError, match="expert 'convnext.*must be a whole number below the 64 pixels"):
        load_pool([{"repo_id": str(folder), "image_size": size}, str(folder)], LoadOptions())


def timm_folder(make_expert, folder, architecture="test_vit", **model_args):
    return make_expert(folder, architecture, 64, model_args={"img_size": 64, **model_args})


def native_folder(folder, model_class, **config):
    """A transformer of transformers' own, with random weights, for 64 pixels."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(image_size=64, patch_size=8, num_labels=10, **config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # positions begin at zero
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


TIMM_VIT = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2}
NATIVE = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}


@pytest.mark.parametrize("by", ["crop", "resize"])
@pytest.mark.parametrize("kind", ["timm ViT", "timm Swin", "ViT", "Swin"])
def test_a_transformer_moves_its_positions_to_smaller_images(make_expert, images, tmp_path, kind, by):
    """As its own library does when told so; the whole one keeps its answers, and both share the weights."""
    if kind == "timm ViT":
        folder = timm_folder(make_expert, tmp_path / kind, "vit_tiny_patch16_224", **TIMM_VIT)
    elif kind == "timm Swin":
        options = {"depths": (1, 2), "num_heads": (3, 6), "embed_dim": 48, "window_size": 4}
        folder = timm_folder(make_expert, tmp_path / kind, "swin_tiny_patch4_window7_224", **options)
    elif kind == "ViT":
        folder = native_folder(tmp_path / kind, ViTForImageClassification, **NATIVE)
    else:
        options = {
            "embed_dim": 48,
            "depths": [2],
            "num_heads": [3],
            "window_size": 4,
            "use_absolute_embeddings": True,
        }
        folder = native_folder(tmp_path / kind, SwinForImageClassification, **options)
    model = PertinenceForImageClassification.from_experts(
        [{"repo_id": str(folder), "image_size": 48, "image_size_by": by}, str(folder)], thresholds=1.0
    )
    small, whole = model.experts
    assert small.model is whole.model
    assert small.entry.gmacs < 0.7 * whole.entry.gmacs
    batch = images(4, 64)
    alone = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(whole(batch)[0], alone(pixel_values=whole.preprocess(batch)).logits)
        with pytest.raises((ValueError, AssertionError, RuntimeError)):
            alone(pixel_values=small.preprocess(batch))
        if kind.startswith("timm"):
            config = copy.deepcopy(alone.config)
            config.model_args["dynamic_img_size"] = True
            told = AutoModelForImageClassification.from_pretrained(folder, config=config)
            expected = told(pixel_values=small.preprocess(batch)).logits
        else:
            expected = alone(pixel_values=small.preprocess(batch), interpolate_pos_encoding=True).logits
    assert torch.equal(small(batch)[0], expected)
    assert not torch.allclose(small(batch)[0], whole(batch)[0], atol=1e-2)
    model.save_pretrained(tmp_path / "model")
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    for expert, before in zip(again.experts, model.experts, strict=True):
        assert torch.equal(expert(batch)[0], before(batch)[0])


@pytest.mark.parametrize(
    ("architecture", "arguments", "size"),
    [
        ("vit_tiny_patch16_224", TIMM_VIT, 52),  # none cuts a patch in two
        ("test_vit", {"dynamic_img_size": False}, 48),  # its maker did not want it
        ("test_vit_relpos", {}, 48),
        ("coatnet_nano_rw_224", {"embed_dim": [32, 64], "depths": [1, 1], "block_type": ["C", "T"]}, 48),
    ],
)
def test_what_an_architecture_does_not_take_is_refused(make_expert, tmp_path, architecture, arguments, size):
    folder = timm_folder(make_expert, tmp_path / "vit", architecture, **arguments)
    whole = load_expert(ExpertReference.parse(str(folder)), LoadOptions())
    assert size not in possible_sizes(whole.checkpoint)
    with pytest.raises(
        PertinenceError, match=f"'vit-{size}px': it does not take images of {size} pixels, only of 64x64"
    ):
        load_pool([{"repo_id": str(folder), "image_size": size}, str(folder)], LoadOptions())


def test_the_same_size_twice_is_refused(references):
    with pytest.raises(PertinenceError, match="are the same checkpoint with the same settings"):
        load_pool([references[0], references[0]], LoadOptions())


def test_loaded_models_share_what_they_share(folder):
    """Two processors of one model are two experts, not one."""
    model = load_pool([str(folder), {"repo_id": str(folder), "image_size": SMALLER}], LoadOptions())[0].model
    config = copy.deepcopy(model.config)
    config.pretrained_cfg["mean"] = [0.1, 0.2, 0.3]
    other = TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)
    pool = load_pool(
        [{"model": model, "name": "own"}, {"model": model, "processor": other, "name": "other"}], LoadOptions()
    )
    means = {expert.entry.name: expert.preprocess.transform.mean for expert in pool}
    assert means == {"own": (0.5, 0.5, 0.5), "other": pytest.approx((0.1, 0.2, 0.3))}
