"""Which files of a folder are an expert: those that decide its answers, and not what other tools leave beside them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.experts.checkpoint_files import checkpoint_files, hash_folder


load = PertinenceForImageClassification.from_pretrained

LEFT = (
    "eval_results.json", "all_results.json", "trainer_state.json", "training_args.bin", "optimizer.safetensors",
    "generation_config.json", "model.fp16.safetensors", "._config.json", ".DS_Store", "Thumbs.db", "train.py",
    "README.md", "runs/events", "checkpoint-9/config.json", "checkpoint-9/model.safetensors", "onnx/model.onnx",
    ".git/config", "__pycache__/train.pyc",
)  # fmt: skip


def leave(folder: Path) -> None:
    """What trainers, exporters and desktops write into the folder of a checkpoint."""
    for name in LEFT:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")


def former_hash(folder: Path) -> str:
    """The content hash of the first version."""
    return hash_of(folder, *(path.name for kind in ("*.json", "*.safetensors", "*.py") for path in folder.glob(kind)))


def hash_of(folder: Path, *names: str) -> str:
    """The content hash of some files; it must never change, as saved models record it."""
    digest = hashlib.sha256()
    for name in sorted(names):
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"sha256:{digest.hexdigest()}"


@pytest.fixture
def model(tiny_experts, tmp_path) -> PertinenceForImageClassification:
    """A model of two local experts, in the folders `own/...`."""
    folders = [shutil.copytree(folder, tmp_path / "own" / folder.name) for folder in tiny_experts]
    return PertinenceForImageClassification.from_experts(folders, 0.5)


@pytest.mark.parametrize("save_experts", [False, True], ids=["folders", "copies"])
def test_what_other_tools_leave_changes_nothing(model, tmp_path, caplog, save_experts):
    model.save_pretrained(tmp_path / "model", save_experts=save_experts)
    for folder in (tmp_path / "model/experts").glob("*") if save_experts else (tmp_path / "own").iterdir():
        leave(folder)
    load(tmp_path / "model").save_pretrained(tmp_path / "again", save_experts=True)
    load(tmp_path / "model", lazy=True).save_pretrained(tmp_path / "copy", save_experts=True)
    assert not caplog.records
    copied = {path.name for path in (tmp_path / "copy/experts/0").iterdir()}
    assert copied == {"config.json", "model.safetensors", "README.md"}
    assert load(tmp_path / "copy").config.experts == load(tmp_path / "again").config.experts


@pytest.mark.parametrize("is_copy", [False, True], ids=["folders", "copies"])
def test_hashes_of_earlier_versions_are_recognised(model, tmp_path, caplog, is_copy):
    model.save_pretrained(tmp_path / "model", save_experts=is_copy)
    vit = tmp_path / ("model/experts/0" if is_copy else "own/vit")
    (vit / "eval_results.json").write_text("{}")
    config = tmp_path / "model/config.json"
    values = json.loads(config.read_text())
    assert values["experts"][0]["revision"] == hash_folder(vit) != former_hash(vit)
    values["experts"][0]["revision"] = former_hash(vit)
    config.write_text(json.dumps(values))
    load(tmp_path / "model")
    load(tmp_path / "model", lazy=True).save_pretrained(tmp_path / "copy", save_experts=True)
    assert not caplog.records
    assert load(tmp_path / "copy").config.experts[0]["revision"] == hash_folder(vit)

    (vit / "config.json").write_text((vit / "config.json").read_text() + "\n")
    if is_copy:
        with pytest.raises(PertinenceError, match="the copy of expert 'vit' .* does not belong to config.json"):
            load(tmp_path / "model")
    else:
        load(tmp_path / "model")
        assert "'vit' in" in caplog.text
    with pytest.raises(PertinenceError, match="'vit' .* has changed since this model was made"):
        load(tmp_path / "model", lazy=True).save_pretrained(tmp_path / "refused", save_experts=True)


def test_copies_of_the_first_version_have_their_hashes():
    saved = Path(__file__).parents[1] / "fixtures/format_1"
    for index, entry in enumerate(json.loads((saved / "config.json").read_text())["experts"]):
        assert hash_folder(saved / "experts" / str(index)) == entry["revision"]


CODE = {
    "modeling_own.py": "from .layers import Layer\nfrom .configuration_own import OwnConfig\n",
    "configuration_own.py": "from transformers import PreTrainedConfig\n",
    "layers.py": "    from .deeper import depth\n",
    "deeper.py": "from .layers import Layer\n",
    "processing_own.py": "",
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of a checkpoint in several files, with an image processor and code of its own."""
    folder = tmp_path / "own"
    transformers.ViTImageProcessor().save_pretrained(folder)
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
    torch.manual_seed(0)
    network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**small))
    network.save_pretrained(folder, max_shard_size="2KB")
    for name, code in CODE.items():
        (folder / name).write_text(code)
    change_json(folder / "config.json", auto_map={"AutoConfig": "configuration_own.OwnConfig",
                                                 "AutoModelForImageClassification": "modeling_own.Own"})  # fmt: skip
    change_json(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": ["processing_own.Own", None]})
    return folder


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_all_that_decides_answers_counts(own: Path):
    shards = {path.name for path in own.glob("model-*.safetensors")}
    assert len(shards) > 1
    documents = {"config.json", "preprocessor_config.json", "model.safetensors.index.json"}
    leave(own)
    names = [path.name for path in checkpoint_files(own)]
    assert names == sorted(names)
    assert set(names) == documents | shards | set(CODE)
    before = hash_folder(own)
    assert before == hash_of(own, *names)
    for path in checkpoint_files(own):
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert hash_folder(own) != before, path.name
        path.write_bytes(content)
    (own / "processor_config.json").write_text("{}")
    assert hash_folder(own) != before


@pytest.mark.parametrize(
    ("file", "named", "needed"),
    [
        ("config.json", {"auto_map": {"AutoModel": "src/main.Own"}}, {"src/main.py", "src/part.py"}),
        ("config.json", {"auto_map": {"AutoModel": "src/deep-er/x.Own"}}, {"src/deep-er/x.py", "src/deep-er/y.py"}),
        ("config.json", {"auto_map": {"AutoModel": "my-net.Own"}}, {"my-net.py"}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "src/part.Own"}}},
         {"src/part.py"}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": {"torchvision": "src/part.Own",
                                                                          "pil": "my-net.Own"}}},
         {"src/part.py", "my-net.py"}),
    ],
    ids=["subfolder", "deeper", "hyphen", "nested", "backends"],
)  # fmt: skip
def test_code_counts_wherever_its_settings_name_it(own: Path, file: str, named: dict, needed: set[str]):
    modules = {
        "src/main.py": '"""\nfrom ./src/other import x\nfrom ..up import y\n"""\nfrom .part import z\n',
        "src/part.py": "import torch\n", "src/other.py": "", "src/deep-er/x.py": "from .y import z\n",
        "src/deep-er/y.py": "", "my-net.py": "", "part.py": "", "other.py": "", "up.py": "",
    }  # fmt: skip
    for name, code in modules.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(code)
    for name in ("config.json", "preprocessor_config.json"):
        change_json(own / name, auto_map=None)
    (own / file).write_text(json.dumps({**(json.loads((own / file).read_text()) if (own / file).exists() else {}),
                                        **named}))  # fmt: skip
    names = [path.relative_to(own).as_posix() for path in checkpoint_files(own)]
    assert {name for name in names if name.endswith(".py")} == needed
    before = hash_folder(own)
    assert before == hash_of(own, *names)
    for name in needed:
        content = (own / name).read_bytes()
        (own / name).write_bytes(content + b" ")
        assert hash_folder(own) != before
        (own / name).write_bytes(content)


@pytest.mark.parametrize("auto_map", ["someone/code--modeling_own.Own", "../outside.Own", "./layers.Own", 7, None])
def test_code_that_is_not_its_own_does_not_count(own: Path, auto_map):
    (own.parent / "outside.py").write_text("")
    for name in ("config.json", "preprocessor_config.json"):
        change_json(own / name, auto_map={"AutoModelForImageClassification": auto_map})
    assert not [path for path in checkpoint_files(own) if path.suffix == ".py"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda own: (own / "config.json").write_text("{"), "config.json is damaged"),
        (lambda own: (own / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/b"}}'), "names files"),
        (lambda own: (own / "layers.py").write_bytes(b"\xff"), "its layers.py cannot be read"),
    ],
    ids=["config", "index", "code"],
)  # fmt: skip
def test_what_names_other_files_must_be_readable(own: Path, spoil: Callable[[Path], object], words: str):
    spoil(own)
    with pytest.raises(PertinenceError, match=words):
        PertinenceForImageClassification.from_experts([own, own], 0.5)
