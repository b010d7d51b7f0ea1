"""Where the experts of a saved model lie: found again by their references, or copied into the model's own folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from .checkpoints import LoadOptions, checkpoint_files
from .errors import PertinenceError
from .experts import Expert
from .files import share
from .preprocessing import is_timm_processor


EMBEDDED = re.compile(r"\./experts/(\d+|stem)")
"""Reference to an expert inside the model's own folder."""


def locate(entry: dict[str, Any], source: str, revision: str | None, options: LoadOptions) -> str:
    """Hub id or folder to load an expert of a saved model from; `source` is where the model itself was loaded from."""
    name, repo_id = entry["name"], entry["repo_id"]
    if repo_id is None:
        raise PertinenceError(f"expert {name!r} has no reference in config.json")
    if EMBEDDED.fullmatch(repo_id):
        root = Path(source)
        if not root.is_dir():
            pattern = f"{repo_id.removeprefix('./')}/*"
            root = Path(snapshot_download(source, revision=revision, allow_patterns=[pattern], **options.hub))
        return str((root / repo_id).resolve())
    if Path(repo_id).is_absolute() and not Path(repo_id).is_dir():
        raise PertinenceError(
            f"expert {name!r} was in the folder {repo_id}, which is not there: tell where it has moved to with "
            f"expert_paths={{{name!r}: folder}}"
        )
    return repo_id


def save_components(components: dict[str, Expert], folder: Path) -> None:
    """Copy the files of experts to folders of their names; replaces `folder` as a whole, so that nothing of another
    pool stays in it."""
    fresh = folder.with_name(".experts-incomplete")
    shutil.rmtree(fresh, ignore_errors=True)
    for name, expert in components.items():
        _save_expert(expert, fresh / name)
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)


def _save_expert(expert: Expert, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if expert.folder is None:
        expert.checkpoint.model.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):
            share(path)
        if not is_timm_processor(expert.checkpoint.processor):  # timm's is a part of config.json
            expert.checkpoint.processor.save_pretrained(folder)
        return
    for path in checkpoint_files(expert.folder):
        shutil.copyfile(path, folder / path.name)
