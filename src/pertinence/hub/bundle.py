"""What a push consists of: the files of a saved model and of its search, without what only this machine knows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from ..data.seen import SEEN
from ..experts.checkpoint_files import check_contained, hash_folder, read_json
from ..experts.entry import CONFIG
from ..experts.reference import LoadOptions
from ..utils.errors import MALFORMED, PertinenceError, explain
from ..utils.parsing import parse_json, parse_yaml, read_mapping
from ..utils.tensors import hash_tensors
from .configuration import PertinenceConfig, open_config
from .expert_files import files_to_copy, find_copies
from .layout import (
    BASELINES,
    CONVERGENCE_FIGURE,
    EXAMPLES_FIGURE,
    FRONT_FIGURE,
    NOT_STORED,
    RECORD,
    SEARCH_FILES,
    SETTINGS,
    SHARES_FIGURE,
    STATE,
    check_same_search,
    find_table_record,
)
from .licences import forbids_copies
from .model_card import Card, render_card


MODEL_FILES = ("model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json")
RUN_FILES = (BASELINES, SEEN, FRONT_FIGURE, SHARES_FIGURE, CONVERGENCE_FIGURE)
"""What goes along of a run as it is; its record and its settings without what only this machine knows."""
LOCAL = (
    "expert {!r} is on this machine only, so nobody could load the pushed model: push it with its experts, "
    "save_experts=True (--save-experts), or push that expert first and refer to it by its Hub id"
)
HEADER_SEARCHED = 2**20
"""Bytes of weights that are searched for paths of this machine: their header. Of other files all is."""


@dataclass
class Bundle:
    """What a push consists of.

    Attributes:
        config: of the model, as it is pushed.
        files: content, or the file that holds it, by path in the repository; without the card.
        record, settings: of the search, without what only this machine knows; None where there was none.
        folders: names of the local folders in the settings, by setting.
        guarded: "gated" or "private", by the names of experts that are.
        needs_code: names of experts that bring code of their own.
    """

    config: PertinenceConfig
    files: dict[str, Path | bytes]
    record: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    folders: dict[str, list[str]] = field(default_factory=dict)
    guarded: dict[str, str] = field(default_factory=dict)
    needs_code: list[str] = field(default_factory=list)

    @property
    def own_files(self) -> dict[str, Path | bytes]:
        """Those that are of this machine: not what experts have from the Hub, where everybody can read it."""
        copied = tuple(entry.repo_id.removeprefix("./") + "/" for entry in self.config.entries if entry.origin)
        return {path: content for path, content in self.files.items() if not path.startswith(copied)}

    def card(self, repo_id: str, tags: Sequence[str] = ()) -> str:
        """The text of the model card."""
        card = Card(
            repo_id,
            self.config,
            self.record,
            self.settings,
            self.folders,
            tuple(path for path in self.files if path.endswith(".png")),
            self.guarded,
            tuple(self.needs_code),
            tuple(tags),
        )
        try:
            return render_card(card)
        except (*MALFORMED, yaml.YAMLError) as error:
            raise PertinenceError(
                f"no card can be written from {RECORD} and {SETTINGS} ({explain(error)}): they are damaged; search "
                "again, or remove them"
            ) from error


def collect(
    folder: Path,
    work: Path,
    save_experts: bool = False,
    examples: bool = False,
    options: LoadOptions | None = None,
    expert_paths: Mapping[str, str] | None = None,
) -> Bundle:
    """What is to be pushed of a folder, except the card; asks the Hub only for the experts that it copies.

    Args:
        folder: of a saved model or of a result.
        work: for files that have to be changed first.
        save_experts, examples, expert_paths: as in `push_folder`.
        options: how experts are fetched.

    Raises:
        PertinenceError: as `push_folder`.
    """
    own = [path for pattern in (*MODEL_FILES, *SEARCH_FILES) for path in sorted(folder.glob(pattern))]
    check_contained([folder / CONFIG, *own], folder)
    config = _read_config(folder)
    files: dict[str, Path | bytes] = {
        path.name: path for pattern in MODEL_FILES for path in sorted(folder.glob(pattern)) if path.is_file()
    }
    check_same_search(folder, config.front)
    if (record := read_mapping(folder / RECORD, parse_json)) is not None:
        kept = (*RUN_FILES, *([EXAMPLES_FIGURE] if examples else []))
        files |= {name: folder / name for name in kept if (folder / name).is_file()}
    bundle = Bundle(config, files)
    _collect_experts(bundle, folder, work, save_experts, options or LoadOptions(), dict(expert_paths or {}))
    # Written by transformers, but not from its own object, which would fill in defaults.
    values = json.loads((folder / "config.json").read_text())
    files["config.json"] = _as_bytes({**values, "experts": config.experts, "stem": config.stem}, indent=2)
    if record is None:
        return bundle
    record.pop("run", None)
    bundle.record, files[RECORD] = record, _as_bytes(record, indent=1)
    if (settings := read_mapping(folder / SETTINGS, parse_yaml)) is not None:
        bundle.settings, bundle.folders = without_paths(settings)
        text = yaml.safe_dump(bundle.settings, sort_keys=False)
        files[SETTINGS] = (settings_note(bundle.folders) + text).encode()
    return bundle


def _read_config(folder: Path) -> PertinenceConfig:
    if find_table_record(folder) is not None:
        raise PertinenceError(
            f"{folder} is the result of a search on a table of predictions: there is no model to push"
        )
    if not (folder / "config.json").is_file():
        raise PertinenceError(f"{folder} is not the folder of a saved model: it has no config.json")
    if (folder / STATE).is_dir() and not (folder / RECORD).is_file():
        raise PertinenceError(f"the search in {folder} has not ended: run it again, it goes on from where it stands")
    config = open_config(folder)
    weights = folder / "model.safetensors"
    if config.heads_hash is not None and weights.is_file() and config.heads_hash != hash_tensors(load_file(weights)):
        raise PertinenceError(
            f"config.json and model.safetensors in {folder} do not belong together: save or copy the model anew"
        )
    return config


def _collect_experts(
    bundle: Bundle, folder: Path, work: Path, save_experts: bool, options: LoadOptions, expert_paths: dict[str, str]
) -> None:
    """Add the copies of experts to what is pushed, and refer to them; refused where they must not be copied."""
    config = bundle.config
    names = [*map(str, range(len(config.experts))), *(["stem"] if config.stem else [])]
    entries = dict(zip(names, config.entries, strict=True))
    if unknown := set(expert_paths) - {entry.name for entry in entries.values()}:
        raise PertinenceError(
            f"expert_paths names {sorted(unknown)}, but the experts are "
            f"{', '.join(entry.name for entry in entries.values())}"
        )
    entries = {
        home: entry.replace(repo_id=str(Path(expert_paths[entry.name]).resolve()))
        if entry.name in expert_paths
        else entry
        for home, entry in entries.items()
    }
    config.set_entries(list(entries.values()))
    local = [entry.name for entry in entries.values() if entry.is_local or entry.repo_id is None]
    if local and not save_experts:
        raise PertinenceError(LOCAL.format(local[0]))
    if not save_experts and not any(entry.is_embedded for entry in entries.values()):
        return
    for entry in entries.values():
        if forbids_copies(entry.licence):
            raise PertinenceError(
                f"expert {entry.name!r} is under the licence {entry.licence!r}, which forbids passing it on: "
                "refer to it by a Hub id instead of copying it, or leave it out"
            )
    copied = entries
    if not save_experts:
        copied = {home: entry for home, entry in entries.items() if entry.is_embedded}
    copies, folders = find_copies(copied, str(folder), options)
    for home, source in folders.items():
        files = files_to_copy(source)
        source = _without_own_path(source, files, work / home)
        revision = hash_folder(source)
        bundle.files |= {f"experts/{home}/{path.name}": source / path.name for path in files}
        for name, copy in copies.items():
            if copy.repo_id == f"./experts/{home}":
                copies[name] = copy.replace(revision=revision)
                if any(path.suffix == ".py" for path in files):
                    bundle.needs_code.append(copy.name)
    config.set_entries(list((entries | copies).values()))


def _without_own_path(source: Path, files: Sequence[Path], work: Path) -> Path:
    """An expert's folder, or a copy of its files whose config.json does not say where it was loaded from."""
    config = source / CONFIG
    values = read_json(config)
    if not _is_path(values.get("_name_or_path")):
        return source
    work.mkdir()
    for path in files:
        shutil.copyfile(path, work / path.name)
    (work / config.name).write_bytes(_as_bytes({key: v for key, v in values.items() if key != "_name_or_path"}, 2))
    return work


def without_paths(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Settings of a search with names in place of the paths of local folders and files, and those names by setting."""
    names: dict[str, list[str]] = {}

    def named(value: Any, setting: str) -> Any:
        if isinstance(value, dict):
            return {key: named(item, setting) for key, item in value.items()}
        if isinstance(value, list):
            return [named(item, setting) for item in value]
        if not _is_path(value):
            return value
        names.setdefault(setting, []).append(Path(value).name)
        return Path(value).name

    private = (*NOT_STORED, "cache_dir")
    changed = {name: named(value, name) for name, value in settings.items() if name not in private}
    if "output_dir" in changed:  # nobody else's, but a search needs one
        changed["output_dir"] = Path(str(changed["output_dir"])).name
        names.pop("output_dir", None)
    return changed, names


def settings_note(folders: Mapping[str, Sequence[str]]) -> str:
    """What somebody who runs settings again must know of the names in them; nothing where there are no such names."""
    if not folders:
        return ""
    named = "; ".join(f"{setting}: {', '.join(dict.fromkeys(names))}" for setting, names in folders.items())
    return f"# These are names of local folders, to be replaced by your own: {named}\n"


def check_no_paths(files: Mapping[str, Path | bytes], folders: Sequence[Path] = ()) -> None:
    """Refuse files that name a folder of this machine: home, working folder, or one of those given."""
    # Folders like /tmp and /content are everybody's.
    known = {Path.home(), *(path for path in (Path.cwd(), *folders) if len(path.absolute().parts) > 2)}
    paths = {str(spelt) for path in known for spelt in (path.absolute(), path.resolve()) if len(spelt.parts) > 1}
    for name, content in files.items():
        if isinstance(content, Path):
            with content.open("rb") as file:
                content = file.read(HEADER_SEARCHED if content.suffix == ".safetensors" else -1)
        for path in paths:
            # Not the end of a longer path or of a URL, and not the beginning of a longer name.
            if re.search(rb"(?<![\w.:/-])" + re.escape(path.encode()) + rb"(?![\w.-])", content):
                raise PertinenceError(f"{name} names a folder of this machine, {path}: take that out, then push again")


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("./", "../", "~")))


def _as_bytes(values: dict[str, Any], indent: int) -> bytes:
    return (json.dumps(values, indent=indent) + "\n").encode()
