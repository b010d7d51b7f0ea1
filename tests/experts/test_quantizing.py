"""8-bit graphs as experts of a search: calibrated on its images, kept with the model, run without a checkpoint."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    SearchArguments,
    register_cost,
)
from pertinence.experts.backends.base import Calibration
from pertinence.experts.expert import load_expert, measured_expert
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.routing.costs import COSTS, Cost
from pertinence.runtime import load


class Energy(Cost):
    """A cost that depends on what runs a network, as time does, and that is the same at every measurement."""

    name, title, unit = "energy", "J", "joules"
    depends_on_backend = True

    def measure(self, experts, how):
        return [expert.entry.gmacs * (0.3 if expert.entry.backend == "onnx-int8" else 1.0) for expert in experts]


@pytest.fixture(scope="module", autouse=True)
def energy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(COSTS, "_registered", dict(COSTS._registered))
        register_cost(Energy())
        yield


@pytest.fixture(scope="module")
def found(digits, digit_experts, tmp_path_factory):
    """The result of a search in which only 8-bit graphs are tried as variants, and its folder."""
    folder = tmp_path_factory.mktemp("int8")
    args = SearchArguments(cost="energy", variants="auto", cache_dir=str(folder / "cache"), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pertinence.search.proposals.possible_sizes", lambda checkpoint: [])
        patch.setattr("pertinence.search.proposals.price_of_pool", lambda right, costs: 10.0)
        patch.setattr(
            "pertinence.experts.backends.torch.TorchInt8Backend.is_offered", classmethod(lambda cls, *how: False)
        )
        result = DispatcherSearch(digit_experts[1:], digits[1], args, report_dataset=digits[2]).run()
    result.save(folder / "run")
    return result, folder / "run"


def int8_entries(folder):
    entries = json.loads((folder / "config.json").read_text())["experts"]
    return {index: entry for index, entry in enumerate(entries) if entry.get("backend") == "onnx-int8"}


@pytest.fixture
def batch(digits):
    from pertinence.data.dataset import LabelledImages, raise_or

    images = LabelledImages(digits[2])
    return raise_or([images[index] for index in range(100)])


@pytest.mark.nightly
def test_it_is_an_expert_of_the_saved_model(found):
    _, folder = found
    (index, entry), *_ = int8_entries(folder).items()
    (export,) = entry["exports"]
    assert entry["name"].endswith("-onnx-int8")
    assert export["file"] == f"experts/{index}/onnx/model_qint8.onnx"
    assert export["precision"] == "int8"
    assert export["sha256"] == hashlib.sha256((folder / export["file"]).read_bytes()).hexdigest()
    assert export["agreement"]["images"] > 0
    assert 0 < export["agreement"]["largest_difference"]


@pytest.mark.nightly
def test_the_saved_model_answers_as_the_found_one(found, batch):
    result, folder = found
    again = PertinenceForImageClassification.from_pretrained(folder)
    for point in again.front:
        expected, answers = (model(batch, operating_point=point.name) for model in (result.model, again))
        assert torch.equal(answers.logits, expected.logits)
        assert torch.equal(answers.experts_run, expected.experts_run)


def test_it_is_never_swapped_for_another(found, batch):
    _, folder = found
    entries = int8_entries(folder)
    again = PertinenceForImageClassification.from_pretrained(folder, backend="torch")
    assert [type(again.experts[index].network).__name__ for index in entries] == ["OnnxInt8Backend"] * len(entries)


def test_saved_elsewhere_it_comes_along(found, batch, tmp_path):
    _, folder = found
    model = PertinenceForImageClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "copy")
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "copy")
    assert torch.equal(again(batch).logits, model(batch).logits)


def test_without_its_file_the_model_is_refused(found, tmp_path):
    _, folder = found
    shutil.copytree(folder, tmp_path / "copy")
    for entry in int8_entries(folder).values():
        (tmp_path / "copy" / entry["exports"][0]["file"]).unlink()
    with pytest.raises(PertinenceError, match="the exported file .*qint8.onnx is missing"):
        PertinenceForImageClassification.from_pretrained(tmp_path / "copy")


@pytest.mark.nightly
def test_exported_with_the_others_it_runs_without_torch(found, batch, digits, tmp_path):
    from pertinence.evaluation.exports import export_onnx

    _, folder = found
    shutil.copytree(folder, tmp_path / "run")
    export_onnx(folder, tmp_path / "run", digits[2])
    full = PertinenceForImageClassification.from_pretrained(tmp_path / "run", backend="onnx")
    runtime = load(tmp_path / "run")
    for point in full.front:
        expected = full(batch, operating_point=point.name)
        answers = runtime.route([image.permute(1, 2, 0).numpy() for image in batch], operating_point=point.name)
        assert answers.experts_run.tolist() == expected.experts_run.tolist()
        assert torch.allclose(torch.from_numpy(answers.logits), expected.logits, atol=1e-4)


def test_a_reference_cannot_ask_for_it(digit_experts):
    pool = [{"repo_id": str(digit_experts[0]), "backend": "onnx-int8"}, str(digit_experts[1])]
    with pytest.raises(PertinenceError, match="8-bit graphs are calibrated on images of a search"):
        PertinenceForImageClassification.from_experts(pool, thresholds=0.5)


def test_what_cannot_be_quantized_is_not_tried_and_the_search_goes_on(
    digits, digit_experts, tmp_path, monkeypatch, caplog
):
    def fails(*args):
        raise PertinenceError("torch cannot export this network")

    monkeypatch.setattr("pertinence.experts.export_cache.exported", fails)
    monkeypatch.setattr("pertinence.experts.export_cache.CACHE", tmp_path / "empty")
    monkeypatch.setattr("pertinence.search.proposals.possible_sizes", lambda checkpoint: [])
    args = SearchArguments(cost="energy", variants="auto", cache_dir=str(tmp_path / "cache"), device="cpu")
    result = DispatcherSearch(digit_experts[1:], digits[1], args, report_dataset=digits[2]).run()
    assert "Not tried as a variant: " in caplog.text
    assert not any(entry.backend == "onnx-int8" for entry in result.model.config.expert_entries)


def test_weights_keep_to_seven_bits_so_that_no_processor_overflows(make_expert, images, tmp_path):
    expert = load_expert(ExpertReference(str(make_expert(tmp_path / "expert"))), LoadOptions())
    calibration = Calibration(list(images(160, 64)))
    made = measured_expert(expert.checkpoint, expert.entry, "exact", backend="onnx-int8", calibration=calibration)
    graph = onnx.load(made.network.path).graph
    quantized = [onnx.numpy_helper.to_array(one) for one in graph.initializer]
    weights = [values for values in quantized if values.dtype == np.int8 and values.ndim > 1]
    assert weights
    assert max(np.abs(values.astype(int)).max() for values in weights) == 64
    (export,) = made.entry.exports
    assert export.precision == "int8"
    assert export.agreement.images == 32
    assert export.agreement.same_answers >= 0.9
