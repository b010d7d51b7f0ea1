"""The content of a push: the files of a saved model and of its search, without paths of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from ..data.seen import SEEN
from ..experts.checkpoint_files import check_contained, hash_folder, read_json
from ..experts.reference import LoadOptions
from ..experts.remote_code import commits_of, copy_into, fetch_code, needs_code
from ..runtime.entry import CONFIG
from ..utils.errors import MALFORMED, PertinenceError, explain
from ..utils.json_files import parse_json
from ..utils.parsing import parse_yaml, read_mapping
from ..utils.tensors import hash_tensors
from .configuration import PertinenceConfig, open_config
from .expert_files import copy_files, files_to_copy, find_copies, move_entries
from .layout import (
    BASELINES,
    CERTAINTY_FIGURE,
    CONVERGENCE_FIGURE,
    EXAMPLES_FIGURE,
    FRONT_FIGURE,
    RECORD,
    ROUTING_REFERENCE,
    SEARCH_FILES,
    SETTINGS,
    SHARES_FIGURE,
    STATE,
    check_same_search,
    find_table_record,
)
from .licences import forbids_copies
from .local_paths import is_path, settings_note, without_paths
from .model_card import Card, render_card
from .reference import load_reference


MODEL_FILES = ("model*.safetensors", "model.safetensors.index.json", ROUTING_REFERENCE, "preprocessor_config.json")
RUN_FILES = (BASELINES, SEEN, FRONT_FIGURE, SHARES_FIGURE, CERTAINTY_FIGURE, CONVERGENCE_FIGURE)
"""Files of a search that are pushed unchanged; its record and settings are pushed without paths of this machine."""
LOCAL = (
    "expert {!r} is on this machine only, so others could not load the pushed model: push it with its experts, "
    "save_experts=True (--save-experts), or push that expert first and refer to it by its Hub id"
)


@dataclass
class Bundle:
    """The content of a push.

    Attributes:
        config: config of the model as it is pushed.
        files: content, or the file that holds it, by path in the repository; without the card.
        record, settings: record and settings of the search, without paths of this machine; None if there was no
            search.
        folders: names of the local folders in the settings, by setting.
        guarded: "gated" or "private" by expert name, for experts that are either.
        needs_code: names of experts that come with code of their own.
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
        """The files, without copies of files on the Hub."""
        copied = tuple(f"{(entry.repo_id or '').removeprefix('./')}/" for entry in self.config.entries if entry.origin)
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
    """Collect what to push of a folder, except the card; requests from the Hub only the experts that it copies.

    Args:
        folder: folder of a saved model or of the result of a search.
        work: folder for files that must be changed before the push.
        save_experts, examples, expert_paths: see `push_folder`.
        options: how experts are downloaded.

    Raises:
        PertinenceError: see `push_folder`.
    """
    own = [path for pattern in (*MODEL_FILES, *SEARCH_FILES) for path in sorted(folder.glob(pattern))]
    check_contained([folder / CONFIG, *own], folder)
    config = _read_config(folder)
    files: dict[str, Path | bytes] = {
        path.name: path for pattern in MODEL_FILES for path in sorted(folder.glob(pattern)) if path.is_file()
    }
    exports = [export for entry in config.entries for export in entry.exports]
    check_contained([folder / export.file for export in exports], folder)
    for export in exports:
        export.read(folder / export.file)
    files |= {export.file: folder / export.file for export in exports}
    if (record := read_mapping(folder / RECORD, parse_json)) is not None:
        kept = (*RUN_FILES, *([EXAMPLES_FIGURE] if examples else []))
        files |= {name: folder / name for name in kept if (folder / name).is_file()}
    bundle = Bundle(config, files)
    _collect_experts(bundle, folder, work, save_experts, options or LoadOptions(), dict(expert_paths or {}))
    # Read from the file: transformers' config object would fill in defaults.
    values = json.loads((folder / CONFIG).read_text())
    files[CONFIG] = _as_bytes({**values, "experts": config.experts, "stem": config.stem}, indent=2)
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
    """The config of a saved model; raises `PertinenceError` if the files in its folder do not belong together."""
    if find_table_record(folder) is not None:
        raise PertinenceError(
            f"{folder} is the result of a search on a table of predictions: there is no model to push"
        )
    if not (folder / CONFIG).is_file():
        raise PertinenceError(f"{folder} is not the folder of a saved model: it has no config.json")
    if (folder / STATE).is_dir() and not (folder / RECORD).is_file():
        raise PertinenceError(f"the search in {folder} has not ended: run it again, it goes on from where it stopped")
    config = open_config(folder)
    weights = folder / "model.safetensors"
    if config.heads_hash is not None and weights.is_file() and config.heads_hash != hash_tensors(load_file(weights)):
        raise PertinenceError(
            f"config.json and model.safetensors in {folder} do not belong together: save or copy the model anew"
        )
    check_same_search(folder, config.front)
    load_reference(folder, config.build_front(), config.heads_hash, str(folder))
    return config


def _collect_experts(
    bundle: Bundle, folder: Path, work: Path, save_experts: bool, options: LoadOptions, expert_paths: dict[str, str]
) -> None:
    """Add the copies of experts to a push, and let the config refer to them.

    Raises:
        PertinenceError: a local expert is not copied, or the licence of an expert forbids its copy.
    """
    config = bundle.config
    homes = [*map(str, range(len(config.experts or []))), *(["stem"] if config.stem else [])]
    entries = dict(zip(homes, move_entries(config.entries, expert_paths), strict=True))
    config.set_entries(list(entries.values()))
    local = [entry.name for entry in entries.values() if entry.is_local or entry.repo_id is None]
    if local and not save_experts:
        raise PertinenceError(LOCAL.format(local[0]))
    copied = {home: entry for home, entry in entries.items() if save_experts or entry.is_embedded}
    if not copied:
        return
    for entry in entries.values():
        if forbids_copies(entry.licence):
            raise PertinenceError(
                f"expert {entry.name!r} is under the licence {entry.licence!r}, which forbids passing it on: "
                "refer to it by a Hub id instead of copying it, or leave it out"
            )
    copies, folders = find_copies(copied, str(folder), options)
    for home, source in folders.items():
        code = fetch_code(source, copies[home].code or {}, options)
        if code:
            whole = work / f"{home}-with-code"
            whole.mkdir()
            copy_files(source, whole, code)
            source = whole
        files = files_to_copy(source)
        source = _without_own_path(source, files, work / home)
        revision = hash_folder(source)
        bundle.files |= {f"experts/{home}/{name}": source / name for name in files}
        for name, copy in copies.items():
            if copy.repo_id == f"./experts/{home}":
                copies[name] = copy.with_content(revision).replace(code=commits_of(code) or copy.code)
                if needs_code(source):
                    bundle.needs_code.append(copy.name)
    config.set_entries(list((entries | copies).values()))


def _without_own_path(source: Path, files: Mapping[str, Path], work: Path) -> Path:
    """An expert's folder; or, if its config.json says where it was loaded from, a copy of its files without that."""
    config = source / CONFIG
    values = read_json(config)
    if not is_path(values.get("_name_or_path")):
        return source
    copy_into(work, files)
    (work / config.name).write_bytes(_as_bytes({key: v for key, v in values.items() if key != "_name_or_path"}, 2))
    return work


def _as_bytes(values: dict[str, Any], indent: int) -> bytes:
    return (json.dumps(values, indent=indent) + "\n").encode()
