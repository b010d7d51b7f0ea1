"""What to do about a checkpoint that is not laid out as transformers saves one: a sentence with the commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any

from huggingface_hub import HfApi

from ..runtime.entry import CONFIG
from ..utils.downloads import fetch_file
from ..utils.errors import printable, shown
from .checkpoint_files import INDEX, SINGLE, read_json
from .reference import CONVERT, WEIGHTS, LoadOptions


ADAPTER = "adapter_config.json"
SHOWN = 3
PLAIN = re.compile(r"[\w./=: -]+")
SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
RESAVE = (
    "from transformers import AutoModelForImageClassification as Auto; "
    "Auto.from_pretrained('{0}').save_pretrained('{0}')"
)
EXTRACT = (
    "import torch; from safetensors.torch import save_file; "
    "state = torch.load('{0}/{1}', map_location='cpu', weights_only=True); "
    "state = state.get('state_dict', state.get('model', state)); "
    "save_file({{name: tensor.clone() for name, tensor in state.items()}}, '{0}/model.safetensors')"
)
MERGE = (
    "from peft import PeftModel; from transformers import AutoImageProcessor, AutoModelForImageClassification; "
    "base = AutoModelForImageClassification.from_pretrained('{1}'); "
    "PeftModel.from_pretrained(base, '{0}').merge_and_unload().save_pretrained('merged'); "
    "AutoImageProcessor.from_pretrained('{1}').save_pretrained('merged')"
)


def list_files(place: str, revision: str | None, options: LoadOptions) -> list[str]:
    """Paths of the files of a checkpoint, in its folder and its subfolders, or on the Hub; empty if unknown."""
    folder = Path(place)
    if not folder.is_absolute() and options.local_files_only:
        return []
    if folder.is_absolute():
        return sorted(path.relative_to(folder).as_posix() for one in ("*", "*/*") for path in folder.glob(one))
    try:
        return sorted(HfApi(token=options.token).list_repo_files(place, revision=revision))
    except Exception:  # it only makes a message more helpful
        return []


def explain_no_config(place: str, revision: str | None, options: LoadOptions) -> str:
    """Explain that a folder, or a repository on the Hub, has no config.json, and what to give instead."""
    files = list_files(place, revision, options)
    what = f"the folder {place}" if Path(place).is_absolute() else place
    if ADAPTER in files:
        return explain_adapter(place, revision, options)
    inner = list(
        {PurePosixPath(name).parent.as_posix() for name in files if name.endswith((f"/{CONFIG}", f"/{ADAPTER}"))}
    )
    if inner:
        inner.sort(key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)])
        last = printable(inner[-1])
        there = (
            f"give the one that you mean, such as {place}/{last}"
            if Path(place).is_absolute()
            else f"download the one that you mean, such as `hf download {place} --include {quote(last + '/*')} "
            f"--local-dir FOLDER`, and give FOLDER/{last}"
        )
        return f"{what} has no {CONFIG}, but {_names(inner)} in it {'has' if len(inner) == 1 else 'have'}: {there}"
    if any(name.endswith(WEIGHTS) for name in files):
        return (
            f"{what} has weights, but no {CONFIG}: put that of the model beside them, `model.config.save_pretrained`, "
            f"or make a checkpoint of the file, {CONVERT}"
        )
    return f"{what} has no {CONFIG}, so it is not a checkpoint"


def explain_no_weights(place: str, revision: str | None, options: LoadOptions) -> str:
    """Explain that a checkpoint has no weights that are read, and how to make them from those that it has."""
    is_local = Path(place).is_absolute()
    config = _read_beside(place, CONFIG, revision, options)
    is_of_timm = "architecture" in config or config.get("model_type") == "timm_wrapper"
    command = _conversion(place if is_local else "FOLDER", list_files(place, revision, options), is_of_timm)
    if command and not is_local:
        command = f"`hf download {place} --local-dir FOLDER`, then {command}, and give FOLDER"
    return (
        f"{place} has no weights in safetensors under the usual names; pickles (pytorch_model.bin) are never opened"
        f"{f': {command}' if command else ', and there is nothing else to convert'}"
    )


def explain_adapter(place: str, revision: str | None, options: LoadOptions) -> str:
    """Explain that a checkpoint is an adapter, and how to merge it into its base model."""
    base = _read_beside(place, ADAPTER, revision, options).get("base_model_name_or_path")
    if not isinstance(base, str) or not PLAIN.fullmatch(base):  # it goes into a command
        base = "BASE"
    return (
        f"it is an adapter of another model, {base}: merge it into that, and give the result, "
        f'`python -c "{MERGE.format(place, base)}"`, with the num_labels, id2label and label2id of the adapter if '
        "they are not those of the base"
    )


def _read_beside(place: str, name: str, revision: str | None, options: LoadOptions) -> dict[str, Any]:
    """The values in a JSON file of a folder, or of a repository on the Hub; empty if it cannot be read."""
    try:
        is_local = Path(place).is_absolute()
        return read_json(Path(place) / name if is_local else fetch_file(place, name, revision=revision, **options.hub))
    except Exception:  # it only makes a message more helpful
        return {}


def _conversion(place: str, files: Sequence[str], is_of_timm: bool) -> str | None:
    """What makes safetensors of the weights that a folder has, by the names of its files."""
    top = [name for name in files if "/" not in name]
    tensors = [name for name in top if name.endswith(".safetensors")]
    if shards := [name for name in tensors if SHARD.fullmatch(name)]:
        return f"it has the shards {_names(shards)}, but not their {INDEX}: put it beside them"
    if tensors:
        renaming = f"mv {quote(f'{place}/{tensors[0]}')} {place}/{SINGLE}"
        return f"it has {_names(tensors)}: rename the one that you mean, `{renaming}`"
    if distributed := [PurePosixPath(name).parent.as_posix() for name in files if name.endswith(".distcp")]:
        return f"merge the shards of FSDP, `accelerate merge-weights {quote(f'{place}/{distributed[0]}')} {place}`"
    if "zero_to_fp32.py" in top:
        script = f"`python {place}/zero_to_fp32.py {place} {place} --safe_serialization`"
        return f"merge the shards of DeepSpeed, if you trust the script that is there, {script}"
    if "pytorch_model.bin.index.json" in top:
        return f'convert it if you trust it, `python -c "{RESAVE.format(place)}"`, or, of a network of timm, {CONVERT}'
    if trained := [name for name in top if name.endswith(".tar")]:
        return f"it has {_names(trained)}: make a checkpoint of it, {CONVERT}"
    if pickles := [name for name in top if name.endswith(WEIGHTS)]:
        if "pytorch_model.bin" in pickles and is_of_timm:
            return f"it has {_names(pickles)}: `pertinence convert {quote(place)} --output-dir D`"
        known = [name for name in pickles if PLAIN.fullmatch(name)]
        how = f', `python -c "{EXTRACT.format(place, known[0])}"`' if known else ""
        return f"it has {_names(pickles)}: convert the one that you mean if you trust it{how}"
    return None


def _names(names: Sequence[str]) -> str:
    return ", ".join(shown(name)[1:-1] for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
