"""The runtime without torch answers as the full model: operating points, images, budgets, streams, threads."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import change_config
from PIL import Image

from pertinence import (
    Front,
    OperatingPoint,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    Stage,
    StreamDispatcher,
    register_evidence,
)
from pertinence.routing.certainty import NODES, Certainty
from pertinence.routing.heads import Head
from pertinence.routing.promises import CoveragePromise, ErrorPromise
from pertinence.routing.registry import EVIDENCE
from pertinence.runtime import RuntimeModel, load
from pertinence.runtime.config import ModelConfig
from pertinence.runtime.exports import check_self_contained
from pertinence.runtime.sessions import Session, Widths


POINTS = ("only-first", "from-stem", "from-features", "mixed", "confident")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(exported) -> RuntimeModel:
    return load(exported.folder, threads=1)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """120 pictures of coloured blobs and noise, of odd sizes and many modes."""
    generator, pictures = np.random.default_rng(0), []
    for index in range(120):
        small = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        size = tuple(map(int, generator.integers(20, 200, 2)))
        picture = Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)
        pictures.append(
            picture.convert(("RGB", "L", "RGBA", "P", "CMYK", "1", "YCbCr")[index % 7 if index % 2 else 0])
        )
    return pictures


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """A copy of the model's folder that a test may damage."""
    return Path(shutil.copytree(exported.folder, tmp_path / "model"))


def same_images(exported, pictures: list[Image.Image]) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """The pictures for the full model, and for the runtime in the size that the ResNet's processor leaves as it is.

    Where torchvision resizes, the pixels of the two differ a little; see test_pixels.py.
    """
    sized = [picture.convert("RGB").resize((72, 72)) for picture in pictures]
    return PertinenceImageProcessor()(sized)["images"], [np.asarray(picture) for picture in sized]


@pytest.mark.parametrize("point", POINTS)
def test_every_point_gives_the_same_logits_and_routes(exported, model, pictures, point):
    tensors, arrays = same_images(exported, pictures)
    expected = exported.full(tensors, operating_point=point)
    routing = model.route(arrays, point)
    np.testing.assert_array_equal(routing.experts_run, expected.experts_run)
    np.testing.assert_array_equal(routing.expert_indices, expected.expert_indices)
    np.testing.assert_allclose(routing.logits, expected.logits, atol=TOLERANCE)
    np.testing.assert_allclose(routing.gmacs, expected.gmacs, rtol=1e-6)
    np.testing.assert_allclose(routing.scores, expected.dispatcher_logits, atol=1e-3)
    if point != "only-first":
        assert len(set(routing.expert_indices.tolist())) > 1
    for row in range(0, len(arrays), 10):
        alone = model.route(arrays[row], point)
        np.testing.assert_allclose(alone.logits[0], routing.logits[row], atol=TOLERANCE)
        assert alone.expert_indices[0] == routing.expert_indices[row]


@pytest.mark.parametrize("point", ["only-first", "mixed"])
def test_images_of_any_size_and_mode_get_the_same_answers(exported, model, pictures, point):
    expected = exported.full(PertinenceImageProcessor()(pictures)["images"], operating_point=point)
    answers = model(pictures, operating_point=point)
    same = [
        answer.label == exported.full.config.id2label[int(logits.argmax())]
        for answer, logits in zip(answers, expected.logits, strict=True)
    ]
    assert np.mean(same) >= 0.98 if point == "mixed" else all(same)


def test_an_answer_names_what_ran_and_what_it_cost(exported, model, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    answer = model(tmp_path / "a.png", top_k=3)
    assert model(str(tmp_path / "a.png"), top_k=3).top == answer.top
    assert model((tmp_path / "a.png").read_bytes()).label == answer.label
    assert model(BytesIO((tmp_path / "a.png").read_bytes())).label == answer.label
    assert model([np.asarray(pictures[0])])[0].label == answer.label
    assert (answer.label, answer.score) == answer.top[0]
    assert len(answer.top) == 3
    assert answer.top[0][1] >= answer.top[1][1] >= answer.top[2][1]
    assert answer.expert == answer.experts_run[-1]
    assert answer.operating_point == "mixed"
    assert answer.logits.shape == (10,)
    probabilities = np.exp(answer.logits) / np.exp(answer.logits).sum()
    assert answer.score == pytest.approx(probabilities.max(), rel=1e-5)
    assert len(model(pictures[0], top_k=100).top) == 10


def test_an_expert_that_never_runs_is_never_opened(exported, pictures):
    model = load(exported.folder, operating_point="only-first")
    assert not any(expert.is_open for expert in model.experts.values())
    model(pictures[:3])
    assert [index for index, expert in model.experts.items() if expert.is_open] == [0]
    assert all(expert.is_open for expert in load(exported.folder, lazy=False).experts.values())


BUDGETS = [
    {"gmacs": 0.035},
    {"accuracy": 0.75},
    {"max_accuracy_loss": 0.02},
    {"operating_point": "from-stem"},
    {"costs": {"gmacs": 0.05}},
    {},
    {"gmacs": 0.001},
    {"gmacs": 1, "accuracy": 0.5},
    {"max_accuracy_loss": 1},
    {"accuracy": 80},
    {"latency_ms": 3},
    {"operating_point": "unknown"},
    {"accuracy": 0.7, "device": "cpu"},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_a_budget_chooses_and_refuses_as_in_the_full_model(exported, budget):
    model, results = load(exported.folder), []
    default = exported.full.config.operating_point
    for one in (exported.full, model):
        try:
            results.append(one.set_budget(**budget).name)
        except PertinenceError as error:
            results.append(str(error))
    assert results[0] == results[1]
    assert str(model.front) == str(exported.full.front)
    assert repr(model.front) == repr(exported.full.front)
    exported.full.config.operating_point = default


@pytest.mark.parametrize(
    "how", [{"interval": 3}, {"scene_change": 0.05}, {"interval": 4, "scene_change": 0.02}], ids=str
)
def test_a_stream_decides_and_answers_as_in_the_full_package(exported, model, images, how):
    frames = [frame for frame in images(6, 72, seed=1) for _ in range(5)]
    expected = StreamDispatcher(exported.full, **how)
    stream = model.stream(**how)
    for frame in frames:
        ours, theirs = stream.update(frame.permute(1, 2, 0).numpy()), expected.update(frame)
        assert (ours.expert_index, ours.dispatched) == (theirs.expert_index, theirs.dispatched)
        assert ours.change == theirs.change
        assert ours.gmacs == pytest.approx(theirs.gmacs)
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=TOLERANCE)
    assert 1 < stream.dispatches < stream.frames
    assert repr(stream) == repr(expected).replace("StreamDispatcher", "RuntimeStream")
    with pytest.raises(PertinenceError, match="give `interval`, `scene_change` or both"):
        model.stream()


def test_threads_share_one_model(exported, pictures):
    model = load(exported.folder, threads=1)
    expected = [answer.logits for answer in load(exported.folder, threads=1)(pictures[:24])]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(model, pictures[:24]))
    for answer, logits in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.logits, logits, atol=TOLERANCE)


def test_a_model_on_the_hub_is_loaded_with_only_what_runs(exported, hub, tmp_path, pictures):
    commit = hub.add_model("tester/exported", exported.folder)
    hub.requests.clear()
    model = load("tester/exported", cache_dir=str(tmp_path))
    assert model(pictures[0]) == load(exported.folder)(pictures[0])
    (snapshot,) = (tmp_path / "models--tester--exported" / "snapshots").iterdir()
    fetched = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    homes = (0, 1, 2, "stem")
    assert fetched == {"config.json", "model.safetensors", *(f"experts/{home}/onnx/model.onnx" for home in homes)}
    assert snapshot.name == commit
    hub.requests.clear()
    load("tester/exported", cache_dir=str(tmp_path), local_files_only=True)
    assert not hub.requests
    with pytest.raises(PertinenceError, match="has no revision 'missing'"):
        load("tester/exported", cache_dir=str(tmp_path), revision="missing")
    with pytest.raises(PertinenceError, match="neither a local folder nor a repository on the Hub"):
        load("tester/nothing", cache_dir=str(tmp_path))


def test_evidence_from_outside_runs_once_it_is_registered(exported, pictures, tmp_path, registered_evidence):
    points = [
        OperatingPoint("only-first", "static", (0,)),
        OperatingPoint("outside", "thresholds", (0, 2), (Stage(0, "runtime-top"),)),
    ]
    register_evidence(TopProbability())
    head = Head(np.array([[0], [-9], [-1]], np.float32), np.array([0, -9, 0.6], np.float32))
    names = [expert.entry.name for expert in exported.full.experts]
    stemless = list(exported.full.experts)
    full = PertinenceForImageClassification.compose(stemless, Front(points, names), {"outside": [head]}, "outside")
    folder = save_with_exports_of(exported.folder, full, tmp_path / "outside")
    tensors, arrays = same_images(exported, pictures[:40])
    routing = load(folder).route(arrays)
    np.testing.assert_array_equal(routing.expert_indices, full(tensors).expert_indices)
    assert set(routing.expert_indices.tolist()) == {0, 2}
    EVIDENCE._registered.pop("runtime-top")
    with pytest.raises(PertinenceError, match="evidence 'runtime-top' is not one of"):
        load(folder)


@pytest.fixture
def registered_evidence(monkeypatch):
    monkeypatch.setattr(EVIDENCE, "_registered", dict(EVIDENCE._registered))


class TopProbability:
    """The largest probability."""

    name, version, num_statistics = "runtime-top", 1, 0
    reads = ("log_probs",)

    def width(self, num_experts, num_features):
        return 1

    def fit(self, logits, tail=1):
        return None

    def compute(self, known, statistics):
        return np.exp(known.log_probs.max(1, keepdims=True))


def save_with_exports_of(other: Path, model: PertinenceForImageClassification, folder: Path) -> Path:
    """Save another model of the same experts, with copies of the graphs that were exported before."""
    entries = json.loads((other / "config.json").read_text())["experts"]
    model.save_pretrained(folder, save_experts=True)
    for index in range(len(entries)):
        shutil.copytree(other / "experts" / str(index) / "onnx", folder / "experts" / str(index) / "onnx")

    def add(values):
        for entry, exported_before in zip(values["experts"], entries, strict=True):
            entry["exports"] = exported_before["exports"]

    change_config(folder, add)
    return folder


def test_experts_with_a_label_map_answer_in_the_order_of_the_model(copied, pictures):
    change_config(copied, lambda values: [entry.update(label_map=[*range(9, -1, -1)]) for entry in values["experts"]])
    sized = [picture.convert("RGB").resize((72, 72)) for picture in pictures[:8]]
    full = PertinenceForImageClassification.from_pretrained(copied)
    expected = full(PertinenceImageProcessor()(sized)["images"])
    np.testing.assert_allclose(load(copied).route(sized).logits, expected.logits, atol=TOLERANCE)


# What is refused


def _drop_exports(values):
    values["experts"][1]["exports"] = None


def _unmeasured(values):
    for entry in values["experts"]:
        entry["exports"][0]["host_pixels"] = None


def _disagreeing(values):
    for entry in values["experts"]:
        if entry["exports"][0]["host_pixels"]:
            entry["exports"][0]["host_pixels"]["same_answers"] = 0.97


def _own_processor(values):
    values["experts"][0]["transform"]["library"] = "own"


def _unknown_evidence(values):
    values["front"][3]["stages"][0]["evidence"] = "tea-leaves"


def _other_heads(values):
    values["heads_hash"] = "0" * 64


def _without_features(values):
    values["experts"][0]["exports"][0]["has_features"] = False


def _other_file(values):
    values["experts"][0]["exports"][0]["sha256"] = "0" * 64


def _other_labels(values):
    values["id2label"] = {"0": "a", "1": "b"}


def _wide_label_map(values):
    values["experts"][0]["label_map"] = [*range(9), 12]


def _other_revision(values):
    values["experts"][1]["revision"] = "sha256:" + "0" * 64


REFUSED = {
    "not exported": (_drop_exports, "has no exported files, .* `pertinence export`"),
    "pixels not measured": (_unmeasured, "it was not measured what Pillow changes: export it again, with images"),
    "pixels that disagree": (_disagreeing, r"only 97.0 % of its answers are the same .*expected 99.5 %"),
    "code of its own": (_own_processor, "its preprocessing is code of its own"),
    "unknown evidence": (_unknown_evidence, "evidence 'tea-leaves' is not one of"),
    "heads of another model": (_other_heads, "do not belong together"),
    "no features": (_without_features, "reads features, which experts/0/onnx/model.onnx does not give"),
    "another file": (_other_file, "does not have the hash in config.json"),
    "no front": (lambda values: values.update(front=[], operating_point=None), "no operating points|do not fit"),
    "another kind": (lambda values: values.update(model_type="vit"), "is not a pertinence model"),
    "a point that is not there": (lambda values: values.update(operating_point="x"), "no operating point 'x'"),
    "labels": (_other_labels, "experts/0/onnx/model.onnx gives 10 logits, but config.json describes 2"),
    "labels of a label map": (_wide_label_map, "gives 10 logits, but its label_map names output 12"),
    "another revision": (
        _other_revision,
        "onnx/model.onnx was exported from revision .*, but config.json names .*0000'",
    ),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_in_one_sentence(copied, change, words):
    change_config(copied, change)
    with pytest.raises(PertinenceError, match=words):
        load(copied, lazy=False)


def test_a_graph_of_other_features_is_refused(exported):
    entry = ModelConfig.read(exported.folder / "config.json").experts[0]
    path = exported.folder / entry.exports[0].file
    with pytest.raises(PertinenceError, match="model.onnx gives .* features, but config.json describes 7"):
        Session.of(path, entry.exports[0], None, Widths(10, 7))


def test_a_file_name_chooses_among_files_of_the_precision_that_heads_were_fitted_to(copied, pictures):
    def add_int8(values):
        for index, entry in {"stem": values["stem"], **dict(enumerate(values["experts"]))}.items():
            (float32,) = entry["exports"]
            entry["exports"] = [
                {**float32, "file": f"experts/{index}/onnx/model_qint8.onnx", "precision": "int8"},
                float32,
            ]

    change_config(copied, add_int8)
    expected = load(copied)(pictures[0])
    assert load(copied, file_name="model.onnx")(pictures[0]) == expected
    with pytest.raises(PertinenceError, match=r"no exported file 'model_qint8.onnx' in float32; it has: model_qint8"):
        load(copied, file_name="model_qint8.onnx")
    change_config(copied, lambda values: values["experts"][0].update(backend="own-int8"))
    assert load(copied).experts[0].export.precision == "float32"


def test_bad_files_calls_and_images_are_refused(copied, model, tmp_path):
    with pytest.raises(PertinenceError, match="there is no folder .*nowhere here, and no repository on the Hub can"):
        load(tmp_path / "nowhere")
    with pytest.raises(PertinenceError, match="it is no file"):
        model("http://example.com/cat.jpg")
    with pytest.raises(PertinenceError, match="image 1 of 2: expected an image"):
        model([np.zeros((9, 9, 3), np.uint8), 3])
    with pytest.raises(PertinenceError, match="empty batch"):
        model([])
    with pytest.raises(PertinenceError, match="top_k must be"):
        model(np.zeros((9, 9, 3), np.uint8), top_k=0)
    with pytest.raises(PertinenceError, match="image 1 of 2: 2 x 120000 pixels would be resized"):
        model([np.zeros((9, 9, 3), np.uint8), np.zeros((2, 120000, 3), np.uint8)], operating_point="from-stem")
    with pytest.raises(PertinenceError, match="provider='Abacus' is not one of"):
        load(copied, provider="Abacus", lazy=False)
    with pytest.raises(PertinenceError, match="session_options and threads were both given, expected one"):
        load(copied, session_options=onnxruntime.SessionOptions(), threads=4)
    (copied / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PertinenceError, match="cannot be read"):
        load(copied)
    (copied / "config.json").write_text("[" * 100_000)
    with pytest.raises(PertinenceError, match="cannot be read as a config"):
        load(copied)


def test_logits_are_counted_where_they_are_not_the_first_output(copied, pictures):
    expected = load(copied)(pictures[:4])
    path = copied / "experts" / "0" / "onnx" / "model.onnx"
    graph = onnx.load(path)
    outputs = list(graph.graph.output)
    del graph.graph.output[:]
    graph.graph.output.extend(reversed(outputs))
    save_graph(graph, path, copied)
    assert load(copied, lazy=False)(pictures[:4]) == expected


def save_graph(graph: onnx.ModelProto, path: Path, folder: Path) -> None:
    """Write a changed graph of expert 0, and its hash into the config."""
    onnx.save(graph, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_config(folder, lambda values: values["experts"][0]["exports"][0].update(sha256=digest))


def test_only_a_key_location_is_weights_in_another_file(copied, pictures):
    expected = load(copied)(pictures[:4])
    path = copied / "experts" / "0" / "onnx" / "model.onnx"
    graph = onnx.load(path)
    graph.graph.node[0].name = "relocation"
    save_graph(graph, path, copied)
    assert load(copied, lazy=False)(pictures[:4]) == expected


@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00", b"\x88\x80\x00", b"\x88\x80\x80\x80\x00"])
def test_a_key_location_is_found_however_its_length_is_written(length):
    tensor = onnx.TensorProto(dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    entry = b"\x0a" + length + b"location" + b"\x12\x06secret"
    content = tensor.SerializeToString() + b"\x6a" + bytes([len(entry)]) + entry
    assert onnx.TensorProto.FromString(content).external_data[0].key == "location"
    with pytest.raises(PertinenceError, match="x has weights in another file, which could be any file"):
        check_self_contained(content, "x")


def test_scores_that_are_not_finite_are_refused_by_the_name_of_the_expert(copied, pictures):
    path = copied / "experts" / "0" / "onnx" / "model.onnx"
    graph = onnx.load(path)
    (bias,) = (one for one in graph.graph.initializer if list(one.dims) == [10])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    save_graph(graph, path, copied)
    with pytest.raises(PertinenceError, match="expert 'resnet': it answers with NaN"):
        load(copied)(pictures[0])


def test_any_damaged_config_is_refused_or_loads(copied):
    """Values of every kind in every place of the config: whatever is wrong is a `PertinenceError`."""
    generator = np.random.default_rng(0)
    path = copied / "config.json"
    original = path.read_text()
    strange = [None, -1, 10**30, float("nan"), "", "x" * 300, [], {}, [[]], True, {"a": None}, 0.5]
    for _ in range(300):
        values = json.loads(original)
        place = values
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[generator.integers(len(keys))]
            if isinstance(place[key], (dict, list)) and place[key] and generator.random() < 0.8:
                place = place[key]
                continue
            place[key] = strange[generator.integers(len(strange))]
            break
        path.write_text(json.dumps(values))
        with suppress(PertinenceError):
            load(copied)


# Certainty


@pytest.fixture
def certain(copied) -> Path:
    """A model that knows how certain its answers are, and promises some."""

    def add(values: dict) -> None:
        rng, errors, sets = np.random.default_rng(0), [], []
        for point in values["front"]:
            members = len(point["members"])
            rows = [np.c_[rng.normal(size=(members, 1)), rng.uniform(0.1, 0.5, (members, 3))] for _ in range(3)]
            nodes = np.linspace([3, 0.1, 0, 0.5], [-3, 1, 0.2, 1], len(NODES))
            point["certainty"] = Certainty(*(row.astype(np.float32) for row in (*rows, nodes))).to_dict()
            errors.append(asdict(ErrorPromise(point["name"], 0.05, 1.7, 50, 1, 0.01, 0.04)))
            sets.append(asdict(CoveragePromise(point["name"], 0.9, 0.8, 2.0)))
        values["promises"] = {"confidence": 0.95, "samples": 99, "images": "", "errors": errors, "sets": sets}

    change_config(copied, add)
    return copied


@pytest.mark.parametrize("point", POINTS)
def test_confidence_abstentions_and_sets_are_those_of_the_full_model(exported, certain, pictures, point):
    tensors, arrays = same_images(exported, pictures[:60])
    full, runtime = PertinenceForImageClassification.from_pretrained(certain), load(certain, threads=1)
    for rate in (None, 0.05):
        for model in (full, runtime):
            model.set_budget(operating_point=point, max_error_rate=rate)
        expected, routing = full(tensors, coverage=0.9), runtime.route(arrays, coverage=0.9)
        np.testing.assert_array_equal(routing.experts_run, expected.experts_run)
        np.testing.assert_array_equal(routing.abstained, expected.abstained)
        np.testing.assert_array_equal(routing.prediction_sets, expected.prediction_sets)
        np.testing.assert_allclose(routing.confidence, expected.confidence, atol=TOLERANCE)
        assert routing.abstained.any() == (rate is not None)
    answer = runtime(arrays[0], coverage=0.9)
    assert answer.confidence == pytest.approx(float(expected.confidence[0]), abs=TOLERANCE)
    assert answer.abstained == bool(expected.abstained[0])
    assert answer.prediction_set[0] == answer.label


def test_a_damaged_certainty_is_refused(certain):
    def cut(values: dict) -> None:
        values["front"][0]["certainty"]["exits"] = ["1 2 nan 4"]

    change_config(certain, cut)
    with pytest.raises(PertinenceError, match="certainty.*does not fit its 1 members"):
        load(certain)


def test_a_model_without_certainty_answers_everything(model, pictures):
    answer = model(pictures[0])
    assert (answer.confidence, answer.abstained, answer.prediction_set) == (None, False, None)
    with pytest.raises(PertinenceError, match="pertinence calibrate RUN --max-error-rate"):
        model.set_budget(max_error_rate=0.05, operating_point="mixed")
