"""Exports of saved models: real images are found, and every exported expert is compared with torch on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers.utils import logging

from ..data.arguments import DataArguments
from ..data.dataset import labelled, raise_or
from ..data.loading import ImageSource, load_images
from ..data.splits import sample_rows
from ..hub.layout import SETTINGS
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..predictions.arguments import RuntimeArguments
from ..utils.downloads import find_file
from ..utils.errors import PertinenceError, explain
from ..utils.hub_errors import check_place, explain_place
from ..utils.parsing import parse_yaml, read_mapping
from .evaluate import open_model


logger = logging.get_logger(__name__)

IMAGES = 512
"""Images that graphs are compared on, unless there are fewer."""


def export_onnx(
    model: str | os.PathLike[str] | PertinenceForImageClassification,
    output_dir: str | os.PathLike[str],
    images: ImageSource | None = None,
    args: RuntimeArguments | None = None,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> PertinenceForImageClassification:
    """Save a model with its experts as ONNX files, each compared with torch on real images.

    Args:
        model: folder or Hub id of a saved model, or the model.
        output_dir: folder to save it to, which may be its own.
        images: real images, of which 512 evenly spaced ones are used, and at least 256 are needed; None: those of the
            data set that the search.yaml of the model names; settings without a data set change those of search.yaml.
        args: how experts are loaded.
        expert_paths: new folders of local experts that have moved, by name.
        revision: branch, tag or commit on the Hub.

    Returns:
        The model, which lists its exported experts.

    Raises:
        PertinenceError: there are no images, or too few; an expert cannot be exported, or its graph gives other
            answers. Nothing is written then.
    """
    args = args or RuntimeArguments()
    if images is None or (isinstance(images, DataArguments) and images.dataset is None):
        if isinstance(model, PertinenceForImageClassification):
            raise PertinenceError("give real images, on which each exported expert is compared with torch")
        images = searched_data(model, args.token, revision, images)
    found = load_images(images, args.token, False) if isinstance(images, DataArguments) else labelled(images, False)
    opened = open_model(model, args, expert_paths, revision)
    opened.export_onnx(output_dir, raise_or([found[row] for row in sample_rows(len(found), IMAGES).tolist()]))
    return opened


def searched_data(
    model: str | os.PathLike[str], token: str | None, revision: str | None, given: DataArguments | None = None
) -> DataArguments:
    """The data set that the search of a model used, as its search.yaml names it.

    Args:
        model: folder or Hub id of a saved model.
        token, revision: of the Hub.
        given: settings that replace those of search.yaml.

    Raises:
        PertinenceError: there is none, or it was given in Python, or search.yaml cannot be read.
    """
    settings = _read_settings(model, token, revision)
    known = [field.name for field in fields(DataArguments)]
    changed = {key: value for key in known if (value := getattr(given, key, None)) is not None}
    data = DataArguments(**{key: settings[key] for key in known if key in settings} | changed)
    if data.dataset is None:
        raise PertinenceError(
            f"{model} names no data set in {SETTINGS}: give one of at least 256 real images, on which each exported "
            f"expert is compared with torch (pertinence export {model} --dataset ... --split ...)"
        )
    logger.info(f"The exported experts are compared with torch on images of {data.dataset}.")
    return data


def _read_settings(model: str | os.PathLike[str], token: str | None, revision: str | None) -> Mapping[str, Any]:
    place = str(model)
    check_place(place)
    try:
        path = find_file(place, SETTINGS, token=token, revision=revision)
    except PertinenceError:
        raise
    except Exception as error:  # from the Hub's client, or the network
        reason = explain_place(place, revision, error) or f"{place} cannot be read ({explain(error)})"
        raise PertinenceError(reason) from error
    return (None if path is None else read_mapping(path, parse_yaml)) or {}
