"""The command line: parses, calls the Python API, prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.utils import logging

from .._version import __version__
from ..data.arguments import DataArguments
from ..evaluation.arguments import BenchmarkArguments
from ..hub.configuration import PertinenceConfig
from ..hub.layout import FRONT_FIGURE, RECORD, SHARES_FIGURE
from ..hub.push import check_pushable, push_folder
from ..predictions.arguments import RuntimeArguments
from ..search.arguments import SearchArguments
from ..search.settings import anchored, pinned, read_config, resolved_settings
from ..utils.distributed import make_accelerator, quiet_other_processes
from ..utils.errors import PertinenceError, first_line


logger = logging.get_logger(__name__)


@dataclass
class SearchInputs:
    """What a search starts from: experts and images, or a table of what models predicted."""

    experts: list[str] | None = field(
        default=None, metadata={"help": "Hub ids, id@revision or local folders; at least two.", "action": "extend"}
    )
    report_split: str | None = field(
        default=None, metadata={"help": "Split to report on; default: a part of --split is held out first."}
    )
    report_dataset: str | None = field(default=None, metadata={"help": "Data set to report on; default: --dataset."})
    save_experts: bool = field(default=False, metadata={"help": "Copy the experts' own files into the output folder."})
    predictions: str | None = field(
        default=None,
        metadata={
            "help": "Table in place of experts and images: .parquet, .csv, .json or .npz with a column `label` and "
            "one for each model, of scores or of classes."
        },
    )
    costs: str | None = field(default=None, metadata={"help": "JSON, GMACs by model name, for --predictions."})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Push the result to this model repository, as `pertinence push` does."}
    )
    private: bool = field(default=False, metadata={"help": "Make it private where it is created."})

    @property
    def has_report(self) -> bool:
        """Whether the report images are named, rather than held out of the others."""
        return self.report_split is not None or self.report_dataset is not None


@dataclass
class ModelArguments:
    """How a saved model is found."""

    expert_paths: str | None = field(
        default=None, metadata={"help": 'Where local experts have moved to, as JSON: {"name": "folder"}.'}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})


@dataclass
class EvaluationOutputs(ModelArguments):
    """What an evaluation measures and where it goes."""

    operating_point: str | None = field(default=None, metadata={"help": "Measure only the point of this name."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for evaluation.json and figures."})


@dataclass
class GuaranteeArguments(ModelArguments):
    """What is to be promised."""

    max_accuracy_loss: float = field(
        default=0.005, metadata={"help": "Accuracy (0 to 1) that may be lost against the largest expert."}
    )
    confidence: float = field(default=0.95, metadata={"help": "Probability with which the promise is kept."})


@dataclass
class InfoArguments:
    """How a model is looked up."""

    token: str | None = field(default=None, metadata={"help": "Hub token; default: that of `hf auth login`."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    json: bool = field(default=False, metadata={"help": "Print everything as JSON."})


@dataclass
class PushArguments(ModelArguments):
    """What is pushed, and how."""

    private: bool = field(default=False, metadata={"help": "Make the repository private where it is created."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to; created where there is none."})
    pr: bool = field(default=False, metadata={"help": "Open a pull request."})
    save_experts: bool = field(default=False, metadata={"help": "Also push a copy of each expert's own files."})
    replace_card: bool = field(default=False, metadata={"help": "Replace a README.md that is there."})
    examples: bool = field(
        default=False, metadata={"help": "Also push examples.png, which shows images of the report split."}
    )
    token: str | None = field(default=None, metadata={"help": "Hub token; default: that of `hf auth login`."})


@dataclass
class DemoArguments:
    """Where the demo works."""

    output_dir: str = field(default="runs/demo", metadata={"help": "New folder for experts and searched model."})
    seed: int = field(default=0, metadata={"help": "Fixes everything."})


def search(data: DataArguments, args: SearchArguments, inputs: SearchInputs) -> None:
    """Search dispatchers for a pool of experts."""
    from accelerate import PartialState

    if args.output_dir is None:
        raise PertinenceError("a search needs a place for its result: give --output-dir")
    prepare = _prepare_images if inputs.predictions is None else _prepare_table
    is_finished, run = prepare(data, args, inputs)
    # Not by PartialState, which without a device would say so in every process.
    if inputs.push_to_hub and make_accelerator(args.device).is_main_process:
        check_pushable(
            inputs.push_to_hub, [*(inputs.experts or []), *filter(None, [args.stem])], inputs.save_experts, args.token
        )
    if args.resume and is_finished():
        if PartialState().is_main_process:
            print(
                f"{args.output_dir} holds the result of this very search: nothing to do (--no-resume searches again)"
            )
            _push_result(args, inputs)
        return
    result = run()
    result.config = anchored(resolved_settings(data, args, inputs), result.model.config if result.model else None)
    result.save(args.output_dir, save_experts=inputs.save_experts)
    if result.is_main_process:
        print(result.evaluation)
        print(f"Saved to {args.output_dir}")
        _push_result(args, inputs)


Prepared = tuple[Callable[[], bool], Callable[[], Any]]
"""Of a search: whether its result is there already, and what runs it."""


def _prepare_images(data: DataArguments, args: SearchArguments, inputs: SearchInputs) -> Prepared:
    """A search that runs experts on images."""
    from ..data.loading import load_images
    from ..search.search import DispatcherSearch

    if not inputs.experts:
        raise PertinenceError("a search needs --experts, or --predictions and --costs")
    needs_labels = args.labels == "given"
    images, report = load_images(data, args.token, needs_labels), None
    data.dataset = pinned(data.dataset, images.commit)
    if inputs.has_report:
        report_data = data.replaced(inputs.report_dataset, inputs.report_split)
        report = load_images(report_data, args.token, needs_labels)
        inputs.report_dataset = inputs.report_dataset and pinned(inputs.report_dataset, report.commit)
    searcher = DispatcherSearch(inputs.experts, images, args, report_dataset=report)
    return searcher.is_finished, searcher.run


def _prepare_table(data: DataArguments, args: SearchArguments, inputs: SearchInputs) -> Prepared:
    """A search on predictions that were made elsewhere."""
    from ..predictions.tables import PredictionTable
    from ..search.search import is_searched, search_predictions

    if inputs.push_to_hub:
        raise PertinenceError("the result of a table of predictions has no model to push: leave --push-to-hub out")
    if inputs.experts or inputs.costs is None or data.dataset or data.limit:
        raise PertinenceError("--predictions takes --costs, and neither --experts nor --dataset nor --limit")
    sources = [(inputs.predictions, data.split)]
    if inputs.has_report:
        sources.append((inputs.report_dataset or inputs.predictions, inputs.report_split or data.split))
        if sources[0][0] == sources[1][0] and (data.split is None or sources[0] == sources[1]):
            raise PertinenceError("the report images must be others: give --split and another --report-split")
    tables = PredictionTable.load_all(sources, inputs.costs, needs_labels=args.labels == "given")
    table, report = tables if inputs.has_report else (tables[0], None)
    return partial(is_searched, table, args, report), partial(search_predictions, table, args, report)


def _push_result(args: SearchArguments, inputs: SearchInputs) -> None:
    if inputs.push_to_hub:
        pushing = PushArguments(private=inputs.private, save_experts=inputs.save_experts, token=args.token)
        push(args.output_dir, inputs.push_to_hub, pushing)


def push(model: str, repo_id: str, args: PushArguments) -> None:
    """Push a searched model to the Hub, with its card, its record and its figures, in one commit."""
    pushed = push_folder(
        model,
        repo_id,
        save_experts=args.save_experts,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.pr,
        replace_card=args.replace_card,
        examples=args.examples,
        token=args.token,
        expert_paths=_parse_mapping(args.expert_paths),
    )
    print(f"Pushed to {pushed.pr_url or pushed.commit_url}")


def evaluate(model: str, data: DataArguments, args: RuntimeArguments, outputs: EvaluationOutputs) -> None:
    """Measure a searched model and its baselines on other images."""
    from accelerate import PartialState

    from ..evaluation.evaluate import evaluate_model
    from ..evaluation.plots import plot_front, plot_shares
    from ..utils.io import replaced

    paths = _parse_mapping(outputs.expert_paths)
    folder = None if outputs.output_dir is None else Path(outputs.output_dir)
    if folder is not None and any((folder / name).exists() for name in ("config.json", RECORD)):
        raise PertinenceError(f"{folder} holds a model or a search: give an evaluation a folder of its own")
    evaluation = evaluate_model(model, data, args, outputs.operating_point, paths, outputs.revision)
    if not PartialState().is_main_process:
        return
    if folder is not None:
        with replaced(folder / "evaluation.json") as file:
            file.write_text(json.dumps(evaluation.to_dict(), indent=1))
        plot_front(evaluation, folder / FRONT_FIGURE)
        plot_shares(evaluation, folder / SHARES_FIGURE)
    print(evaluation)
    if folder is not None:
        print(f"Saved to {folder}")


def calibrate(model: str, data: DataArguments, args: RuntimeArguments, promise: GuaranteeArguments) -> None:
    """Choose the cheapest operating point that is guaranteed to lose little, on images that nothing has seen."""
    from accelerate import PartialState

    from ..evaluation.calibration import calibrate, store_guarantee

    paths = _parse_mapping(promise.expert_paths)
    guarantee = calibrate(model, data, args, promise.max_accuracy_loss, promise.confidence, paths, promise.revision)
    if not PartialState().is_main_process:
        return
    config = PertinenceConfig.from_pretrained(model, token=args.token, revision=promise.revision)
    print(guarantee.describe(config.build_front()))
    if Path(model).is_dir():
        store_guarantee(model, guarantee)
        print(f"Stored in {model}, whose default operating point is now {guarantee.operating_point}.")
    else:
        at = f" --revision {promise.revision}" if promise.revision else ""
        print(
            f"Not stored, as {model} is not a local folder: get it with `hf download {model}{at} --local-dir "
            f"FOLDER`, calibrate FOLDER, and push it with `pertinence push FOLDER {model} --replace-card`."
        )


def benchmark(model: str, data: DataArguments, args: BenchmarkArguments, where: ModelArguments) -> None:
    """Time the operating points of a searched model on this device, and note the milliseconds in its config."""
    from ..evaluation.latency import benchmark, latency_table, store_latency

    points = benchmark(model, data, args, _parse_mapping(where.expert_paths), where.revision)
    print(latency_table(points))
    if Path(model).is_dir():
        store_latency(model, points)
        print(f"Stored in {model}; choose by them with set_budget(latency_ms=...).")
    else:
        print(f"Not stored, as {model} is not a local folder: download it and time that.")


def _parse_mapping(text: str | None) -> dict[str, str] | None:
    try:
        mapping = None if text is None else json.loads(text)
    except json.JSONDecodeError:
        mapping = text
    if mapping is not None and not isinstance(mapping, dict):
        raise PertinenceError(f'--expert-paths must be JSON like {{"resnet8": "new/folder"}}, got {text!r}')
    return mapping


def info(model: str, access: InfoArguments) -> None:
    """Show what a searched model is made of and what it can be set to; loads no weights."""
    from ..hub.info import describe_model

    described, text = describe_model(model, access.token, access.revision)
    print(json.dumps(described, indent=1) if access.json else text)


def demo(args: DemoArguments) -> None:
    """Train three small experts on scikit-learn's digits, search, save, reload and classify; offline."""
    from .demo import run_demo

    run_demo(args.output_dir, args.seed)


POSITIONAL = {"model": "Folder or Hub id of a searched model.", "repo_id": "Model repository on the Hub."}

COMMANDS = {
    # name: function, positional arguments, dataclasses
    "search": (search, [], [DataArguments, SearchArguments, SearchInputs]),
    "evaluate": (evaluate, ["model"], [DataArguments, RuntimeArguments, EvaluationOutputs]),
    "calibrate": (calibrate, ["model"], [DataArguments, RuntimeArguments, GuaranteeArguments]),
    "benchmark": (benchmark, ["model"], [DataArguments, BenchmarkArguments, ModelArguments]),
    "push": (push, ["model", "repo_id"], [PushArguments]),
    "info": (info, ["model"], [InfoArguments]),
    "demo": (demo, [], [DemoArguments]),
}


def build_parser() -> HfArgumentParser:
    parser = HfArgumentParser([], prog="pertinence", description="The cheapest of your classifiers, for each image.")
    parser.add_argument("--version", action="version", version=f"pertinence {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, parser_class=HfArgumentParser)
    for name, (function, positional, dataclasses) in COMMANDS.items():
        summary = function.__doc__.split("\n")[0]
        subparser = subparsers.add_parser(name, dataclass_types=dataclasses, help=summary, description=summary)
        for setting in (setting for cls in dataclasses for setting in fields(cls) if setting.metadata.get("const")):
            flags = f"--no_{setting.name}", f"--no-{setting.name.replace('_', '-')}"
            options = {"dest": setting.name, "default": setting.default, "help": setting.metadata["help"]}
            subparser.add_argument(*flags, action="store_false", **options)
        for action in subparser._actions:
            if isinstance(action, argparse._StoreFalseAction):  # else told in the words of what it turns off
                action.help, action.default = f"Turn {action.dest.replace('_', '-')} off.", argparse.SUPPRESS
        for argument in positional:
            subparser.add_argument(argument, help=POSITIONAL[argument])
        if name == "search":
            subparser.add_argument(
                "--config", help="YAML file of these settings, as a search writes it; flags replace what it says."
            )
            subparser.set_defaults(parser=subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit status: 0, 1 for an error of the user's, 130 when interrupted."""
    quiet_other_processes()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ± must not end what is done
    try:
        function, parts = parse(sys.argv[1:] if arguments is None else list(arguments))
        function(*parts)
        sys.stdout.flush()
    except PertinenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of transformers and huggingface_hub, too: no such model, no connection, disk full
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> tuple[Callable[..., None], list[Any]]:
    """The function of a sub-command and what to call it with."""
    parser = build_parser()
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    function, positional, dataclasses = COMMANDS[values["command"]]
    if values.get("config"):
        known = {setting.name for cls in dataclasses for setting in fields(cls)}
        config = read_config(values["config"], known)
        if values["experts"]:
            config.pop("experts", None)  # a list given as a flag would be added to the file's
        if config.get("trust_remote_code") and not values["trust_remote_code"]:
            logger.warning(f"{values['config']} allows experts to run code of their own (trust_remote_code).")
        values["parser"].set_defaults(**config)
        values = vars(parser.parse_args(arguments))
    try:
        settings = [cls(**{f.name: values[f.name] for f in fields(cls) if f.init}) for cls in dataclasses]
    except TypeError as error:
        raise PertinenceError(f"a setting is of the wrong type: {error}") from error
    return function, [*(values[name] for name in positional), *settings]
