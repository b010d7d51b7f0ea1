"""One split of a data set, from the Hub or a local folder."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from ..utils.downloads import checked_downloads, with_retries
from ..utils.errors import PertinenceError, first_line
from ..utils.hub_errors import DamagedDownload, explain_hub, may_pass
from ..utils.validation import split_revision
from .arguments import DataArguments
from .dataset import LabelledImages


ImageSource: TypeAlias = DataArguments | datasets.Dataset | LabelledImages
"""Images, or where they are."""


def load_images(arguments: DataArguments, token: str | None = None, needs_labels: bool = True) -> LabelledImages:
    """Load one split from the Hub or a local folder.

    Raises:
        PertinenceError: the data set, split or column does not exist, or the images have no labels.
    """
    name, split = arguments.dataset, arguments.split
    if name is None or split is None:
        missing = " and ".join(f"--{key}" for key, value in (("dataset", name), ("split", split)) if value is None)
        raise PertinenceError(f"no images were named: give {missing}")
    name, revision = (name, None) if Path(name).exists() else split_revision(name)
    if revision is not None and Path(name).exists():
        raise PertinenceError(f"data set {name!r} is a folder here, which has no revision: leave @{revision} out")
    options = {"split": split, "token": token, "revision": revision}
    try:
        dataset = with_retries(partial(_load_checked, name, arguments.dataset_config, **options))
    except Exception as error:  # builders may raise anything: say which data set and why
        reason = (explain_hub(name, revision, error) if may_pass(error) else None) or first_line(error)
        if "Unknown split" in reason:
            raise PertinenceError(f"data set {name!r} has no split {split!r}: {reason}") from error
        raise PertinenceError(f"data set {name!r} cannot be loaded: {reason}") from error
    if arguments.limit is not None and arguments.limit < len(dataset):
        dataset = dataset.select(range(arguments.limit))
    columns = arguments.image_column, arguments.label_column
    return LabelledImages(dataset, *columns, needs_labels, arguments.label_map)


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
