"""The experts of a saved model, and where each is loaded from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ..experts.backends.base import backend_of
from ..experts.checkpoint_files import is_content
from ..experts.expert import Expert
from ..experts.exported import ExportedOrigin, chosen_backends, export_to_run, open_exported
from ..experts.loading import Checkpoint
from ..experts.reference import LoadOptions
from ..experts.reloading import reload_expert
from ..experts.remote_code import fetch_code
from ..hub.configuration import PertinenceConfig
from ..hub.expert_files import find_folder, locate, move_entries
from ..hub.exported_files import ExportedFiles
from ..routing.costs import STEM
from ..runtime.entry import ExpertEntry
from ..runtime.exports import Export
from ..utils.errors import PertinenceError
from ..utils.validation import is_commit


@dataclass
class SavedPool:
    """The experts of a saved model, and where to load them from.

    Attributes:
        config: config of the model.
        source, revision: folder or Hub id that the model itself was loaded from, and its commit.
        options: how experts are loaded.
        subfolder: subfolder of the model in `source`.
        entries: entries of the experts by pool index, and of a separate stem.

    Raises:
        PertinenceError: an expert needs a backend that is not registered.
    """

    config: PertinenceConfig
    source: str
    revision: str | None
    options: LoadOptions
    subfolder: str = ""

    def __post_init__(self):
        stem = self.config.stem_entry
        self.entries: dict[int, ExpertEntry] = dict(enumerate(self.config.expert_entries))
        if stem is not None:
            self.entries[STEM] = stem
        self.entries = chosen_backends(self.entries, self.options)
        for entry in self.entries.values():
            backend_of(entry)

    @property
    def exported_files(self) -> ExportedFiles:
        """Where the exported graphs of the model are."""
        return ExportedFiles(self.source, self.revision, self.subfolder, self.options)

    def move(self, paths: Mapping[str, Any]) -> None:
        """Set the folders that local experts have moved to, by name; raises `PertinenceError` for an unknown name."""
        moved = move_entries(self.entries.values(), paths)
        for entry in self.entries.values() if not Path(self.source).is_dir() else ():
            name = entry.name
            if entry.is_local and name not in paths:
                raise PertinenceError(
                    f"expert {name!r} of {self.source} is in the folder {entry.repo_id} of another machine: say where "
                    f"it is on yours with expert_paths={{{name!r}: folder}}"
                )
        if paths:
            self.entries = dict(zip(self.entries, moved, strict=True))
            self.config.set_entries(moved)

    def load(self, index: int, opened: dict[Any, Checkpoint]) -> Expert:
        """Load one expert; `opened` holds the checkpoints that are already loaded (see `open_checkpoint`)."""
        entry = self.entries[index]
        if (export := export_to_run(entry, self.options.file_name)) is not None:
            return self._open_exported(index, entry, export)
        place = locate(entry, self.source, self.revision, self.options, self.subfolder)
        expert = reload_expert(entry, place, self.options, self.config.preprocessing, index == STEM, opened)
        is_pinned = not entry.is_embedded or is_commit(entry.revision)
        if not is_pinned and not is_content(entry.revision, expert.find_revision(), Path(place)):
            raise PertinenceError(
                f"the copy of expert {entry.name!r} in {self.source} does not belong to config.json: it has "
                "changed, or was read while another model was saved there; load it again, or save or copy it anew"
            )
        if index != STEM and len(expert.labels) != self.config.num_labels:
            raise PertinenceError(
                f"expert {entry.name!r} has {len(expert.labels)} labels, config.json {self.config.num_labels}"
            )
        return expert

    def _open_exported(self, index: int, entry: ExpertEntry, export: Export) -> Expert:
        """The expert that runs an exported graph."""
        if not export.has_features and any(index in point.reads_features_of for point in self.config.build_front()):
            raise PertinenceError(
                f"the exported file {export.file} gives no features, which a decision reads: export the model again"
            )
        labels = {} if index == STEM else cast(dict[int, str], self.config.id2label)
        if entry.label_map is not None:
            labels = dict(zip(entry.label_map, labels.values(), strict=True))
        find_folder, find_code = partial(self.folder, index), partial(self.code, index)
        origin = ExportedOrigin(labels, f"sha256:{export.sha256}", find_folder, find_code, self.options)
        path = self.exported_files.find(export)
        return open_exported(entry, export, path, origin, self.config.preprocessing)

    def folder(self, index: int) -> Path:
        """The folder of the files of an expert (see `find_folder`)."""
        return find_folder(self.entries[index], self.source, self.revision, self.options, self.subfolder)

    def code(self, index: int) -> dict[str, Path]:
        """The folders of an expert's code in other repositories (see `fetch_code`)."""
        return fetch_code(self.folder(index), self.entries[index].code or {}, self.options)

    def load_all(self) -> dict[int, Expert]:
        opened: dict[Any, Checkpoint] = {}
        return {index: self.load(index, opened) for index in self.entries}

    def key(self, index: int) -> tuple[str | None, str]:
        """Key that identifies the checkpoint of an expert."""
        return self.entries[index].checkpoint_key

    def memory_key(self, index: int) -> Any:
        """Equal for experts that share memory: those of one checkpoint, while every graph has its own."""
        entry = self.entries[index]
        export = export_to_run(entry, self.options.file_name)
        return self.key(index) if export is None else export.file

    def dtype(self, index: int) -> torch.dtype:
        """The dtype that an expert is loaded in."""
        dtype = self.options.dtype or self.entries[index].dtype or torch.float32
        return getattr(torch, dtype) if isinstance(dtype, str) else dtype

    def fixed_dtype(self, index: int) -> torch.dtype | None:
        """The dtype of an expert whose backend copies the weights and cannot be cast; None for other experts."""
        return backend_of(self.entries[index]).fixed_dtype

    def size(self, index: int, dtype: torch.dtype) -> int:
        """Bytes of the parameters of an expert's checkpoint, and of a folded copy, after a cast to `dtype`.

        A checkpoint with nothing to fold, which is not known yet, is counted twice, too.
        """
        dtype = dtype if self.fixed_dtype(index) is None else self.dtype(index)
        copies = 2 if self.options.folds(self.entries[index]) else 1
        return copies * self.entries[index].parameters * dtype.itemsize
