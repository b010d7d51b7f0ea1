"""`pertinence search`: searches dispatchers for experts and images, or for a table of predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..data.arguments import DataArguments
from ..search.arguments import SearchArguments, SearchInputs, check_recipe
from ..search.recipes.registry import RecipeChoices, recipe_names, recipe_settings, registered_recipes
from ..utils.errors import PertinenceError
from .output import OutputArguments, given_flags, next_line, print_result
from .parser import Command, CommandParser
from .push import PushArguments
from .push import run as push


def add_arguments(parser: CommandParser) -> None:
    if parser.recipe in RecipeChoices():
        check_recipe(parser.recipe)
        chosen = recipe_names(parser.recipe)
    else:  # no recipe is given, or it does not exist, which is refused later
        chosen = recipe_names(SearchArguments().recipe)
    others = [name for name in registered_recipes() if name not in chosen]
    hidden = {setting.name for name in others for setting in recipe_settings(name)}
    parser.add_settings(DataArguments, SearchInputs, SearchArguments, OutputArguments, hidden=hidden)


def run(data: DataArguments, inputs: SearchInputs, args: SearchArguments, output: OutputArguments) -> None:
    from ..hub.push import check_pushable
    from ..search.folder import holds_search
    from ..search.settings import anchored, resolved_settings
    from ..utils.distributed import make_accelerator

    if args.output_dir is None:
        raise PertinenceError("a search needs a place for its result: give --output-dir")
    holds_search(Path(args.output_dir))  # what else it holds is told first
    is_main = make_accelerator(args.device).is_main_process
    if inputs.predictions is None:
        prepared = _prepare_images(data, args, inputs)
    else:
        prepared = _prepare_table(inputs.predictions, data, args, inputs)
    if inputs.push_to_hub and is_main:
        check_pushable(
            inputs.push_to_hub, [*(inputs.experts or []), *filter(None, [args.stem])], inputs.save_experts, args.token
        )
    if args.resume and prepared.is_finished():
        if is_main:
            print_result(
                _found_before(args.output_dir) if output.json else {},
                f"{args.output_dir} holds the result of this very search: nothing to do (--no-resume searches again)",
                next_line("pertinence", "info", args.output_dir),
                as_json=output.json,
            )
            _push_result(args.output_dir, args, inputs)
        return
    result = prepared.search()
    settings = resolved_settings(prepared.data, args, prepared.inputs)
    result = replace(result, config=anchored(settings, result.model.config if result.model else None))
    result.save(args.output_dir, save_experts=inputs.save_experts)
    if result.is_main_process:
        print_result(
            {"output_dir": args.output_dir, **result.evaluation.to_dict()},
            result.evaluation.text(whole=output.verbose, with_warnings=False),
            f"Saved to {args.output_dir}",
            *_next(args, result.model is not None, data),
            as_json=output.json,
        )
        _push_result(args.output_dir, args, inputs)


class Prepared(NamedTuple):
    """A prepared search.

    Attributes:
        is_finished: tells whether its result already exists.
        search: runs it.
        data, inputs: the settings, with data sets pinned to the commits that were loaded.
    """

    is_finished: Callable[[], bool]
    search: Callable[[], Any]
    data: DataArguments
    inputs: SearchInputs


def _prepare_images(data: DataArguments, args: SearchArguments, inputs: SearchInputs) -> Prepared:
    """Prepare a search that runs experts on images."""
    from ..data.loading import load_images
    from ..experts.pool import check_references
    from ..search.search import DispatcherSearch
    from ..search.settings import pinned

    if not inputs.experts:
        raise PertinenceError("a search needs --experts, or --predictions and --costs")
    check_references(inputs.experts, args.load_options, args.stem)
    needs_labels = args.labels == "given"
    images, report = load_images(data, args.token, needs_labels), None
    at_commits, report_dataset = replace(data, dataset=data.dataset and pinned(data.dataset, images.commit)), None
    if inputs.has_report:
        report_data = at_commits.replaced(inputs.report_dataset, inputs.report_split)
        report = load_images(report_data, args.token, needs_labels)
        report_dataset = inputs.report_dataset and pinned(inputs.report_dataset, report.commit)
    searcher = DispatcherSearch(inputs.experts, images, args, report_dataset=report, label_map=data.label_map)
    inputs = replace(inputs, report_dataset=report_dataset)
    return Prepared(searcher.is_finished, searcher.run, at_commits, inputs)


def _prepare_table(path: str, data: DataArguments, args: SearchArguments, inputs: SearchInputs) -> Prepared:
    """Prepare a search on a table of predictions."""
    from ..predictions.tables import PredictionTable
    from ..search.search import is_searched, search_predictions

    if inputs.push_to_hub:
        raise PertinenceError("a search on a table of predictions has no model to push: leave --push-to-hub out")
    if inputs.experts or inputs.costs is None or data.dataset or data.limit:
        raise PertinenceError("--predictions takes --costs, and neither --experts nor --dataset nor --limit")
    sources: list[tuple[str | Path, str | None]] = [(path, data.split)]
    if inputs.has_report:
        sources.append((inputs.report_dataset or path, inputs.report_split or data.split))
        if sources[0][0] == sources[1][0] and (data.split is None or sources[0] == sources[1]):
            raise PertinenceError("the report images must be others: give --split and another --report-split")
    tables = PredictionTable.load_all(sources, inputs.costs, needs_labels=args.labels == "given")
    table, report = tables if inputs.has_report else (tables[0], None)
    return Prepared(
        partial(is_searched, table, args, report), partial(search_predictions, table, args, report), data, inputs
    )


def _next(args: SearchArguments, has_model: bool, data: DataArguments) -> list[str]:
    """What to type after a search: what loads the model in Python, and what times it on such images."""
    folder = str(args.output_dir)
    if not has_model:
        return [next_line("pertinence", "info", folder)]
    trusted = args.trust_remote_code
    options = ", trust_remote_code=True" if trusted else ""
    return [
        f"In Python: model = PertinenceForImageClassification.from_pretrained({json.dumps(folder)}{options})",
        next_line("pertinence", "benchmark", folder, *given_flags(data), *["--trust-remote-code"] * trusted),
    ]


def _found_before(folder: str) -> dict[str, Any]:
    """What a finished search has printed as JSON."""
    from ..hub.layout import RECORD
    from ..utils.json_files import parse_json, read_text

    record = parse_json(read_text(Path(folder) / RECORD))
    return {"output_dir": folder, **record["report"], "baselines": record["baselines"]}


def _push_result(folder: str, args: SearchArguments, inputs: SearchInputs) -> None:
    if inputs.push_to_hub:
        pushing = PushArguments(private=inputs.private, save_experts=inputs.save_experts, token=args.token)
        push(folder, inputs.push_to_hub, pushing)


COMMAND = Command("Search dispatchers for a pool of experts.", add_arguments, run, takes_config=True)
