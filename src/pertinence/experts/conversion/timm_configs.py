"""The `config.json` that timm saves beside weights: what it says of the network, its labels and its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm

from ...data.label_files import read_label_names
from ...runtime.entry import CONFIG
from ...utils.errors import MALFORMED, PertinenceError, explain, shown
from ..checkpoint_files import SINGLE, read_json
from .preprocessing import DESCRIBE
from .timm_networks import base_name
from .training_files import TrainingFile


PICKLE = "pytorch_model.bin"
"""The file of weights that timm's `save_for_hf` writes unless it is told otherwise."""


@dataclass(frozen=True)
class TimmConfig:
    """What timm records beside weights, in any of its formats.

    Attributes:
        path: the file.
        architecture: name of the network.
        settings: its arguments and its preprocessing, as timm's train script records them.
        label_names: names of the labels, or a mapping of their indices to names; None if it has none.
        label_descriptions: descriptions of the labels, by name.
    """

    path: Path
    architecture: str
    settings: dict[str, Any]
    label_names: Any
    label_descriptions: dict[str, str]

    def labels(self) -> list[str]:
        """The names of the labels in the order of the outputs; descriptions where the names are only numbers.

        Raises:
            PertinenceError: they are missing, incomplete, or only numbers.
        """
        names, described = self.label_names, self.label_descriptions
        listed = list(names.values()) if isinstance(names, Mapping) else names
        if described and isinstance(listed, list) and all(str(n).isdigit() and str(n) in described for n in listed):
            numbered = names.items() if isinstance(names, Mapping) else enumerate(listed)
            names = {index: described[str(name)] for index, name in numbered}
        try:
            return read_label_names({"label_names": names})
        except PertinenceError as error:
            raise PertinenceError(f"{self.path}: {error}, or name them with --labels FILE") from error


def read_timm_config(folder: Path) -> TimmConfig | None:
    """Read the config of timm in a folder; None if there is none, or that of another library.

    Raises:
        PertinenceError: the file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    values = read_json(path)
    name = values.get("architecture")
    if not isinstance(name, str) or not timm.is_model(base_name(name)):
        return None
    # Until version 0.9 timm wrote everything into one mapping, and called the names `labels`.
    usual = values.get("pretrained_cfg", values)
    try:
        options = dict(values.get("model_args") or {})
        settings = {key: usual[key] for key in DESCRIBE if usual.get(key) is not None}
        channels, *sides = settings.get("input_size", (3,))
        settings |= {"in_chans": options.pop("in_chans", channels), "model_kwargs": options}
        if "img_size" in options and usual.get("fixed_input_size"):
            # Timm before 1.0.31 recorded the images of the pre-trained weights beside it.
            size = options["img_size"]
            settings["input_size"] = [channels, *(size if isinstance(size, list) else [size] * len(sides or (0, 0)))]
        names = next((found[key] for found, key in _places(values, usual) if found.get(key) is not None), None)
        described = values.get("label_descriptions") or usual.get("label_descriptions") or {}
        described = {str(key): str(value) for key, value in described.items()}
    except MALFORMED as error:
        raise PertinenceError(f"{path} is not as timm writes it ({explain(error)}): save it again") from error
    return TimmConfig(path, name, settings, names, described)


def _places(values: dict[str, Any], usual: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [(values, "label_names"), (usual, "label_names"), (usual, "labels"), (values, "id2label")]


def described_by(file: TrainingFile, config: TimmConfig, architecture: str | None) -> TrainingFile:
    """A file of weights with what the config beside it records, unless the file itself records its network.

    Args:
        file: the file.
        config: the config beside it.
        architecture: name of the network, if it is given.

    Raises:
        PertinenceError: they record different networks, and none is given.
    """
    if file.architecture is None or not timm.is_model(base_name(file.architecture)):
        return replace(file, settings=config.settings, architecture=config.architecture, record=str(config.path))
    if architecture is None and base_name(file.architecture) != base_name(config.architecture):
        raise PertinenceError(
            f"{file.path} records the architecture {shown(file.architecture)}, but {CONFIG} beside it "
            f"{shown(config.architecture)}: move the one that is wrong, or the file, to another folder"
        )
    return file


def weights_in(folder: Path) -> Path:
    """The file of weights that timm saved in a folder; raises `PertinenceError` if there is none."""
    found = next((folder / name for name in (SINGLE, PICKLE) if (folder / name).is_file()), None)
    if found is None:
        raise PertinenceError(
            f"{folder} has a {CONFIG} of timm, but no {SINGLE} or {PICKLE}: give the file of weights itself"
        )
    return found
