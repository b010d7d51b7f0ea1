"""Checkpoints that are not laid out as transformers saves one: they load, or a sentence has the commands that work."""

import json
import re
import shlex
import shutil
from pathlib import Path

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch.distributed import checkpoint as distributed
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.commands.main import main


from_experts = PertinenceForImageClassification.from_experts
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def other(make_expert, tmp_path_factory):
    return make_expert(tmp_path_factory.mktemp("other") / "other")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "vit"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=8, num_labels=10, **small)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "vit")


def refusal(*experts):
    with pytest.raises(PertinenceError) as caught:
        from_experts(experts, 0.5)
    return str(caught.value)


def answers(folder, other, images):
    model = from_experts([folder, other], 0.5)
    return next(expert for expert in model.experts if expert.entry.name == folder.name)(images)[0]


def run_advice(message):
    """Run the Python code of the command in a message."""
    exec(re.search('`python -c "(.*?)"`', message)[1], {})


@pytest.mark.parametrize("size", ["5GB", "8KB"], ids=["single", "sharded"])
def test_the_only_variant_is_loaded(original, other, folder, tmp_path, images, size):
    (folder / WEIGHTS).unlink()
    network = AutoModelForImageClassification.from_pretrained(original)
    network.save_pretrained(folder, variant="fp16", max_shard_size=size)
    expected = answers(original, other, images(4, 40))
    torch.testing.assert_close(answers(folder, other, images(4, 40)), expected)
    model = from_experts([folder, other], 0.5)
    model.save_pretrained(tmp_path / "model", save_experts=True)
    shutil.rmtree(folder)
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "model", lazy=True)
    assert torch.equal(again(images(4, 40)).logits, model(images(4, 40)).logits)


def test_of_several_variants_the_user_chooses(folder, other):
    shutil.copyfile(folder / WEIGHTS, folder / "model.bf16.safetensors")
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")
    message = refusal(folder, other)
    assert "it has model.bf16.safetensors, model.fp16.safetensors: rename the one that you mean" in message
    assert f"mv {folder}/model.bf16.safetensors {folder}/{WEIGHTS}" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "best.ckpt"])
def test_pickles_are_converted_by_the_command(original, folder, other, images, name):
    state = load_file(folder / WEIGHTS)
    state = (
        state if name.endswith("bin") else {"state_dict": {f"model.{key}": state[key] for key in state}, "epoch": 3}
    )
    torch.save(state, folder / name)
    (folder / WEIGHTS).unlink()
    message = refusal(folder, other)
    assert "pickles (pytorch_model.bin) are never opened" in message
    run_advice(message)
    expected = answers(original, other, images(4, 40))
    torch.testing.assert_close(answers(folder, other, images(4, 40)), expected)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_pickle_of_timm_is_converted_by_the_command(hub, other, tmp_path, monkeypatch, place):
    model = timm.create_model("test_resnet", num_classes=10)
    save_for_hf(model, str(tmp_path / "saved one"), {"label_names": [f"digit {number}" for number in range(10)]})
    hub.add_model("mending/timm", tmp_path / "saved one")
    message = refusal(tmp_path / "saved one" if place == "folder" else "mending/timm", other)
    command = re.search("`pertinence (convert .*?)`", message)[1]
    if place == "hub":
        assert "`hf download mending/timm --local-dir FOLDER`, then it has pytorch_model.bin" in message
        shutil.copytree(tmp_path / "saved one", tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    assert {path.name for path in Path("D").iterdir()} == {"config.json", WEIGHTS}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("kind", ["alone", "beside its base"])
def test_an_adapter_is_merged_by_the_command(original, other, tmp_path, monkeypatch, images, kind):
    folder = tmp_path / "adapter"
    if kind != "alone":
        shutil.copytree(original, folder)
    network = AutoModelForImageClassification.from_pretrained(original)
    settings = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    tuned = peft.get_peft_model(network, settings).eval()
    tuned.save_pretrained(folder)
    message = refusal(folder, other)
    assert f"'adapter': it is an adapter of another model, {original}" in message
    monkeypatch.chdir(tmp_path)
    run_advice(message)
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    pixels = images(4, 32) / 255
    with torch.no_grad():
        torch.testing.assert_close(merged(pixels).logits, tuned(pixels).logits, atol=1e-5, rtol=1e-4)
    from_experts([tmp_path / "merged", other], 0.5)


def test_a_command_has_nothing_of_an_untrusted_name_in_it(folder, other):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": 'x\')"; rm -rf ~; echo "'}))
    assert "of another model, BASE:" in refusal(folder, other)


def test_an_adapter_on_the_hub(hub, original, other, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    hub.add_model("mending/adapter", tmp_path)
    assert "it is an adapter of another model, someone/base" in refusal("mending/adapter", other)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_shards_of_distributed_training(original, folder, other, tmp_path):
    distributed.save(load_file(folder / WEIGHTS), checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    (folder / WEIGHTS).unlink()
    assert f"`accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}`" in refusal(folder, other)
    shutil.rmtree(folder / "pytorch_model_fsdp_0")
    (folder / "zero_to_fp32.py").touch()
    assert f"`python {folder}/zero_to_fp32.py {folder} {folder} --safe_serialization`" in refusal(folder, other)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_checkpoints_below_the_folder_are_named(hub, folder, original, other, tmp_path, place):
    run = tmp_path / "run"
    for step in (900, 1000):
        shutil.copytree(original, run / f"checkpoint-{step}")
    hub.add_model("mending/run", run)
    message = refusal(run if place == "folder" else "mending/run", other)
    assert "has no config.json, but checkpoint-900, checkpoint-1000 in it have" in message
    assert (f"{run}/checkpoint-1000" if place == "folder" else "--include 'checkpoint-1000/*'") in message


def test_a_pickle_on_the_hub(hub, folder, other):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    hub.add_model("mending/pickle", folder)
    message = refusal("mending/pickle", other)
    assert "`hf download mending/pickle --local-dir FOLDER`, then it has pytorch_model.bin: convert" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json: save the"),
        (lambda folder: (folder / "config.json").unlink(), "has weights, but no config.json"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "other.safetensors"), "it has other.safetensors: rename"),
        (lambda folder: (folder / WEIGHTS).unlink(), "there is nothing else to convert"),
        (
            lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
            "is a pointer of git-lfs, .*git lfs pull",
        ),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors"),
            "but not their model.safetensors.index.json",
        ),
    ],
    ids=["processor", "config", "name", "nothing", "lfs", "index"],
)
def test_what_is_missing_is_named(folder, other, change, words):
    change(folder)
    assert re.search(f"'vit': .*{words}", refusal(folder, other))


def test_a_file_is_no_checkpoint(folder, other):
    assert "is a file, expected a folder or a Hub id" in refusal(folder / WEIGHTS, other)
