"""One split of a data set, from the Hub or a local folder."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from transformers.utils import logging

from ..utils.downloads import checked_downloads, with_retries
from ..utils.errors import PertinenceError, first_line
from ..utils.hub_errors import DamagedDownload, explain_hub, may_pass
from ..utils.validation import split_revision
from .arguments import DataArguments
from .dataset import LabelledImages


logger = logging.get_logger(__name__)

VALIDATION = ("validation", "val", "valid", "dev")
"""Names that data sets give to the same split."""
ImageSource: TypeAlias = DataArguments | datasets.Dataset | LabelledImages
"""Images, or where they are."""


def load_images(arguments: DataArguments, token: str | None = None, needs_labels: bool = True) -> LabelledImages:
    """Load the images of one split from the Hub or a local folder.

    Raises:
        PertinenceError: the data set, split or column does not exist, or the images have no labels.
    """
    columns = arguments.image_column, arguments.label_column
    return LabelledImages(load_split(arguments, token), *columns, needs_labels, arguments.label_map)


def load_split(arguments: DataArguments, token: str | None = None) -> datasets.Dataset:
    """Load one split from the Hub or a local folder; raises `PertinenceError` if it does not exist."""
    name, split = arguments.dataset, arguments.split
    if name is None:
        raise PertinenceError(f"no images were named: give --dataset{' and --split' if split is None else ''}")
    given = name
    name, revision = (name, None) if Path(name).exists() else split_revision(name)
    if revision is not None and Path(name).exists():
        raise PertinenceError(f"data set {name!r} is a folder here, which has no revision: leave @{revision} out")
    hub = {"token": token, "revision": revision}
    try:
        if split is None:
            known = with_retries(partial(datasets.get_dataset_split_names, name, arguments.dataset_config, **hub))
            split = known[0] if len(known) == 1 else None
            if split is not None:
                logger.warning(f"Data set {name!r} has one split, {split!r}, which is taken.")
        if split is not None:
            dataset = with_retries(partial(_load_checked, name, arguments.dataset_config, split=split, **hub))
    except Exception as error:  # builders may raise anything: say which data set and why
        reason = (explain_hub(name, revision, error) if may_pass(error) else None) or first_line(error)
        if isinstance(error, ConnectionError):  # by which `datasets` hides the error of the Hub's client
            here = "" if Path(name).exists() else f"there is no folder {name} here, and "
            reason = f"{here}{reason}; check the path, the connection and HF_HUB_OFFLINE"
        if "Unknown split" not in reason:
            raise PertinenceError(f"data set {name!r} cannot be loaded: {reason}") from error
        other = _split_meant(str(split), reason)
        if other is None:
            known = ", ".join(re.findall(r"'([^']*)'", reason.partition("one of")[2]))
            raise PertinenceError(f"data set {name!r} has no split {split!r}, but {known or reason}") from error
        logger.warning(f"Data set {name!r} calls its split {split!r} {other!r}.")
        return load_split(replace(arguments, split=other), token)
    if split is None:
        raise PertinenceError(f"data set {given!r} has the splits {', '.join(known)}: name one with --split")
    if arguments.limit is not None and arguments.limit < len(dataset):
        dataset = dataset.select(range(arguments.limit))
    return dataset


def _split_meant(wanted: str, known: str) -> str | None:
    """Another name of a validation split, of those that a message has between quotes; a slice such as [:100] stays."""
    name, bracket, slicing = wanted.partition("[")
    others = [one for one in re.findall(r"'([^']*)'", known) if one in VALIDATION]
    return others[0] + bracket + slicing if name in VALIDATION and len(others) == 1 else None


def _load_checked(name: str, *args: Any, **options: Any) -> datasets.Dataset:
    """Call `load_dataset`; if a download was damaged, the data set prepared from it is removed, too."""
    dataset = None
    try:
        with checked_downloads(name, kind="dataset"):
            dataset = datasets.load_dataset(name, *args, **options)
        return dataset
    except DamagedDownload:
        for file in dataset.cache_files if dataset is not None else ():
            shutil.rmtree(Path(file["filename"]).parent, ignore_errors=True)
        raise
