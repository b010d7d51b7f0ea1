"""Batch norms that are folded: the same answers but for the last bits, other others left alone, caches kept apart."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)
from transformers.modeling_outputs import ImageClassifierOutput

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.data.dataset import LabelledImages
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.predictions.predict import predict
from pertinence.utils.distributed import make_accelerator


SIZE = 48
PLAIN, FOLDED = LoadOptions(), LoadOptions(fold_batch_norms=True)


def norms(expert: Expert) -> int:
    return sum(isinstance(module, _BatchNorm) for module in expert.model.modules())


@torch.no_grad()
def trained(tensors: dict[str, torch.Tensor]) -> None:
    """Give batch norms statistics and scales as training does: in place, by the names of their tensors."""
    generator = torch.Generator().manual_seed(1)
    for name in [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]:
        tensors[f"{name}running_mean"].normal_(0, 0.3, generator=generator)
        tensors[f"{name}running_var"].uniform_(0.5, 2, generator=generator)
        if f"{name}weight" in tensors:
            tensors[f"{name}weight"].uniform_(0.5, 1.5, generator=generator)
            tensors[f"{name}bias"].normal_(0, 0.3, generator=generator)


def given(model: PreTrainedModel, options: LoadOptions, name: str = "given") -> Expert:
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    return load_expert(ExpertReference(model=model, processor=processor, name=name), options)


def check_same(folded: Expert, plain: Expert, images: torch.Tensor, tolerance: float = 1e-4) -> None:
    for one, other in zip(folded(images), plain(images), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.fixture(scope="module")
def make_trained(make_expert, tmp_path_factory):
    """A function: the folder of a tiny network of timm, whose batch norms do something."""

    def make(architecture: str) -> Path:
        folder = make_expert(tmp_path_factory.mktemp("timm") / architecture, architecture, SIZE)
        tensors = load_file(folder / "model.safetensors")
        trained(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_networks_of_timm(make_trained, images, architecture):
    reference = ExpertReference.parse(make_trained(architecture))
    plain, folded = load_expert(reference, PLAIN), load_expert(reference, FOLDED)
    assert norms(plain) > 10
    assert norms(folded) == 0
    check_same(folded, plain, images(8, 60))
    assert folded.entry == plain.entry, "operations and parameters are those of the checkpoint"


def test_activations_of_timm_stay(make_trained):
    reference = ExpertReference.parse(make_trained("test_efficientnet"))
    plain, folded = load_expert(reference, PLAIN).model, load_expert(reference, FOLDED).model
    for path, module in plain.named_modules():
        if isinstance(module, BatchNormAct2d):
            kinds = {type(part) for part in folded.get_submodule(path)}
            assert kinds == {type(module.drop), type(module.act)}


TRANSFORMERS = {
    "resnet": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3)
    ),
    "mobilenet": lambda: MobileNetV2ForImageClassification(
        MobileNetV2Config(depth_multiplier=0.25, image_size=SIZE, num_labels=3)
    ),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_networks_of_transformers_that_were_given_loaded(images, kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TRANSFORMERS[kind]().eval()
    trained(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    folded = given(model, FOLDED)
    assert norms(folded) == 0
    assert folded.model is not model
    check_same(folded, given(model, PLAIN), images(4, SIZE))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class OddConfig(PreTrainedConfig):
    model_type = "odd"


class Standardised(nn.Conv2d):
    """A convolution that scales its weight before every call, as those of BiT do, so that nothing folds into it."""

    def forward(self, values):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(values, weight, self.bias, padding=1)


class Odd(PreTrainedModel):
    """A convolution, its batch norm, and what a test does between the two."""

    config_class = OddConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.layer, self.norm, self.head = self.make_layer(), self.make_norm(), nn.Linear(6, 3)

    def forward(self, pixel_values):
        values = self.run(pixel_values)
        return ImageClassifierOutput(logits=self.head(values.mean((2, 3)) if values.ndim == 4 else values))


def convolution(**options) -> nn.Conv2d:
    return nn.Conv2d(3, 6, 3, **{"padding": 1, **options})


def odd(run, layer=convolution, norm=lambda: nn.BatchNorm2d(6)) -> Odd:
    parts = {"run": run, "make_layer": staticmethod(layer), "make_norm": staticmethod(norm)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type("Odd", (Odd,), parts)(OddConfig(num_labels=3)).eval()
    trained(model.state_dict())
    return model


def plainly(self, pixels):
    return self.norm(self.layer(pixels))


def pooled(self, pixels):
    return self.norm(self.layer(pixels.mean((2, 3))))


FOLDS = {
    "with a bias": lambda: odd(plainly),
    "without": lambda: odd(plainly, lambda: convolution(padding_mode="reflect", bias=False)),
    "no scale": lambda: odd(plainly, norm=lambda: nn.BatchNorm2d(6, affine=False)),
    "groups": lambda: odd(plainly, lambda: convolution(groups=3)),
    "linear": lambda: odd(pooled, lambda: nn.Linear(3, 6), lambda: nn.BatchNorm1d(6)),
    "linear, no scale": lambda: odd(pooled, lambda: nn.Linear(3, 6), lambda: nn.BatchNorm1d(6, affine=False)),
}


@pytest.mark.parametrize("kind", FOLDS)
def test_layers_that_fold(kind, images):
    model = FOLDS[kind]()
    folded = given(model, FOLDED)
    assert norms(folded) == 0
    check_same(folded, given(model, PLAIN), images(4, SIZE), 1e-5)


def hooked() -> Odd:
    model = odd(plainly)
    model.norm.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def normed() -> Odd:
    return odd(plainly, lambda: nn.utils.parametrizations.weight_norm(convolution()))


NOTHING_FOLDS = {
    "not of this layer": lambda: odd(lambda self, pixels: self.norm(self.layer(pixels).relu())),
    "changed in place": lambda: odd(lambda self, pixels: self.norm(self.layer(pixels).relu_())),
    "called twice": lambda: odd(lambda self, pixels: self.norm(self.layer(pixels)) - self.layer(pixels)),
    "normalised twice": lambda: odd(lambda self, pixels: self.norm(self.norm(self.layer(pixels)))),
    "a weight made anew": lambda: odd(plainly, lambda: Standardised(3, 6, 3)),
    "a parametrised weight": normed,
    "a hook": hooked,
    "no statistics": lambda: odd(plainly, norm=lambda: nn.BatchNorm2d(6, track_running_stats=False)),
    "positions of a linear layer": lambda: odd(
        lambda self, pixels: self.norm(self.layer(pixels.flatten(2)[:, :, :6].transpose(1, 2))).mean(1),
        lambda: nn.Linear(3, 6),
        lambda: nn.BatchNorm1d(6),
    ),
}


@pytest.mark.parametrize("kind", NOTHING_FOLDS)
def test_layers_that_do_not_fold_are_left_and_that_is_said(kind, images, caplog):
    model = NOTHING_FOLDS[kind]()
    expert = given(model, FOLDED, kind)
    assert f"The batch norms of expert {kind!r} are not folded: none of them comes right after a" in caplog.text
    assert expert.model is model
    check_same(expert, given(model, PLAIN), images(4, SIZE), 0)


REFUSED = {
    "used elsewhere": (
        lambda: odd(lambda self, pixels: self.norm(kept := self.layer(pixels)) + kept),
        "the outputs of the folded network in torch.float32 differ by ",
    ),
    "asked for": (
        lambda: odd(lambda self, pixels: self.norm(self.layer(pixels)) * self.norm.eps),
        "without them it fails (AttributeError: 'Identity' object has no attribute 'eps')",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_would_answer_otherwise_is_left_and_that_is_said(kind, images, caplog):
    make, message = REFUSED[kind]
    model = make()
    expert = given(model, FOLDED, kind)
    assert f"The batch norms of expert {kind!r} are not folded: {message}" in caplog.text
    assert expert.model is model
    check_same(expert, given(model, PLAIN), images(4, SIZE), 0)


def test_a_network_without_batch_norms_is_left_and_that_is_said_once(make_expert, tmp_path, caplog):
    reference = ExpertReference.parse(make_expert(tmp_path / "normless", "test_convnext", SIZE))
    for _ in range(2):
        expert = load_expert(reference, FOLDED)
    assert expert.model is expert.checkpoint.model
    assert caplog.text.count("The batch norms of expert 'normless' are not folded: it has none.") == 1


def test_experts_of_one_checkpoint_share_the_folded_network(make_trained, images):
    folder = str(make_trained("test_resnet"))
    small, whole = load_pool([{"repo_id": folder, "image_size": 32}, folder], FOLDED)
    assert small.model is whole.model
    assert norms(whole) == 0


def test_only_networks_in_torch_are_folded(make_trained, images):
    folder = str(make_trained("test_resnet"))
    experts = [
        load_expert(ExpertReference.parse({"repo_id": folder, "backend": "onnx"}), one) for one in (PLAIN, FOLDED)
    ]
    assert not experts[1].folds_batch_norms
    check_same(experts[1], experts[0], images(4, SIZE), 0)
    for backend in ("onnx", "openvino"):
        with pytest.raises(PertinenceError, match=f"of torch: backend='{backend}' folds batch norms itself, so leave"):
            PertinenceForImageClassification.from_experts(
                [folder, folder], 0.5, fold_batch_norms=True, backend=backend
            )


def test_predictions_of_folded_experts_are_kept_apart(make_trained, digits, tmp_path, runs):
    reference = ExpertReference.parse(make_trained("test_resnet"))
    images = LabelledImages(digits[1].select(range(40)))

    def scores(options: LoadOptions) -> torch.Tensor:
        expert = load_expert(reference, options)
        runs.clear()
        return predict([expert], images, make_accelerator("cpu"), cache_dir=tmp_path).experts[0].scores

    plain, folded = scores(PLAIN), scores(FOLDED)
    assert runs, "what the network with its batch norms answered is not taken for it"
    assert not torch.equal(plain, folded)
    torch.testing.assert_close(plain, folded, rtol=1e-4, atol=1e-4)
    assert torch.equal(scores(FOLDED), folded)
    assert not runs
    assert torch.equal(scores(PLAIN), plain)
    assert not runs
