"""A `config.json` of timm beside weights says what nobody gives; what is given wins."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import LABELS, SEEN, SHOWN, assert_answers_like, network
from safetensors.torch import save_file
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor

from pertinence import Conversion, ConversionArguments, PertinenceError, convert_checkpoint
from pertinence.experts.conversion.timm_configs import read_timm_config


NAMES = list(LABELS.values())
IMAGES = {**SEEN, "std": (0.5,) * 3, "crop_mode": "center"}
SAVED = {"label_names": NAMES, "pretrained_cfg": IMAGES}


def convert(file: Path, **settings: Any) -> Conversion:
    return convert_checkpoint(file, ConversionArguments(output_dir=f"{file}-expert", **settings))


def refusal(file: Path, **settings: Any) -> str:
    with pytest.raises(PertinenceError) as refused:
        convert(file, **settings)
    assert not Path(f"{file}-expert").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as timm writes it by default: weights in a pickle, and `config.json`."""
    save_for_hf(network(), str(tmp_path / "saved"), SAVED)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "pytorch_model.bin"}
    return tmp_path / "saved"


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_folder_of_timm_needs_no_settings(saved: Path) -> None:
    converted = convert(saved)
    assert_answers_like(network(), converted.folder, **SEEN)
    assert converted.source == "pytorch_model.bin"
    assert converted.preprocessing_source == f"recorded in {saved / 'config.json'}"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt"])
def test_a_file_beside_a_config_needs_none_either(name: str, saved: Path) -> None:
    (saved / "pytorch_model.bin").rename(saved / name)
    assert_answers_like(network(), convert(saved / name).folder, **SEEN)


def test_the_format_of_earlier_versions_is_read(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    torch.save(network().state_dict(), tmp_path / "old" / "pytorch_model.bin")
    values = {"architecture": "test_resnet", "num_classes": 3, "num_features": 512, "labels": NAMES, **IMAGES}
    (tmp_path / "old" / "config.json").write_text(json.dumps(values))
    assert_answers_like(network(), convert(tmp_path / "old").folder, **SEEN)


@pytest.mark.parametrize(
    "options", [{"img_size": 48}, {"img_size": 48, "dynamic_img_size": True}, {"global_pool": "avg"}], ids=str
)
def test_arguments_of_the_network_are_kept(options: dict[str, Any], tmp_path: Path) -> None:
    model = network("test_vit", **{"img_size": 160, **options})
    size = options.get("img_size", 160)
    saved = {**SAVED, "pretrained_cfg": {**IMAGES, "input_size": (3, size, size)}}
    save_for_hf(model, str(tmp_path / "vit"), saved)
    converted = convert(tmp_path / "vit")
    assert_answers_like(model, converted.folder, **{**SEEN, "input_size": (3, size, size)})
    assert converted.model_args.keys() >= options.keys() - {"img_size"}


def test_a_transformer_of_an_earlier_version_sees_images_of_its_own_size(tmp_path: Path) -> None:
    model, folder = network("test_vit", img_size=48), tmp_path / "vit"
    save_for_hf(model, str(folder), SAVED)
    usual = {**json.loads((folder / "config.json").read_text())["pretrained_cfg"], "input_size": [3, 160, 160]}
    usual["fixed_input_size"] = True
    changed(folder, pretrained_cfg=usual, model_args={"img_size": 48})
    assert_answers_like(model, convert(folder).folder, **SEEN)


def test_what_is_given_wins(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("owl\nyak\nzebra\n")
    converted = convert(saved, labels=str(tmp_path / "names.txt"), image_size=64, mean=[0.1], crop_pct=1.0)
    assert converted.labels == ["owl", "yak", "zebra"]
    steps = converted.preprocessing
    assert (steps["input_size"], steps["crop_pct"], steps["interpolation"]) == ((3, 64, 64), 1.0, "bilinear")
    assert steps["mean"] == (0.1, 0.1, 0.1)
    assert converted.preprocessing_source == f"given, then recorded in {saved / 'config.json'}"


def test_a_config_of_another_network_is_not_used_for_the_one_that_is_named(saved: Path) -> None:
    torch.save(network("test_vit").state_dict(), saved / "pytorch_model.bin")
    assert "does not hold the weights of test_resnet" in refusal(saved)
    converted = convert(saved, architecture="test_vit")
    assert converted.preprocessing["input_size"] == (3, 160, 160)
    assert converted.preprocessing_source == "timm's defaults for test_vit"


def test_what_the_file_itself_records_wins_over_the_config(saved: Path) -> None:
    args = argparse.Namespace(model="test_resnet", img_size=64, crop_pct=0.8)
    torch.save({"state_dict": network().state_dict(), "args": args}, saved / "last.pth.tar")
    converted = convert(saved / "last.pth.tar")
    assert converted.preprocessing["input_size"] == (3, 64, 64)
    assert converted.labels == NAMES
    changed(saved, architecture="test_vit")
    shutil.rmtree(converted.folder)
    words = "records the architecture 'test_resnet', but config.json beside it 'test_vit'"
    assert words in refusal(saved / "last.pth.tar")
    assert convert(saved / "last.pth.tar", architecture="test_resnet").architecture == "test_resnet"


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"label_names": {"0": "cat", "1": "dog", "2": "fox"}}, NAMES),
        ({"label_names": None, "id2label": {"0": "cat", "1": "dog", "2": "fox"}}, NAMES),
        ({"label_names": ["11", "12", "13"], "label_descriptions": {"11": "cat", "12": "dog", "13": "fox"}}, NAMES),
        ({"label_names": ["n01", "n02", "n03"], "label_descriptions": {"n01": "cat"}}, ["n01", "n02", "n03"]),
    ],
)
def test_names_of_labels(changes: dict[str, Any], labels: list[str], saved: Path) -> None:
    converted = convert(changed(saved, **changes))
    assert converted.labels == labels
    written = json.loads((converted.folder / "config.json").read_text())
    assert written.get("label_descriptions") == changes.get("label_descriptions")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_names": None}, r"names of the labels are missing: give a file, --labels FILE"),
        ({"label_names": ["LABEL_0", "LABEL_1", "LABEL_2"]}, r"config\.json: .* only numbers.*--labels FILE"),
        ({"label_names": {"0": "cat", "1": "dog", "3": "fox"}}, r"config\.json: .*label 2 is missing.*--labels FILE"),
        ({"label_names": ["cat", "dog"]}, r"has 3 outputs, but there are 2 label names"),
        ({"model_args": {"in_chans": 1}}, r"takes images of 1 channels, expected 3 \(RGB\)"),
        ({"model_args": {"colour": "red"}}, r"timm cannot make test_resnet with colour='red'"),
        ({"model_args": {"layers": [10**6] * 4}}, r"is a much larger network than the weights in the file"),
        ({"model_args": [1]}, r"config\.json is not as timm writes it .*: save it again"),
        ({"pretrained_cfg": [1]}, r"config\.json is not as timm writes it"),
        ({"pretrained_cfg": {"input_size": 5}}, r"config\.json is not as timm writes it"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, r"records images of 1000000000 pixels a side"),
        ({"pretrained_cfg": {"mean": "red"}}, r"preprocessing that .*config\.json records makes no sense"),
    ],
)
def test_a_config_is_not_trusted(changes: dict[str, Any], sentence: str, saved: Path) -> None:
    assert re.search(sentence, refusal(changed(saved, **changes)))


def test_a_damaged_config_is_named(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(saved)


@pytest.mark.parametrize("names", [NAMES, None])
def test_what_is_an_expert_already_is_said(names: list[str] | None, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_for_hf(network(), str(folder), {**SAVED, "label_names": names}, safe_serialization=True)
    sentence = f"{folder} is an expert already: give it as it is, `--experts {folder}`, or say what is to be otherwise"
    assert refusal(folder).startswith(sentence)
    converted = convert(folder, labels={0: "owl", 1: "yak", 2: "zebra"})
    assert (converted.labels, converted.source) == (["owl", "yak", "zebra"], "model.safetensors")


def test_an_expert_of_transformers_is_one_already_and_no_other_is_converted(tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=32, patch_size=8, num_labels=3, id2label=LABELS, **small)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    assert refusal(folder, mean=[0.5]) == f"{folder} is an expert already: give it as it is, `--experts {folder}`"
    assert read_timm_config(folder) is None
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no weights in safetensors" in refusal(folder)


def test_folders_without_what_timm_writes_are_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "pytorch_model.bin").rename(saved / "weights.pth")
    assert refusal(saved).endswith("no model.safetensors or pytorch_model.bin: give the file of weights itself")
    (saved / "config.json").unlink()
    assert "has weights, but no config.json" in refusal(saved)
    assert "there is no file" in refusal(tmp_path / "nowhere")


def test_a_config_of_another_library_beside_a_file_is_not_read(saved: Path) -> None:
    (saved / "config.json").write_text('{"model_type": "vit", "id2label": {"0": "cat"}}')
    file = saved / "pytorch_model.bin"
    assert "names of the labels are missing" in refusal(file)
    assert_answers_like(network(), convert(file, architecture="test_resnet", labels=LABELS, **SHOWN).folder, **SEEN)


def test_weights_of_a_trainer_beside_the_config_of_transformers(saved: Path) -> None:
    """As transformers saves a network of timm that its `TimmWrapper` has trained, but in a pickle."""
    model = network()
    changed(saved, model_type="timm_wrapper", architectures=["TimmWrapperForImageClassification"])
    torch.save({f"timm_model.{name}": tensor for name, tensor in model.state_dict().items()}, saved / "last.pt")
    assert_answers_like(model, convert(saved / "last.pt").folder, **SEEN)


def test_safetensors_are_taken_before_the_pickle(saved: Path) -> None:
    other = network(seed=1)
    save_file(other.state_dict(), saved / "model.safetensors")
    assert_answers_like(other, convert(saved, image_size=48).folder, **SEEN)
