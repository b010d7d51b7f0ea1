"""The search: experts and images in, one model with its front of operating points out."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import accelerate
import datasets
import numpy as np
import pymoo
import timm
import torch
import torchvision
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from .._version import __version__
from ..data.dataset import LabelledImages, first_readable, labelled, raise_or
from ..data.seen import TOLERATED_SHARED, SeenImages
from ..data.splits import stratified_split
from ..experts.costs import measure_latency
from ..experts.expert import Expert, load_expert
from ..experts.pool import list_references, load_pool, pool_labels
from ..experts.reference import ExpertReference
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..predictions.predict import Predictions, predict
from ..predictions.tables import PredictionTable
from ..routing.costs import GMACS, LATENCY
from ..utils.distributed import device_name, make_accelerator
from ..utils.errors import PertinenceError
from .arguments import SearchArguments
from .folder import SearchFolder, holds_result
from .front_search import FoundFront, search_front
from .proposals import propose_variants
from .result import SearchResult, pick_examples


logger = logging.get_logger(__name__)


class DispatcherSearch:
    """Searches dispatchers for a pool of experts.

    Args:
        experts: references (Hub id, `id@revision`, folder, mapping, or loaded model), at least two.
        dataset: images that no expert was trained on; a `datasets.Dataset` or `LabelledImages`.
        args: settings.
        report_dataset: images to report on; by default `args.report_fraction` of `dataset` is held out first.
        image_column, label_column, label_map: see `LabelledImages`.

    Examples:
        >>> args = SearchArguments(generations=20, seed=1)
        >>> search = DispatcherSearch(["user/resnet8", "user/resnet56"], dataset, args)
        >>> result = search.run()
        >>> result.save("runs/cifar10")
        >>> result.front.expert_names
        ('resnet8', 'resnet56')
    """

    def __init__(
        self,
        experts: Sequence[Any],
        dataset: datasets.Dataset | LabelledImages,
        args: SearchArguments | None = None,
        *,
        report_dataset: datasets.Dataset | LabelledImages | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        label_map: str | None = None,
    ):
        self.args = args or SearchArguments()
        self.references = list_references(experts)
        needs_labels = self.args.labels == "given"
        columns = image_column, label_column, label_map
        self.images = labelled(dataset, needs_labels, *columns)
        _warn_of_copies(self.images)
        self.report_images = None
        if report_dataset is not None:
            self.report_images = labelled(report_dataset, needs_labels, *columns)
            count = len(self.report_images)
            share = SeenImages.of(search=self.images).shared(self.report_images)
            shared = round(share * count)
            sentence = f"{shared} of the {count} report images are search images, too"
            if share > TOLERATED_SHARED:
                raise PertinenceError(f"{sentence}: report on images that the search does not see")
            if shared:
                logger.warning(f"{sentence}.")

    def run(self) -> SearchResult:
        """Load, predict, search, measure.

        With `args.output_dir` the state of the search is kept there, and an interrupted search of the same settings is
        continued.

        Raises:
            PertinenceError: experts that do not fit together or the images, or an expert no better than chance.
        """
        start, args = time.perf_counter(), self.args
        accelerator = make_accelerator(args.device)
        pool, stem = self._load()
        settings = self._settings(pool, stem, accelerator)
        with SearchFolder.opened(args.output_dir, settings, args.resume, accelerator) as folder:
            return self._search(pool, stem, settings, folder, accelerator, start)

    def _search(
        self,
        pool: list[Expert],
        stem: Expert | None,
        settings: dict[str, Any],
        folder: SearchFolder,
        accelerator: Accelerator,
        start: float,
    ) -> SearchResult:
        args = self.args
        if args.cost == "latency":
            timed = self._with_latency([*pool, *filter(None, [stem])], folder, accelerator)
            stem = None if stem is None else timed.pop()
            pool = sorted(timed, key=lambda expert: expert.entry.costs["latency"])
        search, report = self._predict(pool, stem, accelerator)
        smaller: dict[int, int] = {}
        if args.variants == "auto":

            def measure(variant: Expert) -> Expert:
                kept_as = f"latency of {variant.entry.name}"
                return self._with_latency([variant], folder, accelerator, kept_as)[0]

            variants = propose_variants(pool, self.images, search, accelerator, args, measure)
            pool, smaller = merged(pool, variants, args.cost)
            search, report = self._predict(pool, stem, accelerator)
        if self.report_images is None:
            _say_held_out(search, report)
        predicted = time.perf_counter()
        names = [expert.entry.name for expert in pool]
        found = search_front(names, search, report, args, accelerator, folder.state_dir, smaller)
        evaluation = found.evaluation
        pool = [
            expert.with_entry(expert.entry.replace(select=select.to_dict(), report=measured.to_dict()))
            for expert, select, measured in zip(pool, found.select_experts, evaluation.experts, strict=True)
        ]
        model = PertinenceForImageClassification.compose(
            pool, evaluation.front, found.heads, evaluation.default, stem, evaluation.series.answers
        )
        images = self.images if self.report_images is None else self.report_images
        default = evaluation.front.find(evaluation.default)
        return SearchResult(
            model,
            evaluation,
            found,
            {
                **_record(found, settings, args),
                "run": _run_facts(start, predicted, accelerator, args),
            },
            pick_examples(default, found.heads[default.name], report, names, images),
            SeenImages.of(search=self.images, report=self.report_images),
            accelerator.is_main_process,
        )

    def is_finished(self) -> bool:
        """Whether `args.output_dir` holds the result of this very search already.

        Raises:
            PertinenceError: it holds that of another.
        """
        accelerator = make_accelerator(self.args.device)
        return holds_result(self.args.output_dir, lambda: self._settings(*self._load(), accelerator), accelerator)

    def _load(self) -> tuple[list[Expert], Expert | None]:
        """The pool and a separate stem."""
        pool = load_pool(self.references, self.args.load_options, self.args.preprocessing)
        return pool, None if self.args.stem is None else load_stem(self.args.stem, pool, self.args)

    def _settings(self, pool: Sequence[Expert], stem: Expert | None, accelerator: Accelerator) -> dict[str, Any]:
        def identity(expert: Expert) -> dict[str, Any]:
            keys = ("name", "revision", "transform", "quantization", "label_map", "backend")
            values = expert.entry.to_dict()
            return {key: values[key] for key in keys if key in values}

        images = {"search": self.images, "report": self.report_images}
        return {
            **self.args.search_settings,
            **({"device": device_name(accelerator.device)} if self.args.cost == "latency" else {}),
            "experts": [identity(expert) for expert in pool],
            "stem": None if stem is None else identity(stem),
            "images": {name: value.fingerprint if value else None for name, value in images.items()},
        }

    def _with_latency(
        self, experts: Sequence[Expert], folder: SearchFolder, accelerator: Accelerator, kept_as: str = "latency"
    ) -> list[Expert]:
        """The experts with their latency in their entries: measured once, by one process while the others wait."""

        def measure() -> list[float]:
            image = first_readable(self.images) if self.args.on_bad_image == "skip" else raise_or([self.images[0]])[0]
            return measure_latency(experts, image, self.args.batch_size, accelerator.device)

        latency = folder.remember(kept_as.replace("/", "--"), measure) if accelerator.is_main_process else None
        (latency,) = broadcast_object_list([latency])
        return [
            expert.with_entry(expert.entry.replace(costs={**expert.entry.costs, "latency": milliseconds}))
            for expert, milliseconds in zip(experts, latency, strict=True)
        ]

    def _predict(
        self, pool: Sequence[Expert], stem: Expert | None, accelerator: Accelerator
    ) -> tuple[Predictions, Predictions]:
        """Predictions of the search images and of the report images."""
        options = {key: getattr(self.args, key) for key in ("batch_size", "num_workers", "cache_dir", "on_bad_image")}
        reads_features = [0] if self.args.recipe != "cascade" and stem is None else []
        parts = []
        for images in filter(None, (self.images, self.report_images)):
            images.match_labels(pool_labels(pool))
            predictions = predict(pool, images, accelerator, stem=stem, features_of=reads_features, **options)
            if self.args.cost == "latency":
                experts = [*pool, *filter(None, [stem])]
                predictions = predictions.with_cost(LATENCY, [expert.entry.costs[LATENCY] for expert in experts])
            parts.append(predictions.agreeing() if self.args.labels == "agree" else predictions)
        return tuple(parts) if len(parts) > 1 else hold_out(parts[0], self.args)


def _warn_of_copies(images: LabelledImages) -> None:
    compared = len(images.digests)
    if compared < len(images):
        logger.warning(
            f"{compared} of {len(images)} search images are compared ({images.num_copies} are copies of others): "
            "copies among the rest may come on both sides where images are divided, so that images are judged on that "
            "were fitted to. Remove copies, and give report images of their own."
        )
    elif images.num_copies:
        logger.warning(
            f"{images.num_copies} of {compared} search images are copies of others: where images are divided, copies "
            "of one stay together."
        )


def merged(pool: Sequence[Expert], variants: Mapping[str, Expert], cost: str) -> tuple[list[Expert], dict[int, int]]:
    """A pool and variants of some of its experts (by their names) by rising cost, and which is a variant of which: by
    the pool index of the whole expert that of its variant."""
    # The largest stays last, also where a variant costs as much.
    joined = sorted([*variants.values(), *pool[:-1]], key=lambda expert: expert.entry.costs[cost]) + [pool[-1]]
    return joined, {
        joined.index(expert): joined.index(variants[name])
        for expert in pool
        if (name := expert.entry.name) in variants
    }


def load_stem(reference: str, pool: Sequence[Expert], args: SearchArguments) -> Expert:
    """Load a separate stem; refused where it is an expert of the pool, whose work would be paid twice."""
    stem = load_expert(ExpertReference.parse(reference), args.load_options, args.preprocessing, is_stem=True)
    for expert in pool:
        if expert.find_revision() == stem.find_revision() and expert.entry.transform == stem.entry.transform:
            raise PertinenceError(
                f"the stem {stem.entry.name!r} is an expert of the pool: leave the stem out (it is the "
                "cheapest expert then), or choose another network"
            )
    if stem.entry.name in {expert.entry.name for expert in pool}:
        return stem.with_entry(stem.entry.replace(name=f"{stem.entry.name} (stem)"))
    return stem


def search_predictions(
    table: PredictionTable, args: SearchArguments | None = None, report: PredictionTable | None = None
) -> SearchResult:
    """The same search without any model: on a table of what models predicted. The result has no model.

    Args:
        table: predictions of the search images.
        args: settings; those that say how experts are run have no effect.
        report: predictions of the same models of the report images; by default a part of `table` is held out first.
    """
    start, args = time.perf_counter(), args or SearchArguments()
    accelerator = make_accelerator(args.device)
    if report is not None and report.names != table.names:
        raise PertinenceError(
            f"the table of report images has the models {', '.join(report.names)}, that of the search images "
            f"{', '.join(table.names)}"
        )
    if report is not None and report.fingerprint == table.fingerprint:
        raise PertinenceError("the report images are the search images: report on others")
    for setting, value in (("cost", "gmacs"), ("stem", None), ("variants", "none")):
        if getattr(args, setting) != value:
            raise PertinenceError(f"a table of predictions has no models to run: leave {setting} out")
    settings = _table_settings(table, args, report)
    with SearchFolder.opened(args.output_dir, settings, args.resume, accelerator) as folder:
        parts = [part.predictions for part in (table, report) if part is not None]
        if args.labels == "agree":
            parts = [part.agreeing() for part in parts]
        search, held = parts if len(parts) > 1 else hold_out(parts[0], args)
        if report is None:
            _say_held_out(search, held)
        found = search_front(table.names, search, held, args, accelerator, folder.state_dir)
    record = {**_record(found, settings, args), "run": _run_facts(start, start, accelerator, args)}
    return SearchResult(None, found.evaluation, found, record, is_main_process=accelerator.is_main_process)


def is_searched(table: PredictionTable, args: SearchArguments, report: PredictionTable | None = None) -> bool:
    """Whether `args.output_dir` holds already what `search_predictions` finds.

    Raises:
        PertinenceError: it holds the result of another search.
    """
    accelerator = make_accelerator(args.device)
    return holds_result(args.output_dir, lambda: _table_settings(table, args, report), accelerator)


def _table_settings(table: PredictionTable, args: SearchArguments, report: PredictionTable | None) -> dict[str, Any]:
    return {
        **args.search_settings,
        "experts": [
            {"name": name, GMACS: cost}
            for name, cost in zip(table.names, table.predictions.costs.values[GMACS], strict=True)
        ],
        "images": {"search": table.fingerprint, "report": report and report.fingerprint},
    }


def hold_out(predictions: Predictions, args: SearchArguments) -> tuple[Predictions, Predictions]:
    """Divide predictions into those of the images to search on and those of the images to report on."""
    kept, held_out = stratified_split(predictions.targets, args.report_fraction, args.seed, predictions.copies)
    return predictions.subset(kept), predictions.subset(held_out)


def _say_held_out(search: Predictions, report: Predictions) -> None:
    logger.warning(
        f"No report images given: {len(report)} of {len(search) + len(report)} search images are held out to report "
        "on."
    )


def _record(found: FoundFront, settings: dict[str, Any], args: SearchArguments) -> dict[str, Any]:
    evaluation = found.evaluation.to_dict()
    baselines = evaluation.pop("baselines")
    return {
        "settings": settings,
        "seed": args.seed,
        "measure": found.evaluation.experts[0].measure,
        "versions": versions(),
        "images": {
            **found.images,
            "report_from": "report split" if settings["images"]["report"] else "held out of the search split",
        },
        "evaluated": found.evaluated,
        "hypervolumes": found.hypervolumes,
        "front": found.evaluation.front.to_list(),
        "experts": [figures.to_dict() for figures in found.select_experts],
        "baselines": baselines,
        "report": evaluation,
    }


def _run_facts(start: float, predicted: float, accelerator: Accelerator, args: SearchArguments) -> dict[str, Any]:
    now = time.perf_counter()
    seconds = {"predictions": predicted - start, "search": now - predicted, "total": now - start}
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "host": {"platform": platform.platform(), "device": str(accelerator.device)},
        "processes": accelerator.num_processes,
        "batch_size": args.batch_size,
    }


def versions() -> dict[str, str]:
    modules = (torch, torchvision, transformers, timm, datasets, accelerate, pymoo, np)
    return {"pertinence": __version__, "python": platform.python_version()} | {
        m.__name__: m.__version__ for m in modules
    }
