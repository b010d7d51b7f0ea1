"""Checkpoints of people whom nobody knows: no code, no file from elsewhere, no memory because a file asks for it."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import LABELS, bounded, save_whole_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from pertinence import PertinenceConfig, PertinenceError, PertinenceForImageClassification
from pertinence.experts.audit import check_checkpoint, classifier_processors
from pertinence.experts.building import building_from
from pertinence.experts.checkpoint_files import hash_folder
from pertinence.hub.bundle import collect


Changed = Callable[..., Path]


class TouchOnLoad:
    """Unpickling one creates a file: so does code that somebody hides in a checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def whole(make_expert, tmp_path_factory) -> Path:
    """A model with copies of its experts, of timm (0, and the stem) and of transformers (1)."""
    return save_whole_model(tmp_path_factory.mktemp("whole"), make_expert)


@pytest.fixture
def changed(whole, tmp_path) -> Changed:
    """A function: a copy of the model in which some values of one of its JSON files are others."""

    def change(name: str = "config.json", **values: Any) -> Path:
        folder = tmp_path / "model"
        if not folder.exists():
            shutil.copytree(whole, folder)
        stored = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        for path, value in values.items():
            target = stored
            *parents, last = [int(key) if key.isdigit() else key for key in path.split("__")]
            for key in parents:
                target = target[key]
            target[last] = value
        (folder / name).write_text(json.dumps(stored))
        return folder

    return change


def load(folder: Path | str, **options: Any) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(folder, **options)


def refusal(folder: Path | str, **options: Any) -> str:
    """The one line that says why a model is not loaded, for which next to nothing was taken."""
    with bounded(), pytest.raises(PertinenceError) as refused:
        load(folder, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


# No code


def test_heads_in_a_pickle_are_not_opened(changed, whole, tmp_path):
    folder = changed()
    (folder / "model.safetensors").unlink()
    torch.save({"dispatcher.answers": TouchOnLoad(tmp_path / "opened")}, folder / "pytorch_model.bin")
    assert "has no model.safetensors; pickles (pytorch_model.bin) are never opened" in refusal(folder)
    shutil.copyfile(whole / "model.safetensors", folder / "model.safetensors")
    assert load(folder, use_safetensors=False).config.num_labels == len(LABELS)
    assert not (tmp_path / "opened").exists()


def test_an_expert_in_a_pickle_is_not_opened(changed, tmp_path):
    folder = changed()
    (folder / "experts" / "0" / "model.safetensors").unlink()
    torch.save({"fc.weight": TouchOnLoad(tmp_path / "opened")}, folder / "experts" / "0" / "pytorch_model.bin")
    assert "pickles (pytorch_model.bin) are never opened" in refusal(folder)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", ["evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", "", 7])
def test_an_index_leads_to_no_other_files(changed, tmp_path, name):
    folder = changed() / "experts" / "0"
    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": TouchOnLoad(tmp_path / "opened")}, folder / "evil.bin")
    index = {"metadata": {}, "weight_map": {"fc.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names files that are no safetensors files beside it" in refusal(folder.parents[1])
    assert not (tmp_path / "opened").exists()


def test_a_checkpoint_for_timm_leads_to_no_other_files(changed, tmp_path):
    torch.save({"fc.weight": TouchOnLoad(tmp_path / "opened")}, tmp_path / "evil.bin")
    folder = changed("experts/0/config.json", model_args={"checkpoint_path": str(tmp_path / "evil.bin")})
    assert "its model_args have checkpoint_path, which would read other files" in refusal(folder)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("architecture", ["hf-hub:tester/other", "local-dir:/tmp", "../resnet18"])
def test_an_architecture_leads_to_no_other_repository(changed, hub, architecture):
    folder = changed("experts/0/config.json", architecture=architecture)
    hub.requests.clear()
    assert "is not the name of a network of timm" in refusal(folder)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("expert", "setting", "value"),
    [
        ("0", "attn_implementation", "someone/attention"),
        ("1", "attn_implementation", "kernels-community/flash-attn2"),
        ("1", "_attn_implementation", "flash_attention_2"),
        ("1", "experts_implementation", "someone/experts"),
        ("1", "quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("1", "transformers_weights", "adapter_model.bin"),
        ("1", "fusion_config", {"patch": True}),
        ("1", "use_pretrained_backbone", True),
        (None, "attn_implementation", "someone/attention"),
        (None, "quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        (None, "transformers_weights", "other.safetensors"),
        ("1", "configuration_files", ["config.4.0.0.json"]),
        (None, "configuration_files", ["config.4.0.0.json"]),
    ],
)
def test_settings_have_nothing_imported_or_fetched(changed, hub, expert, setting, value):
    folder = changed("config.json" if expert is None else f"experts/{expert}/config.json", **{setting: value})
    before = set(sys.modules)
    hub.requests.clear()
    message = refusal(folder)
    assert "attention" in message if "attn" in setting else setting.strip("_") in message
    assert hub.requests == []
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {"bitsandbytes", "kernels"}


def test_a_setting_takes_no_methods_place(changed):
    assert "'build_front', which is the name of a method" in refusal(changed(build_front=None))
    with pytest.raises(PertinenceError, match="the name of a method"):
        AutoConfig.from_pretrained(changed(build_front=None))


@pytest.mark.parametrize("where", ["adapter_config.json", "experts/1/adapter_config.json"])
def test_an_adapter_leads_to_no_other_model(changed, where):
    folder = changed(where, base_model_name_or_path="someone/else", peft_type="LORA")
    assert "adapter" in refusal(folder)


def test_a_processor_brings_no_code(changed, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    folder = changed("experts/1/preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"},
                     image_processor_type="Processor")  # fmt: skip
    (folder / "experts" / "1" / "evil.py").write_text(code)
    assert "needs code of its own" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "values",
    [
        {
            "image_processor_type": "OneFormerImageProcessor",
            "repo_path": "someone/tracker",
            "class_info_file": "x.json",
        },
        {"feature_extractor_type": "OneFormerFeatureExtractor", "repo_path": "someone/tracker"},
        {"image_processor_type": "LayoutLMv3ImageProcessor", "apply_ocr": True, "tesseract_config": "-c debug_file=x"},
        {"image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": 10**10, "max_pixels": 10**11},
        {"image_processor_type": "Swin2SRImageProcessor", "size_divisor": 60_000},
        {"image_processor": {"image_processor_type": "LlavaNextImageProcessor"}},
        {"image_processor_type": "LayoutLMv2ImageProcessorFastFast"},
    ],
    ids=lambda values: str(next(iter(values.values()))),
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json", "config.json"])
def test_a_processor_is_that_of_a_classifier(changed, hub, values, name):
    folder = changed(f"experts/1/{name}", **values)
    hub.requests.clear()
    assert f"its {name} asks for " in (message := refusal(folder))
    assert "not for image classifiers" in message
    assert hub.requests == []


@pytest.mark.parametrize("kind", ["layoutlmv3", "oneformer", "sam"])
def test_a_processor_that_goes_with_the_type_is_that_of_a_classifier(changed, hub, kind):
    """A stem may be any backbone; without a class in its files transformers takes that of its type."""
    folder = changed("experts/stem/config.json", model_type=kind)
    (folder / "experts/stem/preprocessor_config.json").write_text('{"apply_ocr": true, "repo_path": "someone/else"}')
    hub.requests.clear()
    assert f"its model_type '{kind}' is not that of an image classifier" in refusal(folder)
    assert hub.requests == []


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation_autoset": True},
        {"stage_out_channels": [128, 512, 1024, 2048]},
        {"block_sizes": [2048]},
        {"patch_size": 2, "image_size": 384},  # of MobileViT, whose patches are those of a smaller map
        {"label2id": {"size": 0, "height": 10**6, "cat": 2}},
    ],
    ids=str,
)
def test_what_real_checkpoints_say_is_accepted(changed, values):
    assert check_checkpoint(changed("experts/1/config.json", **values) / "experts" / "1") is not None


@pytest.mark.parametrize("kind", ["ImageGPTImageProcessor", "Siglip2ImageProcessor"])
def test_a_processor_that_gives_no_pixels_is_said(changed, kind):
    folder = changed("experts/1/preprocessor_config.json", image_processor_type=kind, size=None) / "experts" / "1"
    with pytest.raises(PertinenceError, match=f"expert '1': its {kind}\\w* gives no images"):
        PertinenceForImageClassification.from_experts([folder, folder.parent / "0"], 0.6)


def test_code_that_is_trusted_may_have_settings_of_its_own(changed):
    changed("experts/1/preprocessor_config.json", max_pixels=10**6, auto_map={"AutoImageProcessor": "a.B"})
    folder = changed("experts/1/config.json", backbone="resnet18") / "experts" / "1"
    with pytest.raises(PertinenceError, match="has backbone"):  # transformers reads that, not the processor's code
        check_checkpoint(folder, trust_remote_code=True)
    changed("experts/1/config.json", auto_map={"AutoModelForImageClassification": "a.C"})
    assert check_checkpoint(folder, trust_remote_code=True) is not None
    with pytest.raises(PertinenceError, match="has backbone"):
        check_checkpoint(folder)


def test_processors_of_classifiers_are_known():
    """Those that public checkpoints have, under all the names that they have had."""
    kinds = ("ViT", "ConvNext", "Bit", "CLIP", "Beit", "DeiT", "EfficientNet", "MobileNetV2", "Siglip", "DINOv3ViT")
    assert {f"{kind}ImageProcessor" for kind in kinds} <= classifier_processors()


@pytest.mark.parametrize("kind", ["detr", "dpt", "upernet", "vitmatte", "maskformer", "vitpose", "timm_backbone"])
def test_a_backbone_leads_to_no_other_repository(changed, hub, kind):
    folder = changed("experts/1/config.json", model_type=kind, backbone="someone/tracker", use_timm_backbone=False)
    hub.requests.clear()
    assert "its config.json has backbone, which makes transformers load other files" in refusal(folder)
    assert hub.requests == []


# No file from elsewhere


@pytest.mark.parametrize(
    "reference",
    [
        "../../somewhere",
        "./experts/../../somewhere",
        "./experts/0/..",
        "/somewhere/../else",
        "https://example.org/model",
        "file:///somewhere",
        "C:\\somewhere\\..\\else",
        "C:somewhere",
        "someone/model@main",
        "a\x00b",
        "\x1b[2Jmodel",
        "two\nlines",
        "",
    ],
)
def test_a_reference_is_a_hub_id_a_folder_or_a_copy(changed, reference):
    assert "has repo_id" in refusal(changed(experts__0__repo_id=reference))


@pytest.mark.parametrize("revision", ["main", "../../refs", "v1", "0" * 39, "sha256:0", "0" * 40 + "\n"])
def test_a_revision_is_pinned(changed, revision):
    assert "has revision" in refusal(changed(experts__0__revision=revision))


@pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[31mred", "a\x00b", "\u202egpj", "x" * 500])
@pytest.mark.parametrize("of", ["experts__0__name", "front__0__name"])
def test_names_do_nothing_to_who_reads_them(changed, name, of):
    assert refusal(changed(**{of: name})).isprintable()


def test_a_link_leads_to_no_other_experts(changed, tmp_path):
    folder = changed()
    (folder / "experts" / "0").rename(tmp_path / "elsewhere")
    (folder / "experts" / "0").symlink_to(tmp_path / "elsewhere")
    assert "is a link that leads out of" in refusal(folder)


@pytest.mark.parametrize(
    "place",
    [
        "experts/0/README.md", "experts/0/config.json", "experts/0/LICENSE", "experts/0/src/net.py",
        "preprocessor_config.json", "front.png", "config.json", "search.yaml", "search_result.json",
    ],
)  # fmt: skip
def test_a_link_takes_no_file_of_this_machine_along(changed, tmp_path, place):
    folder = changed()
    front = json.loads((folder / "config.json").read_text())["front"]
    (folder / "search_result.json").write_text(json.dumps({"front": front}))  # only of a search figures are pushed
    (folder / place).parent.mkdir(exist_ok=True)
    known = (folder / place).read_text() if (folder / place).is_file() else "{}"
    (tmp_path / "secret").write_text(known)
    (folder / place).unlink(missing_ok=True)
    (folder / place).symlink_to(tmp_path / "secret")
    if place.startswith("experts"):
        assert "is a link that leads out of" in refusal(folder)
    with pytest.raises(PertinenceError, match="is a link that leads out of"):
        collect(folder, tmp_path / "work")


@pytest.mark.parametrize("place", ["LICENSE", "config.json"])
@pytest.mark.parametrize("within", ["", "snapshots", "models--a/snapshots"])
@pytest.mark.parametrize("of_a_path", [False, True])
def test_a_link_in_an_experts_folder_takes_no_file_along(whole, tmp_path, place, within, of_a_path):
    expert = tmp_path / within / "expert"
    shutil.copytree(whole / "experts" / "0", expert)
    if of_a_path:  # which a push takes out, in a copy
        values = json.loads((expert / "config.json").read_text()) | {"_name_or_path": "/somewhere"}
        (expert / "config.json").write_text(json.dumps(values))
    (tmp_path / "secret").write_text((expert / place).read_text() if (expert / place).is_file() else "{}")
    (expert / place).unlink(missing_ok=True)
    (expert / place).symlink_to(tmp_path / "secret")
    model = PertinenceForImageClassification.from_experts([expert, whole / "experts" / "1"], 0.6)
    with pytest.raises(PertinenceError, match="is a link that leads out of"):
        model.save_pretrained(tmp_path / "copied", save_experts=True)
    model.save_pretrained(tmp_path / "referring")
    with pytest.raises(PertinenceError, match="is a link that leads out of"):
        collect(tmp_path / "referring", tmp_path / "work", save_experts=True)


def test_a_link_beside_an_expert_takes_no_file_along(whole, tmp_path):
    expert = tmp_path / "expert"
    shutil.copytree(whole / "experts" / "0", expert)
    (tmp_path / "secret").write_text("{}")
    for name in ("extra.json", "extra.safetensors", "extra.py"):
        (expert / name).symlink_to(tmp_path / "secret")
    model = PertinenceForImageClassification.from_experts([expert, whole / "experts" / "1"], 0.6)
    model.save_pretrained(tmp_path / "copied", save_experts=True)
    assert not list((tmp_path / "copied").rglob("extra*"))
    model.save_pretrained(tmp_path / "referring")
    bundle = collect(tmp_path / "referring", tmp_path / "work", save_experts=True)
    assert not [path for path in bundle.files if "extra" in path]


def test_weights_that_are_none_are_not_taken_along(whole, tmp_path):
    expert = tmp_path / "expert"
    shutil.copytree(whole / "experts" / "0", expert)
    PertinenceForImageClassification.from_experts([expert, whole / "experts" / "1"], 0.6).save_pretrained(
        tmp_path / "referring"
    )
    (tmp_path / "secret").write_text("a key that nobody should see")
    (expert / "model.safetensors").unlink()
    (expert / "model.safetensors").symlink_to(tmp_path / "secret")
    config = tmp_path / "referring" / "config.json"
    values = json.loads(config.read_text())
    for entry in values["experts"]:
        if entry["repo_id"] == str(expert):
            entry["revision"] = hash_folder(expert)  # whoever made the link could write this, too
    config.write_text(json.dumps(values))
    with pytest.raises(PertinenceError, match="is damaged"):
        collect(tmp_path / "referring", tmp_path / "work", save_experts=True)


def test_weights_of_an_expert_may_lie_elsewhere(whole, tmp_path, images):
    expert = tmp_path / "expert"
    shutil.copytree(whole / "experts" / "0", expert)
    (expert / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (expert / "model.safetensors").symlink_to(tmp_path / "weights.safetensors")
    model = PertinenceForImageClassification.from_experts([expert, whole / "experts" / "1"], 0.6)
    model.save_pretrained(tmp_path / "saved", save_experts=True)
    assert torch.equal(load(tmp_path / "saved")(images(2, 40)).logits, model(images(2, 40)).logits)


def test_links_of_the_hubs_cache_are_followed(hub, whole, tmp_path, images):
    from huggingface_hub import snapshot_download

    hub.add_model("tester/whole", whole)
    folder = Path(snapshot_download("tester/whole", cache_dir=tmp_path))
    assert (folder / "experts" / "0" / "config.json").is_symlink()
    assert torch.equal(load(folder)(images(2, 40)).logits, load("tester/whole")(images(2, 40)).logits)


def test_a_model_from_the_hub_reads_no_folder_of_this_machine(changed, hub, whole, images):
    place = str(whole / "experts" / "0")
    hub.add_model("tester/somewhere-else", changed(experts__0__repo_id=place))
    assert f"is in the folder {place} of another machine" in refusal("tester/somewhere-else")
    model = load("tester/somewhere-else", expert_paths={"of-timm": place})  # where the user says so
    assert torch.equal(model(images(2, 40)).logits, load(whole)(images(2, 40)).logits)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_model_that_is_its_own_expert_is_refused(changed, hub, lazy, images):
    folder = changed(experts__0__repo_id="tester/cyclic")
    commit = hub.add_model("tester/cyclic", folder)
    hub.add_model("tester/outer", changed(experts__0__revision=commit))
    message = "expert 'of-timm': it is itself a pertinence model: give its experts instead"
    if lazy:
        model = load("tester/outer", lazy=True)
        with pytest.raises(PertinenceError, match=message):
            model(images(1, 40), operating_point="first")
    else:
        assert refusal("tester/outer") == message


def test_a_pertinence_model_is_no_expert(whole, tmp_path):
    with pytest.raises(PertinenceError, match="itself a pertinence model"):
        PertinenceForImageClassification.from_experts([whole, whole / "experts" / "0"], 0.5)


# No more memory, and no more time, than the files themselves are worth


@pytest.mark.parametrize("count", [10**9, 10**18, "1000000000", 1e9, -1, True])
def test_labels_are_counted_before_they_are_made(changed, count):
    folder = changed(id2label=None, num_labels=count)
    assert "labels" in refusal(folder)
    with bounded(), pytest.raises(PertinenceError, match="labels"):
        AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    "labels",
    [{str(index): "x" for index in range(10**6 + 1)}, {"0": "a", "7": "b"}, ["a", "b"], {"0": [1], "1": "b"}],
    ids=["many", "gap", "list", "nested"],
)  # fmt: skip
def test_impossible_labels_are_refused(changed, labels):
    assert "label" in refusal(changed(id2label=labels))


def test_experts_are_counted(changed):
    folder = changed()
    experts = json.loads((folder / "config.json").read_text())["experts"] * 5000
    assert "10000 entries, expected 1 to 256" in refusal(changed(experts=experts))


@pytest.mark.parametrize("width", [10**6 + 1, 10**12, 0, -3, 1.5, True])
def test_features_are_counted(changed, width):
    assert "has features" in refusal(changed(experts__0__features=width))


def test_heads_are_counted_before_they_are_made(changed):
    folder = changed(experts__0__features=10**6)
    points = [
        {
            "name": f"point {index}",
            "recipe": "paper",
            "members": [0, 1],
            "stages": [{"after": 0, "evidence": "features"}],
        }
        for index in range(1000)
    ]
    assert "would take" in refusal(changed(front=points, operating_point=None, guarantee=None))
    with bounded(), pytest.raises(PertinenceError, match="would take"):
        PertinenceForImageClassification(PertinenceConfig.from_pretrained(folder))
    too_many = [{**points[0], "name": str(index)} for index in range(10_001)]
    assert "at most 10000 operating points" in refusal(changed(front=too_many))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", [10**9, 10**9]),
        ("size", [64]),
        ("size", None),
        ("resize", 10**6),
        ("resize", [64, 0]),
        ("crop", [-1, 64]),
        ("window", "64"),
        ("processor_size", [1e9, 1]),
        ("mean", [0.5]),
        ("mean", [float("nan")] * 3),
        ("std", [0.0, 1.0, 1.0]),
        ("rescale", float("inf")),
        ("interpolation", "os.system"),
        ("library", "subprocess"),
        ("unknown", 1),
    ],
)
def test_an_impossible_transform_is_refused(changed, field, value):
    assert "`transform` is malformed" in refusal(changed(**{f"experts__0__transform__{field}": value}))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("experts/1/config.json", {"num_labels": 10**9, "id2label": None}, "claims 1000000000 labels"),
        ("experts/0/config.json", {"num_classes": 10**9}, "claims 1000000000 labels"),
        ("experts/0/config.json", {"label_names": ["x"] * (10**6 + 1)}, "more than 1000000 labels"),
        ("experts/1/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ("experts/0/config.json", {"model_args": {"layers": [10**9] * 4}}, "layers 1000000000"),
        ("experts/1/config.json", {"hidden_size": 96 * 10**6}, "a much larger network than its weights are"),
        ("experts/1/config.json", {"intermediate_size": 10**9}, "a much larger network than its weights are"),
        (
            "experts/1/config.json",
            {"model_type": "convnext", "num_stages": 1000, "depths": [1000] * 1000, "hidden_sizes": [1] * 1000},
            "a much larger network than its weights are",
        ),
        ("experts/1/config.json", {"image_size": 10**6}, "image_size 1000000"),
        ("experts/1/config.json", {"image_size": 512, "patch_size": 1}, "at most 40,000 patches"),
        ("experts/0/config.json", {"pretrained_cfg__input_size": [3, 10**6, 10**6]}, "input_size 1000000"),
        ("experts/0/config.json", {"pretrained_cfg__crop_pct": 1e-9}, "crop_pct 1e-09"),
        (
            "experts/0/config.json",
            {"pretrained_cfg__crop_pct": 0.2, "pretrained_cfg__input_size": [3, 2048, 2048]},
            "crop_pct 0.2 makes images be resized to more than 8,192 pixels",
        ),
        (
            "experts/0/config.json",
            {"architecture": "mobilenetv2_100", "model_args": {"depth_multiplier": 1e7}},
            "depth_multiplier 10000000.0",
        ),
        ("experts/1/preprocessor_config.json", {"crop_pct": 1e-3, "size": {"shortest_edge": 224}}, "crop_pct 0.001"),
        ("experts/1/preprocessor_config.json", {"anything": {"else": [10**5]}}, "else 100000"),
        ("experts/1/preprocessor_config.json", {"size": {"height": 10**6, "width": 10**6}}, "0 pixels|1000000"),
        ("experts/1/preprocessor_config.json", {"size": {"shortest_edge": 10**6}}, "shortest_edge 1000000"),
    ],
)
def test_an_expert_takes_no_more_than_its_files_are_worth(changed, name, values, words):
    assert any(word in refusal(changed(name, **values)) for word in words.split("|"))


@pytest.mark.parametrize("place", ["config.json", "experts/0/config.json"])
def test_a_large_file_of_settings_is_not_read(changed, place):
    folder = changed()
    with (folder / place).open("w") as file:
        file.truncate(2**26 + 1)
    assert "config.json is too large: it has 67,108,865 bytes, expected at most 67,108,864" in refusal(folder)


@pytest.mark.parametrize("place", ["config.json", "experts/0/config.json", "experts/1/preprocessor_config.json"])
def test_millions_of_empty_settings_are_not_read(changed, place):
    """As many as fit into the bytes take two GB."""
    folder = changed()
    values = json.loads((folder / place).read_text()) | {"more": []}
    (folder / place).write_text(json.dumps(values).replace('"more": []', f'"more": [{"{}," * 10**7}1]'))
    assert "is too large: it has more than" in refusal(folder)


def test_a_network_that_fits_its_weights_may_be_built(whole):
    """The budget is for this thread, and for as long as it is held."""
    tensors = check_checkpoint(whole / "experts" / "1")
    with building_from(tensors), pytest.raises(PertinenceError, match="much larger network"):
        torch.nn.Linear(10**5, 10**5, device="meta")
    torch.nn.Linear(10**5, 10**5, device="meta")


# NaN and infinity


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, "much", None, True, 10**400])
@pytest.mark.parametrize(
    "place",
    [
        "experts__0__gmacs",
        "front__0__select__gmacs",
        "front__0__select__samples",
        "front__0__select__accuracy",
        "front__0__latency__0__milliseconds",
        "experts__1__select__gmacs",
        "guarantee__tested__0__p_value",
    ],
)
def test_impossible_figures_are_refused(changed, place, value):
    if value is True and "experts__0" not in place:
        value = 2.5 if "accuracy" in place or "p_value" in place else "yes"
    refusal(changed(**{place: value}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_impossible_mixing_weights_are_refused(changed, value):
    refusal(changed(front__2__stages__0__mixing=[value]))


def test_figures_of_two_kinds_of_cost_are_refused(changed):
    assert "the same kinds of cost" in refusal(changed(front__1__select__latency=3.0))


def damaged_heads(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


WEIGHT = "dispatcher.stages.0_both.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[WEIGHT].fill_(torch.nan), "hold impossible numbers"),
        (lambda t: t[WEIGHT].view(-1)[:1].fill_(torch.inf), "hold impossible numbers"),
        (lambda t: t.update({WEIGHT: t[WEIGHT][..., :-1].contiguous()}), "do not fit its front"),
        (lambda t: t.update({WEIGHT: t[WEIGHT].long()}), "do not fit its front"),
        (lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.float8_e4m3fn)}), "do not fit its front"),
        (lambda t: t.pop(WEIGHT), "do not fit its front"),
        (lambda t: t.update({"dispatcher.more": torch.zeros(3)}), "do not fit its front"),
        (lambda t: t.update({"dispatcher.answers": -torch.ones(4, 2, 32)}), "hold impossible numbers"),
    ],
    ids=["nan", "infinity", "shape", "integers", "8 bits", "missing", "more", "negative counts"],
)
def test_impossible_heads_are_refused(changed, change, words):
    assert words in refusal(damaged_heads(changed(), change))


def test_heads_that_do_not_fit_take_no_memory(changed):
    """A sparse file of 2 GiB, of which only the header is read."""
    path = changed() / "model.safetensors"
    header = json.dumps({WEIGHT: {"dtype": "F32", "shape": [2**29], "data_offsets": [0, 2**31]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 2**31)
    assert "do not fit its front" in refusal(path.parent)


def test_weights_of_eight_bits_are_no_expert(changed):
    folder = changed()
    path = folder / "experts" / "0" / "model.safetensors"
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}, path)
    assert "F8_E4M3" in refusal(folder)


def test_an_expert_of_nan_is_named(changed, images):
    folder = changed()
    path = folder / "experts" / "0" / "model.safetensors"
    tensors = load_file(path)
    tensors["fc.weight"].fill_(torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(PertinenceError, match="expert 'of-timm' answers with NaN"):
        load(folder)(images(2, 40), operating_point="first")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "experts/0/config.json",
            {"pretrained_cfg__input_size": [3, 32, 0.5]},
            "'?TimmWrapperImageProcessor fails on",
        ),
        (
            "config.json",
            {"experts__1__transform__size": [40, 40], "experts__1__transform__resize": [40, 40]},
            "fails on",
        ),
    ],
    ids=["processor", "network"],
)
def test_an_expert_that_does_not_fit_its_settings_is_said(changed, images, name, values, words):
    model = load(changed(name, **values))
    with pytest.raises(PertinenceError, match=words):
        model(images(2, 40), operating_point="both")


def test_what_is_sound_stays_so(whole, images):
    model = load(whole)
    assert model.config.num_labels == len(LABELS)
    for point in model.front:
        assert model(images(3, 40), operating_point=point.name).logits.isfinite().all()
