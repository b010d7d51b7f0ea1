"""The search: from experts and images to one model with a Pareto front of operating points."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import datasets
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from ..data.dataset import LabelledImages, first_readable, labelled, match_all, raise_or
from ..data.seen import TOLERATED_SHARED, SeenImages
from ..experts.costs import Measurement, measured_costs
from ..experts.expert import Expert
from ..experts.pool import list_references, pool_labels, warn_of_costs
from ..predictions.predictions import Predictions
from ..predictions.tables import PredictionTable
from ..routing.costs import COSTS, GMACS
from ..utils.distributed import device_name, make_accelerator
from ..utils.errors import PertinenceError
from .arguments import SearchArguments
from .folder import SearchFolder, holds_result
from .front_search import search_front
from .proposals import propose_variants
from .record import record_of, run_facts
from .result import SearchResult, pick_examples
from .sizes import measured_on
from .steps import SearchPool, compose, hold_out, load, merged, predict_split, price, say_cached, say_held_out


logger = logging.get_logger(__name__)


class DispatcherSearch:
    """Searches dispatchers for a pool of experts.

    Args:
        experts: references (Hub id, `id@revision`, folder, mapping, or loaded model), at least two.
        dataset: images that no expert was trained on; a `datasets.Dataset` or `LabelledImages`.
        args: settings.
        report_dataset: report images; by default `args.report_fraction` of `dataset` is held out first.
        image_column, label_column: see `LabelledImages`.
        label_map: "by_name": the labels that all experts share are found by their names, and those of the data set
            among them; default: all have the same labels in the same order.

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
        self.references, self.label_map = list_references(experts), label_map
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
        """Run the search: load, price, predict, split, fit, report, compose.

        The state of the search is kept in `args.output_dir`, if given, and an interrupted search with the same
        settings continues from there.

        Raises:
            PertinenceError: the experts do not fit together or do not fit the images, or an expert is no better than
                chance.
        """
        start, args = time.perf_counter(), self.args
        accelerator = make_accelerator(args.device)
        pool = load(self.references, args, self.label_map)
        match_all(filter(None, [self.images, self.report_images]), pool_labels(pool.experts))
        settings = self._settings(pool, accelerator)
        with SearchFolder.opened(args.output_dir, settings, args.resume, accelerator) as folder:
            pool = price(pool, lambda experts: self._measured(folder, accelerator, measured_on(experts, self.images)))
            if accelerator.is_main_process:
                warn_of_costs([*pool.experts, *filter(None, [pool.stem])])
            parts = self._predict(pool, accelerator)
            if accelerator.is_main_process:
                say_cached(parts, len(pool.experts))
            search, report = parts if len(parts) > 1 else hold_out(parts[0], args)
            if args.variants == "auto":
                pool = self._with_variants(pool, search, folder, accelerator)
                parts = self._predict(pool, accelerator)
                search, report = parts if len(parts) > 1 else hold_out(parts[0], args)
            if self.report_images is None:
                say_held_out(search, report)
            predicted = time.perf_counter()
            labels = pool_labels(pool.experts)
            found = search_front(pool.names, search, report, args, accelerator, folder.state_dir, pool.smaller, labels)
            model = compose(pool, found)
            images = self.images if self.report_images is None else self.report_images
            default = found.evaluation.front.find(found.evaluation.default)
            return SearchResult(
                model,
                found.evaluation,
                found,
                {**record_of(found, settings, args), "run": run_facts(start, predicted, accelerator, args)},
                pick_examples(default, found.heads[default.name], report, pool.names, images, labels),
                SeenImages.of(search=self.images, report=self.report_images),
                accelerator.is_main_process,
            )

    def is_finished(self) -> bool:
        """Whether `args.output_dir` already contains the result of this very search.

        Raises:
            PertinenceError: it contains the result of another search.
        """
        accelerator = make_accelerator(self.args.device)

        def settings() -> dict[str, Any]:
            return self._settings(load(self.references, self.args, self.label_map), accelerator)

        return holds_result(self.args.output_dir, settings, accelerator)

    def _settings(self, pool: SearchPool, accelerator: Accelerator) -> dict[str, Any]:
        """The identity of this search, which is recorded, and compared when the search is repeated."""

        def identity(expert: Expert) -> dict[str, Any]:
            keys = ("name", "revision", "transform", "quantization", "label_map", "backend")
            values = expert.entry.to_dict()
            return {key: values[key] for key in keys if key in values}

        images = {"search": self.images, "report": self.report_images}
        measured_here = COSTS.get(self.args.cost).is_measured_here
        return {
            **self.args.search_settings,
            **({"device": device_name(accelerator.device)} if measured_here else {}),
            **({"provider": self.args.provider} if measured_here and self.args.provider else {}),
            "experts": [identity(expert) for expert in pool.experts],
            "stem": None if pool.stem is None else identity(pool.stem),
            "images": {name: value.fingerprint if value else None for name, value in images.items()},
        }

    def _measured(
        self, folder: SearchFolder, accelerator: Accelerator, experts: Sequence[Expert], kept_as: str | None = None
    ) -> list[Expert]:
        """The experts with the minimised cost in their entries; one process measures it, while the others wait."""
        cost = COSTS.get(self.args.cost)
        if all(cost.name in expert.entry.costs for expert in experts):
            return list(experts)

        def measure() -> list[float]:
            image = first_readable(self.images) if self.args.on_bad_image == "skip" else raise_or([self.images[0]])[0]
            return measured_costs(cost, experts, Measurement(image, self.args.batch_size, accelerator.device))

        kept_as = (kept_as or cost.name).replace("/", "--")
        values = folder.remember(kept_as, measure) if accelerator.is_main_process else None
        (values,) = broadcast_object_list([values])
        return [
            expert.with_entry(expert.entry.replace(costs={**expert.entry.costs, cost.name: value}))
            for expert, value in zip(experts, values, strict=True)
        ]

    def _with_variants(
        self, pool: SearchPool, search: Predictions, folder: SearchFolder, accelerator: Accelerator
    ) -> SearchPool:
        """The pool with the proposed variants."""

        def measured(variant: Expert) -> Expert:
            kept_as = f"{self.args.cost} of {variant.entry.name}"
            return self._measured(folder, accelerator, measured_on([variant], self.images), kept_as)[0]

        variants = propose_variants(pool.experts, self.images, search, accelerator, self.args, measured)
        return merged(pool, variants)

    def _predict(self, pool: SearchPool, accelerator: Accelerator) -> list[Predictions]:
        """Predictions for the search images and, if they were given, for the report images."""
        return [
            predict_split(pool, images, accelerator, self.args)
            for images in (self.images, self.report_images)
            if images is not None
        ]


def _warn_of_copies(images: LabelledImages) -> None:
    compared = len(images.digests)
    if compared < len(images):
        logger.warning(
            f"{compared} of {len(images)} search images are compared ({images.num_copies} are copies of others): "
            "copies among the rest may end up in several parts when images are divided, so that estimates are "
            "optimistic. Remove copies, and give separate report images."
        )
    elif images.num_copies:
        logger.warning(
            f"{images.num_copies} of {compared} search images are copies of others: copies of one image stay together "
            "when images are divided."
        )


def search_predictions(
    table: PredictionTable, args: SearchArguments | None = None, report: PredictionTable | None = None
) -> SearchResult:
    """Search on a table of predictions, without the models themselves; the result has no model.

    Args:
        table: predictions for the search images.
        args: settings; those of how experts run have no effect.
        report: predictions of the same models for the report images; by default a part of `table` is held out first.
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
    for setting, value in (("cost", GMACS), ("stem", None), ("variants", "none")):
        if getattr(args, setting) != value:
            raise PertinenceError(f"a table of predictions has no models to run: leave {setting} out")
    settings = _table_settings(table, args, report)
    with SearchFolder.opened(args.output_dir, settings, args.resume, accelerator) as folder:
        parts = [part.predictions for part in (table, report) if part is not None]
        if args.labels == "agree":
            parts = [part.agreeing() for part in parts]
        search, held = parts if len(parts) > 1 else hold_out(parts[0], args)
        if report is None:
            say_held_out(search, held)
        found = search_front(table.names, search, held, args, accelerator, folder.state_dir)
    record = {**record_of(found, settings, args), "run": run_facts(start, start, accelerator, args)}
    return SearchResult(None, found.evaluation, found, record, is_main_process=accelerator.is_main_process)


def is_searched(table: PredictionTable, args: SearchArguments, report: PredictionTable | None = None) -> bool:
    """Whether `args.output_dir` already contains the result of `search_predictions`.

    Raises:
        PertinenceError: it contains the result of another search.
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
