"""Exports of whole models: the same answers, checked files, no checkpoint and no code afterwards."""

import copy
import hashlib
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from coded_expert import save_coded_expert
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.data.dataset import LabelledImages
from pertinence.predictions.store import identify


IMAGES = 256
OTHER = "AzureExecutionProvider"
"""A provider of most builds of ONNX Runtime, which leaves to the CPU what it does not know."""
BACKENDS = ["onnx", pytest.param("openvino", marks=pytest.mark.nightly)]  # which takes long to import


@pytest.fixture(scope="module")
def batch(images):
    return images(IMAGES, 64)


@pytest.fixture(scope="module")
def experts(make_expert, tmp_path_factory):
    """A CNN for 64 pixels, and one for 96 whose images must be resized."""
    folder = tmp_path_factory.mktemp("experts")
    return [make_expert(folder / "small", "test_convnext", 64), make_expert(folder / "large", "test_efficientnet", 96)]


@pytest.fixture(scope="module")
def model(experts):
    return PertinenceForImageClassification.from_experts(experts, thresholds=0.6)


@pytest.fixture(scope="module")
def exported(model, batch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    copy.deepcopy(model).export_onnx(folder, batch)
    return folder


@pytest.fixture
def changed(exported, tmp_path):
    """A copy of the exported model, to be damaged."""
    return shutil.copytree(exported, tmp_path / "model")


def entries_of(folder):
    return json.loads((folder / "config.json").read_text())["experts"]


def check_same(found, expected):
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
    assert torch.equal(found.experts_run, expected.experts_run)
    assert torch.equal(found.logits.argmax(1), expected.logits.argmax(1))
    assert torch.equal(found.gmacs, expected.gmacs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lazy", [False, True])
def test_it_answers_as_torch_does(model, exported, batch, backend, lazy):
    again = PertinenceForImageClassification.from_pretrained(exported, backend=backend, lazy=lazy)
    expected = model(batch)
    assert 0 < expected.experts_run[:, 1].float().mean() < 1
    check_same(again(batch), expected)
    check_same(again(batch[:1]), model(batch[:1]))


def test_what_is_recorded_was_measured(exported):
    for index, entry in enumerate(entries_of(exported)):
        (export,) = entry["exports"]
        content = (exported / export["file"]).read_bytes()
        assert export["file"] == f"experts/{index}/onnx/model.onnx"
        assert export["sha256"] == hashlib.sha256(content).hexdigest()
        assert export["revision"] == entry["revision"]
        assert export["input_shape"] == [3, *entry["transform"]["size"]]
        assert export["agreement"]["images"] == IMAGES
        assert export["agreement"]["same_answers"] == 1.0
        assert 0 < export["agreement"]["largest_difference"] < 1e-3
        assert export["opset"] == onnx.load_from_string(content).opset_import[0].version
        assert b"site-packages" not in content, "no path of this machine"


def test_without_a_backend_it_loads_in_torch_bit_for_bit(model, exported, batch):
    again = PertinenceForImageClassification.from_pretrained(exported)
    assert torch.equal(again(batch).logits, model(batch).logits)


def test_neither_checkpoint_nor_code_is_needed_afterwards(images, tmp_path):
    coded = [save_coded_expert(tmp_path / "first"), save_coded_expert(tmp_path / "second")]
    for folder in coded:
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    weights = load_file(coded[1] / "model.safetensors")
    save_file({name: 2 * values for name, values in weights.items()}, coded[1] / "model.safetensors", {"format": "pt"})
    model = PertinenceForImageClassification.from_experts(coded, thresholds=0.6, trust_remote_code=True)
    seen = images(IMAGES, 16)
    expected = model(seen)
    model.export_onnx(tmp_path / "model", seen)
    for folder in coded:
        shutil.rmtree(folder)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model", backend="onnx")
    check_same(again(seen), expected)


def test_preprocessing_by_code_of_its_own_is_refused(images, experts, tmp_path):
    coded = save_coded_expert(tmp_path / "coded")
    model = PertinenceForImageClassification.from_experts([coded, experts[0]], thresholds=0.5, trust_remote_code=True)
    with pytest.raises(PertinenceError, match="expert 'coded': its preprocessing is code of its own"):
        model.export_onnx(tmp_path / "model", images(IMAGES, 16))


def test_saved_again_with_its_graphs(exported, batch, tmp_path):
    again = PertinenceForImageClassification.from_pretrained(exported, backend="onnx")
    again.save_pretrained(tmp_path / "copy")
    twice = PertinenceForImageClassification.from_pretrained(tmp_path / "copy", backend="onnx")
    assert torch.equal(twice(batch).logits, again(batch).logits)
    assert [entry["backend"] for entry in entries_of(tmp_path / "copy") if "backend" in entry] == []


@pytest.mark.nightly
def test_into_the_folder_of_a_model_with_copies_of_its_experts(model, batch, tmp_path):
    model.save_pretrained(tmp_path / "model", save_experts=True)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    again.export_onnx(tmp_path / "model", batch)
    for backend in ("torch", "onnx"):
        loaded = PertinenceForImageClassification.from_pretrained(tmp_path / "model", backend=backend)
        check_same(loaded(batch), model(batch))


def test_through_the_hub(hub, exported, batch, tmp_path):
    loaded = PertinenceForImageClassification.from_pretrained(exported, backend="onnx")
    loaded.push_to_hub("user/exported", save_experts=True, token=hub.token)
    again = PertinenceForImageClassification.from_pretrained("user/exported", backend="onnx")
    assert torch.equal(again(batch).logits, loaded(batch).logits)
    card = hub.files("user/exported")["README.md"].decode()
    assert 'backend="onnx"' in card
    for export in (export for entry in loaded.config.expert_entries for export in entry.exports):
        line = next(line for line in card.splitlines() if export.file in line)
        assert f"opset {export.opset}, input 3 x " in line
        assert f"100.00 % the same answers on {IMAGES} images" in line
        assert export.sha256 in line


def test_experts_without_a_graph_stay_in_torch_and_that_is_said(changed, model, batch, caplog):
    config = json.loads((changed / "config.json").read_text())
    del config["experts"][1]["exports"]
    (changed / "config.json").write_text(json.dumps(config))
    again = PertinenceForImageClassification.from_pretrained(changed, backend="onnx")
    assert "Not exported, so they run in torch: large" in caplog.text
    assert [expert.entry.backend for expert in again.experts] == ["onnx", "torch"]
    check_same(again(batch), model(batch))


def test_a_decision_reads_features_of_a_graph(images, experts, batch, tmp_path):
    from pertinence.routing.front import Front, OperatingPoint, Stage
    from pertinence.routing.heads import Head

    pool = PertinenceForImageClassification.from_experts(experts, thresholds=0.5)
    point = OperatingPoint("one", "paper", (0, 1), (Stage(0, "features"),))
    width = pool.config.feature_sizes[0]
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(2, width, generator=generator), torch.zeros(2))
    front = Front([point], pool.config.expert_names)
    model = PertinenceForImageClassification.compose(list(pool.experts), front, {"one": [head]}, "one")
    expected = model(batch)
    assert 0 < expected.experts_run[:, 1].float().mean() < 1
    model.export_onnx(tmp_path / "model", batch)
    assert [entry["exports"][0]["has_features"] for entry in entries_of(tmp_path / "model")] == [True, False]
    check_same(PertinenceForImageClassification.from_pretrained(tmp_path / "model", backend="onnx")(batch), expected)


def test_it_is_copied_pickled_and_runs_in_threads(exported, batch):
    again = PertinenceForImageClassification.from_pretrained(exported, backend="onnx")
    expected = again(batch).logits
    assert torch.equal(copy.deepcopy(again)(batch).logits, expected)
    assert torch.equal(pickle.loads(pickle.dumps(again))(batch).logits, expected)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(one, expected) for one in threads.map(lambda _: again(batch).logits, range(8)))


def test_no_token_is_pickled(exported, batch):
    again = PertinenceForImageClassification.from_pretrained(exported, backend="onnx", token="hf_secret")
    stored = pickle.dumps(again)
    assert b"hf_secret" not in stored
    assert torch.equal(pickle.loads(stored)(batch[:2]).logits, again(batch[:2]).logits)


@pytest.mark.nightly
def test_saved_again_when_its_experts_are_gone(make_expert, images, tmp_path):
    pool = [make_expert(tmp_path / name, name, 32) for name in ("test_convnext", "test_efficientnet")]
    model, seen = PertinenceForImageClassification.from_experts(pool, thresholds=0.6), images(IMAGES, 32)
    model.export_onnx(tmp_path / "model", seen)
    for folder in pool:
        shutil.rmtree(folder)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model", backend="onnx")
    again.set_budget(operating_point="cascade")
    again.save_pretrained(tmp_path / "copy")
    twice = PertinenceForImageClassification.from_pretrained(tmp_path / "copy", backend="onnx")
    check_same(twice(seen), model(seen))


@pytest.mark.nightly
def test_a_checkpoint_that_has_changed_is_not_copied_under_its_old_figures(make_expert, images, tmp_path):
    pool = [make_expert(tmp_path / name, name, 32) for name in ("test_convnext", "test_efficientnet")]
    PertinenceForImageClassification.from_experts(pool, 0.6).export_onnx(tmp_path / "model", images(IMAGES, 32))
    weights = load_file(pool[0] / "model.safetensors")
    save_file({name: 2 * values for name, values in weights.items()}, pool[0] / "model.safetensors", {"format": "pt"})
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model", backend="onnx")
    with pytest.raises(PertinenceError, match="has changed since this model was made"):
        again.save_pretrained(tmp_path / "copy", save_experts=True)


@pytest.mark.nightly
def test_made_on_the_fly_it_can_be_exported(experts, model, batch, tmp_path):
    fast = PertinenceForImageClassification.from_experts(experts, thresholds=0.6, backend="onnx")
    fast.save_pretrained(tmp_path / "saved")
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "saved")
    again.export_onnx(tmp_path / "model", batch)
    loaded = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    assert [type(expert.network).__name__ for expert in loaded.experts] == ["OnnxBackend"] * 2
    check_same(loaded(batch), model(batch))


@pytest.mark.nightly
def test_made_on_the_fly_it_runs_in_openvino(experts, tmp_path):
    fast = PertinenceForImageClassification.from_experts(experts, thresholds=0.6, backend="onnx")
    fast.save_pretrained(tmp_path / "saved")
    other = PertinenceForImageClassification.from_pretrained(tmp_path / "saved", backend="openvino")
    assert [type(expert.network).__name__ for expert in other.experts] == ["OpenVinoBackend"] * 2


@pytest.mark.nightly
def test_a_damaged_cache_is_made_anew(experts, batch):
    from pertinence.experts.export_cache import CACHE

    def answer():
        return PertinenceForImageClassification.from_experts(experts, thresholds=0.6, backend="onnx")(batch).logits

    expected = answer()
    for path in CACHE.rglob("*.onnx"):
        path.write_bytes(b"damaged")
    assert torch.equal(answer(), expected)


def test_a_checkpoint_in_half_precision_is_refused(experts, batch, tmp_path):
    half = PertinenceForImageClassification.from_experts(experts, thresholds=0.6, dtype="bfloat16")
    with pytest.raises(PertinenceError, match="expert 'small': it computes in bfloat16, and graphs in float32"):
        half.export_onnx(tmp_path / "model", batch)


def test_within_a_memory_limit(exported, batch, model):
    sizes = [(exported / f"experts/{index}/onnx/model.onnx").stat().st_size for index in range(2)]
    again = PertinenceForImageClassification.from_pretrained(
        exported, backend="onnx", lazy=True, max_memory=2 * sum(sizes)
    )
    check_same(again(batch), model(batch))


def test_exported_on_the_fly(experts, model, batch):
    fast = PertinenceForImageClassification.from_experts(experts, thresholds=0.6, backend="onnx")
    assert [type(expert.network).__name__ for expert in fast.experts] == ["OnnxBackend"] * 2
    check_same(fast(batch), model(batch))


def test_settings_of_a_session_are_passed_on(exported, batch):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    again = PertinenceForImageClassification.from_pretrained(
        exported, backend="onnx", provider="CPUExecutionProvider", session_options=options, file_name="model.onnx"
    )
    assert again(batch[:2]).logits.shape == (2, 10)


@pytest.mark.skipif(OTHER not in onnxruntime.get_available_providers(), reason="this build has one provider")
@pytest.mark.parametrize("lazy", [False, True])
def test_predictions_of_another_execution_provider_are_others(exported, digits, lazy):
    images = LabelledImages(digits[1].select(range(4)))
    default, cpu, other = (
        PertinenceForImageClassification.from_pretrained(exported, backend="onnx", lazy=lazy, provider=provider)
        for provider in (None, "CPUExecutionProvider", OTHER)
    )
    found = [identify(model.pool[0], images, torch.device("cpu")) for model in (default, cpu, other)]
    assert found[0] == found[1] != found[2]


REFUSED = {
    "dtype": ({"backend": "onnx", "dtype": "float16"}, "dtype='float16' cannot be met: exported graphs compute in"),
    "device": ({"backend": "onnx", "device_map": "cuda:0"}, "device_map='cuda:0' is of torch"),
    "provider": ({"backend": "onnx", "provider": "Coral"}, "provider='Coral' is not one of this build"),
    "file": (
        {"backend": "onnx", "file_name": "other.onnx"},
        "no exported file 'other.onnx' in float32; it has: model",
    ),
    "options": ({"backend": "onnx", "session_options": {"threads": 1}}, "session_options must be onnxruntime.Session"),
    "without": ({"provider": "CPUExecutionProvider"}, "provider is a setting of exported graphs: give backend='onnx'"),
    "unknown": ({"backend": "tensorrt"}, "backend='tensorrt' is not one of torch, onnx, openvino"),
    "openvino": ({"backend": "openvino", "provider": "x"}, "provider and session_options are of ONNX Runtime"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_setting_that_cannot_be_met_is_refused(exported, how):
    options, message = REFUSED[how]
    with pytest.raises(PertinenceError, match=message.replace("(", r"\(")):
        PertinenceForImageClassification.from_pretrained(exported, **options)


def test_a_graph_is_not_compiled(exported):
    again = PertinenceForImageClassification.from_pretrained(exported, backend="onnx")
    with pytest.raises(PertinenceError, match="no expert of this model can be compiled, as they run in onnx"):
        again.compile_experts()


def test_without_exports_the_backend_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(PertinenceError, match="needs exported experts, and this model has none: `pertinence export`"):
        PertinenceForImageClassification.from_pretrained(tmp_path / "model", backend="onnx")


def test_too_few_images_or_none_write_nothing(model, batch, tmp_path):
    for images, message in ((None, "give at least 256 of them"), (batch[:255], "at least 256 images, got 255")):
        with pytest.raises(PertinenceError, match=message):
            copy.deepcopy(model).export_onnx(tmp_path / "model", images)
    assert not (tmp_path / "model").exists()


def test_a_graph_that_answers_otherwise_is_refused(model, batch, tmp_path, monkeypatch):
    """As of a network whose exported operators round otherwise: here its last layer is changed meanwhile."""
    from pertinence.experts import exporting

    export = exporting.export_network

    def other(checkpoint, *args):
        last = checkpoint.model.timm_model.get_classifier()
        last.bias.data[0] += 0.01
        try:
            return export(checkpoint, *args)
        finally:
            last.bias.data[0] -= 0.01

    monkeypatch.setattr(exporting, "export_network", other)
    with pytest.raises(
        PertinenceError, match=r"expert 'small': its graph does not answer as torch does: .*within 0\.01"
    ):
        model.export_onnx(tmp_path / "model", batch)
    assert not (tmp_path / "model").exists()


# Hostile files


def tensor(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def graph(nodes, inputs, outputs, initializers=(), domain=""):
    made = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def outside_weights():
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [10], np.zeros(10, np.float32).tobytes(), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "40")):
        weights.external_data.add(key=key, value=value)
    node = helper.make_node("Identity", ["weights"], ["logits"])
    return graph([node], [tensor("pixel_values", ["b", 3, 64, 64])], [tensor("logits", ["b", 10])], [weights])


HOSTILE = {
    "truncated": (lambda content: content[: len(content) // 2], True, "cannot be opened by ONNX Runtime"),
    "empty": (lambda content: b"", True, "cannot be opened by ONNX Runtime"),
    "noise": (lambda content: bytes(range(256)) * 64, True, "cannot be opened by ONNX Runtime"),
    "one bit": (
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        False,
        "does not have the hash in config.json",
    ),
    "weights outside": (lambda content: outside_weights(), True, "has weights in another file, which could be any"),
    "other format": (lambda content: b"\0\0\0\0ORTM" + content, True, "in the format of ONNX Runtime, expected ONNX"),
    "other input": (
        lambda content: graph(
            [helper.make_node("Identity", ["x"], ["logits"])], [tensor("x", ["b", 10])], [tensor("logits", ["b", 10])]
        ),
        True,
        "maps .* to .*, but config.json describes pixel_values",
    ),
    "other size": (
        lambda content: graph(
            [helper.make_node("ReduceMean", ["pixel_values"], ["logits"], keepdims=0)],
            [tensor("pixel_values", ["b", 3, 32, 32])],
            [tensor("logits", ["b", 10])],
        ),
        True,
        "maps .* to .*, but config.json describes pixel_values",
    ),
    "more labels": (
        lambda content: graph(
            [
                helper.make_node("ReduceMean", ["pixel_values", "axes"], ["means"], keepdims=0),
                helper.make_node("Concat", ["means"] * 4, ["logits"], axis=1),
            ],
            [tensor("pixel_values", ["b", 3, 64, 64])],
            [tensor("logits", ["b", 12])],
            [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
        ),
        True,
        "gives 12 logits, but config.json describes 10",
    ),
    "custom operator": (
        lambda content: graph(
            [helper.make_node("Steal", ["pixel_values"], ["logits"], domain="evil")],
            [tensor("pixel_values", ["b", 3, 64, 64])],
            [tensor("logits", ["b", 10])],
            domain="evil",
        ),
        True,
        "cannot be opened by ONNX Runtime",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hostile_file_is_refused_in_one_sentence(changed, kind, backend):
    make, is_described, message = HOSTILE[kind]
    path = changed / "experts/0/onnx/model.onnx"
    path.write_bytes(make(path.read_bytes()))
    if is_described:
        config = json.loads((changed / "config.json").read_text())
        config["experts"][0]["exports"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (changed / "config.json").write_text(json.dumps(config))
    if backend == "openvino":
        message = message.replace("ONNX Runtime \\", "OpenVINO").replace("by ONNX Runtime", "by OpenVINO")
    with pytest.raises(PertinenceError, match=message) as caught:
        PertinenceForImageClassification.from_pretrained(changed, backend=backend)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_another_revision_of_the_checkpoint_is_refused(changed, backend):
    config = json.loads((changed / "config.json").read_text())
    config["experts"][0]["exports"][0]["revision"] = "0" * 40
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(PertinenceError, match="model.onnx was exported from revision '0{40}' of its checkpoint, but"):
        PertinenceForImageClassification.from_pretrained(changed, backend=backend)


@pytest.mark.parametrize(
    "values",
    [
        {"file": "../../secret.onnx"},
        {"file": "experts/0/onnx/../../../x.onnx"},
        {"sha256": "0"},
        {"input_shape": [3, 64]},
        {"precision": "int2"},
        {"opset": True},
        {"agreement": {"images": "many"}},
    ],
    ids=str,
)
def test_a_hostile_description_is_refused(changed, values):
    config = json.loads((changed / "config.json").read_text())
    config["experts"][0]["exports"][0] |= values
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(PertinenceError, match="exported file"):
        PertinenceForImageClassification.from_pretrained(changed, backend="onnx")


def test_a_link_out_of_the_folder_is_refused(changed, tmp_path):
    path = changed / "experts/0/onnx/model.onnx"
    path.rename(tmp_path / "outside.onnx")
    path.symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(PertinenceError, match="is a link that leads out of"):
        PertinenceForImageClassification.from_pretrained(changed, backend="onnx")
