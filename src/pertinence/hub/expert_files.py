"""The files of the experts of a saved model: located by their references, or copied into the model's own folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..experts.base import ExpertLike
from ..experts.checkpoint_files import (
    LEGAL_FILES,
    Tensors,
    check_contained,
    checkpoint_files,
    expert_weights,
    hash_folder,
    is_content,
)
from ..experts.expert import Expert
from ..experts.loading import Backbone, open_checkpoint
from ..experts.preprocessing import is_timm_processor
from ..experts.reference import ExpertReference, LoadOptions
from ..experts.remote_code import copy_into, fetch_checkpoint, write_with_code
from ..runtime.entry import CONFIG, ExpertEntry, is_on_hub
from ..utils.downloads import fetch
from ..utils.errors import PertinenceError, first_line
from ..utils.hub_errors import explain_hub
from ..utils.io import give_usual_mode
from ..utils.validation import is_commit


def move_entries(entries: Iterable[ExpertEntry], expert_paths: Mapping[str, Any]) -> list[ExpertEntry]:
    """The entries, with the folders that local experts have moved to.

    Args:
        entries: entries of the experts of a saved model.
        expert_paths: new folders, by expert name.

    Raises:
        PertinenceError: `expert_paths` names an unknown expert.
    """
    entries = list(entries)
    names = [entry.name for entry in entries]
    if unknown := set(expert_paths) - set(names):
        raise PertinenceError(f"expert_paths names {sorted(unknown)}, but the experts are {', '.join(names)}")
    return [
        entry.replace(repo_id=str(Path(expert_paths[entry.name]).resolve())) if entry.name in expert_paths else entry
        for entry in entries
    ]


def locate(entry: ExpertEntry, source: str, revision: str | None, options: LoadOptions, subfolder: str = "") -> str:
    """The Hub id or folder to load an expert of a saved model from.

    Args:
        entry: entry in the model's config.
        source, revision: folder or Hub id that the model itself was loaded from, and its commit.
        options: how files are downloaded from the Hub.
        subfolder: subfolder of the model in `source`.
    """
    name, repo_id = entry.name, entry.repo_id
    if repo_id is None:
        raise PertinenceError(f"expert {name!r} has no reference in config.json")
    if entry.is_embedded:
        root, home = Path(source), Path(subfolder) / repo_id
        with naming(name, source, revision):
            if not root.is_dir():
                root = fetch(source, revision, [f"{home.as_posix()}/*"], **options.hub)
            check_contained([root / home, *(root / home).rglob("*")], root)
        return str((root / home).resolve())
    # A path of another operating system is relative here.
    if entry.is_local and not (Path(repo_id).is_absolute() and Path(repo_id).is_dir()):
        raise PertinenceError(
            f"expert {name!r} was in the folder {repo_id}, which does not exist: say where it has moved to with "
            f"expert_paths={{{name!r}: folder}} (--expert-paths)"
        )
    return repo_id


def find_folder(
    entry: ExpertEntry, source: str, revision: str | None, options: LoadOptions, subfolder: str = ""
) -> Path:
    """The folder with the files of an expert of a saved model, downloaded if necessary; see `locate`."""
    where = locate(entry, source, revision, options, subfolder)
    folder = Path(where)
    with naming(entry.name, where, entry.revision):
        if is_on_hub(where):
            folder = fetch_checkpoint(where, entry.revision, options)
        weights = expert_weights(folder)
        # Offline, the client does not notice that only a part of a repository is cached.
        if not weights or not all(path.is_file() for path in (folder / CONFIG, *weights)):
            raise PertinenceError(
                f"the checkpoint in {folder} is incomplete: connect and load it once, or restore the folder"
            )
    return folder


@contextmanager
def naming(name: str, source: str, revision: str | None) -> Iterator[None]:
    """Name the expert in every error, and explain errors of the Hub.

    Args:
        name: name of the expert.
        source, revision: the requested Hub id or folder, and the commit.

    Raises:
        PertinenceError: instead of any other error.
    """
    try:
        yield
    except Exception as error:  # the Hub's client raises errors of HTTP, of the network, and its own
        reason = explain_hub(source, revision, error) or first_line(error)
        raise PertinenceError(f"expert {name!r}: {reason}") from error


def check_unchanged(entry: ExpertEntry, revision: str, folder: Path) -> None:
    """Raise `PertinenceError` if the files of an expert are not those that its figures were measured with.

    Args:
        entry: entry in the model's config.
        revision: content hash of the files.
        folder: the folder that they come from.
    """
    if not is_commit(entry.revision) and not is_content(entry.revision, revision, folder):
        raise PertinenceError(
            f"expert {entry.name!r} in {entry.repo_id} has changed since this model was made: its figures no "
            "longer hold, so restore the folder or search again"
        )


def save_components(components: Mapping[str, ExpertLike], folder: Path) -> None:
    """Copy the files of experts to subfolders of `folder` that have their names."""
    for name, expert in components.items():
        _save_expert(expert, folder / name)


def _save_expert(expert: ExpertLike, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = expert.find_folder()
    if source is None:
        assert isinstance(expert, Expert)  # a lazy one has a folder
        model = expert.checkpoint.model
        assert not isinstance(model, Backbone)  # only made of files
        model.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):
            give_usual_mode(path)
        if not is_timm_processor(expert.checkpoint.processor):  # that of timm is a part of config.json
            expert.checkpoint.processor.save_pretrained(folder)
        _check_saved(expert, folder)
        return
    copy_files(source, folder, expert.find_code())


def copy_files(source: Path, folder: Path, code: Mapping[str, Path]) -> None:
    """Copy the files of an expert to an existing folder, and its code in other repositories beside them.

    Args:
        source: folder of the expert.
        folder: folder to write to.
        code: folders of its code in other repositories, see `fetch_code`.
    """
    copy_into(folder, files_to_copy(source))
    if code:
        write_with_code(source, code, folder)


def _check_saved(expert: Expert, folder: Path) -> None:
    """Raise `PertinenceError` unless the files of an expert that was given loaded answer as it does.

    What its classes do not save, such as a changed `forward`, would be lost without a word.
    """
    name, entry = expert.entry.name, expert.entry
    # Its code, if it has any of its own, runs in this process already.
    options = LoadOptions(dtype=expert.dtype, trust_remote_code=True)
    image = torch.randint(256, (1, 3, *entry.transform.size), generator=torch.Generator().manual_seed(0))
    try:
        checkpoint = open_checkpoint(ExpertReference(str(folder.resolve()), name=name), options)
        again = Expert.of(checkpoint, entry, expert.preprocessing).to(expert.device)
        answers = [one(image.to(torch.uint8))[0] for one in (expert, again)]
    except PertinenceError as error:
        raise PertinenceError(
            f"expert {name!r} cannot be saved, as its files do not load ({error}): save the model so that "
            "transformers loads it from a folder, and give that folder"
        ) from error
    if not torch.allclose(answers[0], answers[1], rtol=1e-2, atol=1e-3):
        raise PertinenceError(
            f"expert {name!r} cannot be saved, as its files answer otherwise than the model that was given: it has "
            "something that its class does not save, such as a replaced `forward`"
        )


def files_to_copy(folder: Path) -> dict[str, Path]:
    """The files of a copy of an expert, by their paths in its folder: those that it is loaded from, its card and its
    licence.

    Raises:
        PertinenceError: one of them is a link that leads out of the folder, or the weights are damaged.
    """
    legal = {path for pattern in LEGAL_FILES for path in folder.glob(pattern) if path.is_file()}
    files, weights = [*checkpoint_files(folder), *sorted(legal)], expert_weights(folder)
    # Valid weights may be links to other folders, as is usual on clusters; other files may not.
    Tensors.of(*weights)
    check_contained((path for path in files if path not in weights), folder)
    return {path.relative_to(folder).as_posix(): path for path in files}


def find_copies(
    entries: dict[str, ExpertEntry], source: str, options: LoadOptions
) -> tuple[dict[str, ExpertEntry], dict[str, Path]]:
    """Find what copies of experts would be made from, without loading any of them.

    Args:
        entries: entries in a saved model's config, by the names that their folders would have.
        source: folder of the model.
        options: how files are downloaded from the Hub.

    Returns:
        The entries with references to the copies, and the folder that each copy is made from.

    Raises:
        PertinenceError: a folder does not exist any more, or its content has changed.
    """
    homes: dict[Any, str] = {}
    copies, folders = {}, {}
    for name, entry in entries.items():
        home = homes.setdefault(entry.checkpoint_key, name)
        copies[name] = entry.copied_to(home)
        if home != name:
            continue
        folders[home] = find_folder(entry, source, None, options)
        if not entry.is_on_hub:
            check_unchanged(entry, hash_folder(folders[home]), folders[home])
    return copies, folders
