"""What torch does to any model: it is compiled, traced, unfrozen, cast, offloaded, copied. The answers stay."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from torch.nn.utils import parametrize
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.models.modeling_pertinence import PertinenceOutput
from pertinence.utils import graphs


THRESHOLD = 0.7  # not a number of bfloat16
PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Two tiny CNNs of ten labels."""
    return [save_resnet(tmp_path_factory.mktemp("expert"), seed) for seed in range(2)]


def save_resnet(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8 + 8 * seed], depths=[1], num_labels=10)
    network = ResNetForImageClassification(config).eval()
    network.classifier[-1].weight.data *= 10  # confidences from 0.6 to 0.9
    network.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "saved"
    PertinenceForImageClassification.from_experts(folders, THRESHOLD).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def batch(images) -> torch.Tensor:
    return images(8, 64)


@pytest.fixture(scope="module")
def expected(saved, batch) -> PertinenceOutput:
    out = PertinenceForImageClassification.from_pretrained(saved)(batch, labels=torch.zeros(8, dtype=torch.long))
    assert 0 < out.experts_run[:, 1].sum() < 8  # both ways are taken
    return out


@pytest.fixture
def model(saved) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(saved)


@pytest.fixture(params=[False, True], ids=["eager", "lazy"])
def any_model(saved, request) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(saved, lazy=request.param)


def assert_same(actual: PertinenceOutput, expected: PertinenceOutput, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(actual.logits, expected.logits, atol=tolerance, rtol=0)
    assert torch.equal(actual.experts_run, expected.experts_run)


class Larger(nn.Module):
    """A network around the model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.scale = model, nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> PertinenceOutput:
        out = self.model((images / 255).clamp(0, 1))
        return PertinenceOutput(logits=out.logits * self.scale, experts_run=out.experts_run)


# Compilers


def in_a_function(model: nn.Module, **options) -> Callable[[torch.Tensor], PertinenceOutput]:
    return torch.compile(lambda images: model(pixel_values=images, return_dict=True), **options)


COMPILED = {
    "the model": torch.compile,
    "a function": in_a_function,
    "a larger module": lambda model, **options: torch.compile(Larger(model), **options),
    "with sizes that change": lambda model, **options: torch.compile(model, dynamic=True, **options),
    "the forward": lambda model, **options: torch.compile(model.forward, **options),
}


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("way", COMPILED)
def test_compiled_as_a_whole_it_decides_as_ever(model, batch, expected, way, monkeypatch):
    torch.compiler.reset()
    told: list[str] = []
    monkeypatch.setattr(graphs.logger, "warning_once", told.append)
    compiled = COMPILED[way](model, backend="eager")
    assert_same(compiled(batch), expected)
    one, rest = compiled(batch[:1]), compiled(batch[1:])
    assert torch.equal(torch.cat([one.experts_run, rest.experts_run]), expected.experts_run)
    assert "compile_experts" in told[0]


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.skipif(not graphs._REASON, reason="this torch does not say why it does not compile a function")
@pytest.mark.parametrize("wrap", [nn.Identity, Larger])
def test_as_one_graph_it_is_refused_with_advice(model, batch, wrap):
    torch.compiler.reset()
    whole = model if wrap is nn.Identity else wrap(model)
    with pytest.raises(RuntimeError, match="compile_experts"):
        torch.compile(whole, backend="eager", fullgraph=True)(batch)


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("lazy", [False, True])
def test_its_own_compile_compiles_the_experts(saved, batch, expected, lazy):
    """Also where it is compiled as a whole, besides."""
    torch.compiler.reset()
    compiled: list[torch.fx.GraphModule] = []
    model = PertinenceForImageClassification.from_pretrained(saved, lazy=lazy)
    model.compile(backend=lambda graph, _: compiled.append(graph) or graph.forward, fullgraph=True)
    called = torch.compile(model, backend="eager") if lazy else model
    assert_same(called(batch), expected, 1e-4)
    assert len(compiled) >= 2


def scripted(model: nn.Module, images: torch.Tensor) -> object:
    return torch.jit.script(model)


def traced(model: nn.Module, images: torch.Tensor) -> object:
    return torch.jit.trace(model, images, strict=False)


def exported(model: nn.Module, images: torch.Tensor) -> object:
    return torch.export.export(model, (images,))


@pytest.mark.filterwarnings("ignore")  # jit is deprecated
@pytest.mark.parametrize("record", [traced, scripted, exported])
@pytest.mark.parametrize("wrap", [lambda model: model, Larger], ids=["itself", "within a larger module"])
def test_the_decisions_of_one_batch_are_not_recorded(model, batch, record, wrap):
    with pytest.raises(PertinenceError, match=r"cannot be traced or exported .*compile_experts"):
        record(wrap(model), batch)


# Gradients


def one_by_one(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = True


@pytest.mark.parametrize("unfreeze", [nn.Module.requires_grad_, one_by_one])
def test_unfrozen_it_answers_the_same(any_model, batch, expected, unfreeze):
    unfreeze(any_model)
    assert_same(any_model(batch), expected)
    unfreeze(Larger(any_model))
    assert_same(any_model.train()(batch), expected)
    assert_same(any_model.requires_grad_(False)(batch), expected)


def test_a_loss_has_no_gradient(any_model, batch, expected):
    labels = torch.zeros(8, dtype=torch.long)
    for model in (any_model, any_model.requires_grad_()):
        loss = model(batch, labels=labels).loss
        assert torch.equal(loss, expected.loss)
        with pytest.raises(PertinenceError, match="cannot be trained"):
            loss.backward()
    with torch.no_grad():
        assert not any_model(batch, labels=labels).loss.requires_grad


def test_images_have_no_gradient(model, batch, expected):
    out = model((batch / 255).requires_grad_())
    assert_same(out, expected)
    with pytest.raises(PertinenceError, match="have no gradients"):
        out.logits.sum().backward()
    assert not model(batch).logits.requires_grad


def test_the_trainer_does_not_train_it(any_model, batch, tmp_path):
    rows = [{"pixel_values": image, "labels": 0} for image in batch]
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    with pytest.raises(PertinenceError, match="fine-tune an expert on its own"):
        Trainer(any_model, arguments, train_dataset=rows).train()


def test_an_expert_in_training_mode_is_refused(folders, batch):
    """Someone trains the network of an expert, which they gave loaded."""
    networks = [ResNetForImageClassification.from_pretrained(folder) for folder in folders]
    given = [{"model": one, "processor": PROCESSOR, "name": str(i)} for i, one in enumerate(networks)]
    model = PertinenceForImageClassification.from_experts(given, 1.0)
    before = model(batch)
    networks[1].train()
    with pytest.raises(PertinenceError, match=r"in training mode.*eval\(\)"):
        model(batch)
    Larger(model).train()  # the experts stay in evaluation mode
    assert_same(model(batch), before)


# Parameters


def assigned(model: nn.Module, dtype: torch.dtype) -> None:
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)


def cast_with(switch: Callable[[bool], None], model: nn.Module, dtype: torch.dtype) -> None:
    switch(True)
    try:
        model.to(dtype)
    finally:
        switch(False)


def overwritten(model: nn.Module, dtype: torch.dtype) -> None:
    cast_with(torch.__future__.set_overwrite_module_params_on_conversion, model, dtype)


def swapped(model: nn.Module, dtype: torch.dtype) -> None:
    cast_with(torch.__future__.set_swap_module_params_on_conversion, model, dtype)


def set_one_by_one(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(value.detach().to(dtype), requires_grad=False))
        for name, value in list(module.named_buffers(recurse=False)):
            setattr(module, name, value.to(dtype) if value.is_floating_point() else value)


def parametrized(model: nn.Module, dtype: torch.dtype) -> None:
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parametrize.register_parametrization(module, "weight", nn.Identity())
    model.to(dtype)


@pytest.mark.parametrize("change", [assigned, overwritten, swapped, set_one_by_one, parametrized])
def test_replaced_parameters_are_those_that_compute(model, batch, expected, change):
    model(batch)
    change(model, torch.float64)
    assert model.dtype == model.experts[1].dtype == torch.float64
    assert_same(model(batch), expected, 1e-5)
    change(model, torch.bfloat16)
    assert model.dtype == model.experts[1].dtype == torch.bfloat16
    torch.testing.assert_close(model(batch[:1]).logits, expected.logits[:1], atol=0.3, rtol=0)


def replace_bias(stack: nn.Module) -> None:
    stack.bias = nn.Parameter(stack.bias + torch.tensor([100.0, 0.0]), requires_grad=False)


def add_to_bias(stack: nn.Module) -> None:
    with torch.no_grad():
        stack.bias += torch.tensor([100.0, 0.0])


def write_bias(stack: nn.Module) -> None:
    stack.bias.data[:, 0] = 100.0


def set_data_of_bias(stack: nn.Module) -> None:
    stack.bias.data = stack.bias + torch.tensor([100.0, 0.0])


@pytest.mark.parametrize("change", [replace_bias, add_to_bias, write_bias, set_data_of_bias])
def test_changed_heads_are_those_that_decide(any_model, batch, change):
    assert any_model(batch).experts_run[:, 1].any()
    change(any_model.dispatcher.stages["0_mix"])  # now the first expert answers all
    assert not any_model(batch).experts_run[:, 1].any()


def test_parameters_of_one_call_are_used_in_that_call(model, batch, expected):
    doubles = {name: value.double() for name, value in model.state_dict().items() if value.is_floating_point()}
    out = torch.func.functional_call(model, doubles, (batch,))
    assert_same(out, expected, 1e-5)
    assert not torch.equal(out.logits, expected.logits)
    assert_same(model(batch), expected)


# Places


@pytest.mark.parametrize("was_called", [False, True])
@pytest.mark.parametrize("disk", [False, True])
def test_offloaded_it_computes_where_accelerate_says(model, batch, expected, tmp_path, was_called, disk):
    if was_called:
        model(batch)
    if disk:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta
    assert model.device.type == "cpu"
    assert_same(model(batch), expected)


def test_without_values_it_says_so(any_model, batch):
    with pytest.raises(PertinenceError, match="on the meta device"):
        any_model.to("meta")(batch)


def test_copies_for_several_devices_are_refused(model):
    with pytest.raises(PertinenceError, match="torchrun"):
        model._replicate_for_data_parallel()  # as `nn.DataParallel` does, where there are several


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_no_decision(folders, saved, batch, expected, dtype):
    torch.set_default_dtype(dtype)
    try:
        made = PertinenceForImageClassification.from_experts(folders, THRESHOLD, dtype="float32")
        loaded = PertinenceForImageClassification.from_pretrained(saved)
        for model in (made, loaded):
            out = model(batch)
            assert_same(out, expected)
            assert torch.equal(out.dispatcher_logits.nan_to_num(), expected.dispatcher_logits.nan_to_num())
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_device_does_not_matter_to_a_call(model, batch, expected):
    mixed = [*batch[:4], *(image[:, :60] for image in batch[4:])]
    out = model(mixed)
    torch.set_default_device("meta")
    try:
        assert_same(model(mixed), out)
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_may_be_loaded_and_called_in_any_mode(saved, batch, expected, mode):
    with mode():
        model = PertinenceForImageClassification.from_pretrained(saved)
        assert_same(model(batch), expected)
    assert_same(model(batch), expected)
    assert_same(model.requires_grad_(False)(batch), expected)


# Copies and hooks


@pytest.mark.parametrize("was_cast", [False, True])
def test_pickled_it_answers_the_same(saved, batch, was_cast):
    lazy = PertinenceForImageClassification.from_pretrained(saved, lazy=True, token="hf_secret")
    if was_cast:
        lazy.double()
    expected, file = lazy(batch), io.BytesIO()
    torch.save(lazy, file)
    assert b"hf_secret" not in file.getvalue()
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert again.experts[0].store.loaded == []
    assert_same(again(batch), expected)
    assert again.experts[0].store.memory == lazy.experts[0].store.memory
    assert_same(pickle.loads(pickle.dumps(copy.deepcopy(again)))(batch), expected)


def test_hooks_on_an_expert_run(any_model, batch, expected):
    seen: list[tuple[int, ...]] = []
    any_model.experts[1].register_forward_hook(lambda module, inputs, out: seen.append(tuple(out[0].shape)))
    assert_same(any_model(batch), expected)
    assert seen == [(expected.experts_run[:, 1].sum(), 10)]
    any_model.experts[1].register_forward_hook(lambda module, inputs, out: (out[0] * 0, out[1]))
    assert not any_model(batch).logits[expected.experts_run[:, 1]].any()
