"""What every backend keeps to: ours, and one from outside the package (examples/plugins/backend.py)."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    RuntimeArguments,
    SearchArguments,
    evaluate_model,
    register_backend,
)
from pertinence.experts.backends.base import ASKED, BACKENDS
from pertinence.experts.expert import load_expert
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import ExpertReference, LoadOptions


ASKED_FOR = {"torch": {}, "torch-int8": {"quantization": "int8"}} | {
    name: {"backend": name} for name in ("onnx", "openvino", "bfloat16")
}
"""How the mapping of an expert asks for each backend."""
SIZE = 48


@pytest.fixture(scope="module", autouse=True)
def example(plug_in):
    return plug_in("backend")


@pytest.fixture(scope="module")
def folder(make_expert, tmp_path_factory):
    return make_expert(tmp_path_factory.mktemp("backends") / "vit", "test_vit", SIZE, model_args={"img_size": SIZE})


@pytest.fixture(
    scope="module",
    # OpenVINO runs the very file of ONNX Runtime, and tests/models/test_exporting.py compares both.
    params=[pytest.param(name, marks=pytest.mark.nightly) if name == "openvino" else name for name in ASKED_FOR],
)
def name(request):
    return request.param


@pytest.fixture
def expert(name, folder):
    return load_expert(ExpertReference.parse({"repo_id": str(folder)} | ASKED_FOR[name]), LoadOptions())


@pytest.fixture(scope="module")
def torchs(folder):
    """The same network in plain torch."""
    return load_expert(ExpertReference.parse(folder), LoadOptions())


@pytest.fixture(scope="module")
def batch(images):
    return images(12, SIZE)


def test_the_example_is_short(example):
    assert len(Path(example.__file__).read_text().splitlines()) <= 60


def test_it_has_what_is_asked(name, expert):
    backend = BACKENDS.get(name)
    assert type(expert.network) is backend
    assert all(hasattr(backend, attribute) for attribute in ASKED)
    assert isinstance(expert.device, torch.device)
    assert isinstance(expert.dtype, torch.dtype)
    assert expert.entry.backend == name


def test_it_gives_logits_and_maybe_features(expert, torchs, batch):
    pixel_values = expert.preprocess(batch)
    assert pixel_values.dtype == torch.float32
    with torch.no_grad():
        logits, features = expert.network.run(pixel_values)
    assert logits.shape == (12, 10)
    assert logits.is_floating_point()
    assert features is None or (features.ndim, len(features)) == (2, 12)
    logits, features = expert(batch)
    assert (logits.dtype, features.dtype) == (torch.float32, torch.float32)
    assert features.shape == (12, expert.entry.features)
    expected = torchs(batch)[0]
    assert (logits - expected).abs().mean() < 0.1 * expected.std(), "it is the same network"


def test_it_gives_the_same_again_from_several_threads(expert, batch):
    expected = expert(batch)[0]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: expert(batch)[0], range(8)))
    assert all(torch.equal(logits, expected) for logits in found)


def test_a_copy_gives_the_same(expert, batch):
    assert torch.equal(copy.deepcopy(expert)(batch)[0], expert(batch)[0])


def test_it_is_cast_with_the_model_or_not_at_all(name, expert, batch):
    fixed = BACKENDS.get(name).fixed_dtype
    before = expert(batch)[0]
    expert.to(torch.float64)
    assert expert.dtype == (fixed or torch.float64)
    after = expert(batch)[0]
    assert torch.equal(after, before) if fixed else torch.allclose(after, before, atol=1e-4)


def test_it_is_refused_on_a_device_that_it_does_not_run_on(name, expert):
    devices = BACKENDS.get(name).devices
    if devices is None or "meta" in devices:
        assert expert.to("meta").network is not None
    else:
        with pytest.raises(PertinenceError, match="'vit.*which runs on cpu.* only, not on meta: choose that device"):
            expert.to("meta")
        assert expert.device.type == "cpu"


def test_it_counts_the_bytes_of_its_weights(name, expert, torchs):
    whole = sum(parameter.numel() for parameter in torchs.checkpoint.model.parameters()) * 4
    memory = expert.network.memory
    is_smaller = name in ("torch-int8", "bfloat16")
    assert 0.2 * whole < memory < 0.8 * whole if is_smaller else memory == pytest.approx(whole, rel=0.2)


def test_it_says_whether_it_is_worth_a_try(name, expert):
    backend, cpu = BACKENDS.get(name), torch.device("cpu")
    assert not backend.is_offered(expert.checkpoint, False, cpu), "operations are counted, and it takes as many"
    assert backend.is_offered(expert.checkpoint, True, cpu) == (name in ("torch-int8", "bfloat16"))


def test_what_is_compiled_gives_the_same(name, expert, batch):
    calls, before = [], expert(batch)[0]
    expert.compile_network({"backend": lambda graph, _: calls.append(graph) or graph.forward})
    assert torch.allclose(expert(batch)[0], before, atol=1e-4 if name != "bfloat16" else 0.1)
    assert bool(calls) == BACKENDS.get(name).compiles


def test_a_smaller_input(name, folder, batch):
    whole, small = (
        load_expert(ExpertReference.parse({"repo_id": str(folder), **how, **ASKED_FOR[name]}), LoadOptions())
        for how in ({}, {"image_size": 32})
    )
    assert small.entry.name.startswith(f"{folder.name}-32px")
    assert small.entry.gmacs < whole.entry.gmacs
    assert small(batch)[0].shape == whole(batch)[0].shape


@pytest.mark.parametrize("lazy", [False, True])
def test_saved_and_loaded_again(name, folder, make_expert, batch, tmp_path, lazy):
    large = make_expert(tmp_path / "large", "test_efficientnet", 96)
    pool = [{"repo_id": str(folder), **ASKED_FOR[name]}, str(large)]
    model = PertinenceForImageClassification.from_experts(pool, thresholds=0.5)
    expected = model(batch)
    assert expected.experts_run.all(0).tolist()[0]
    model.save_pretrained(tmp_path / "model")
    entry = json.loads((tmp_path / "model" / "config.json").read_text())["experts"][0]
    assert entry["quantization"] == ASKED_FOR[name].get("quantization")
    assert entry.get("backend") == ASKED_FOR[name].get("backend"), "ours are told by the quantization alone"
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model", lazy=lazy)
    assert again.experts[0].dtype == model.experts[0].dtype
    found = again(batch)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.expert_indices, expected.expert_indices)


# From outside the package


@pytest.fixture(scope="module")
def found(digits, digit_experts, tmp_path_factory):
    """The folder of a search whose largest expert runs by the example."""
    folder = tmp_path_factory.mktemp("searched")
    pool = [str(digit_experts[0]), {"repo_id": str(digit_experts[2]), "backend": "bfloat16"}]
    args = SearchArguments(population=4, generations=1, cache_dir=str(folder / "cache"), device="cpu")
    result = DispatcherSearch(pool, digits[1], args, report_dataset=digits[2]).run()
    result.save(folder / "run")
    return folder / "run"


@pytest.mark.nightly
def test_searched_saved_loaded_and_evaluated(found, digits):
    model = PertinenceForImageClassification.from_pretrained(found)
    assert [type(expert.network).__name__ for expert in model.experts] == ["TorchBackend", "Bfloat16"]
    assert model.config.expert_names[1].endswith("-bfloat16")
    record = json.loads((found / "search_result.json").read_text())
    assert [expert.get("backend") for expert in record["settings"]["experts"]] == [None, "bfloat16"]
    args = RuntimeArguments(device="cpu", cache_dir=str(found.parent / "again"))
    evaluation = evaluate_model(found, digits[2], args)
    for point in model.front:
        assert evaluation.front.find(point.name).report.accuracy == point.report.accuracy, "in the very backend"


LOADED = """
import json, sys, torch
from pertinence import PertinenceError, PertinenceForImageClassification
try:
    PertinenceForImageClassification.from_pretrained(sys.argv[1])
except PertinenceError as error:
    print(json.dumps([str(error), "backend" in sys.modules]))
import backend
model = PertinenceForImageClassification.from_pretrained(sys.argv[1])
print(json.dumps(model(torch.full((2, 3, 64, 64), 99, dtype=torch.uint8)).logits.tolist()))
"""


@pytest.mark.nightly
def test_where_it_is_not_imported_its_model_is_refused_and_nothing_imported(found, workplace, run_python):
    (sentence, is_imported), logits = run_python(LOADED, found, cwd=workplace)
    assert (
        "backend 'bfloat16' is not one of torch, torch-int8, onnx, onnx-int8, openvino, which are registered: import "
        in sentence
    )
    assert not is_imported
    model = PertinenceForImageClassification.from_pretrained(found)
    expected = model(torch.full((2, 3, 64, 64), 99, dtype=torch.uint8)).logits
    # Another process may choose other kernels, which differ in the last bits.
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.nightly
def test_what_its_older_version_said_is_not_used(found, digits, monkeypatch):
    cache = found.parent / "cache"
    args = RuntimeArguments(device="cpu", cache_dir=str(cache))
    stores = len(list((cache / "predictions").iterdir()))
    evaluate_model(found, digits[2], args)
    assert len(list((cache / "predictions").iterdir())) == stores, "the search has kept them"
    monkeypatch.setattr(BACKENDS.get("bfloat16"), "version", 2)
    evaluate_model(found, digits[2], args)
    assert len(list((cache / "predictions").iterdir())) == stores + 1


@pytest.mark.nightly
@pytest.mark.parametrize("lazy", [False, True])
def test_a_saved_model_that_needs_an_unknown_backend_is_refused(found, monkeypatch, lazy):
    monkeypatch.delitem(BACKENDS._registered, "bfloat16")
    with pytest.raises(
        PertinenceError,
        match="expert 'test_resnet-bfloat16': backend 'bfloat16' is not one of torch, torch-int8, onnx, "
        "onnx-int8, openvino, which are registered: import the module that registers it first",
    ):
        PertinenceForImageClassification.from_pretrained(found, lazy=lazy)


def test_asked_for_by_a_wrong_name(folder, monkeypatch):
    def refusal(**how):
        with pytest.raises(PertinenceError) as caught:
            load_pool([{"repo_id": str(folder), **how}, str(folder)], LoadOptions())
        return str(caught.value)

    assert (
        "expert 'vit-onx': backend='onx' is not one of torch, torch-int8, onnx, onnx-int8, openvino, bfloat16"
        in refusal(backend="onx")
    )
    both = refusal(backend="bfloat16", quantization="int8")
    assert both == "expert 'vit' is given a quantization and a backend: give one of them"


def test_a_class_that_is_no_backend_is_refused():
    with pytest.raises(PertinenceError, match="the backend 'mine' has no version, devices, .*run: see `Backend`"):
        register_backend("mine", type("Mine", (), {}))
    with pytest.raises(PertinenceError, match="backend 'torch-int8' is a part of pertinence"):
        register_backend("torch-int8", BACKENDS.get("bfloat16"))


def test_a_backend_that_cannot_run_a_network_says_which(folder, monkeypatch):
    def fails(self, checkpoint, entry):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(BACKENDS.get("bfloat16"), "__init__", fails)
    with pytest.raises(PertinenceError, match="expert 'vit-bfloat16': the backend 'bfloat16' cannot run .*no kernel"):
        load_expert(ExpertReference.parse({"repo_id": str(folder), "backend": "bfloat16"}), LoadOptions())
