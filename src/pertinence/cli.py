"""The command line: parses, calls the Python API, prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from .arguments import DataArguments, RuntimeArguments, SearchArguments
from .configuration_pertinence import PertinenceConfig
from .errors import PertinenceError
from .front import format_table


@dataclass
class SearchInputs:
    """What a search starts from, beside its images."""

    experts: list[str] = field(
        metadata={"help": "Hub ids, id@revision or local folders; at least two.", "action": "extend"}
    )
    report_split: str | None = field(
        default=None, metadata={"help": "Split to report on; default: a part of --split is held out first."}
    )
    report_dataset: str | None = field(default=None, metadata={"help": "Data set to report on; default: --dataset."})
    save_experts: bool = field(default=False, metadata={"help": "Copy the experts' own files into the output folder."})


@dataclass
class EvaluationOutputs:
    """What an evaluation measures and where it goes."""

    operating_point: str | None = field(default=None, metadata={"help": "Measure only the point of this name."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for evaluation.json and front.png."})


@dataclass
class DemoArguments:
    """Where the demo works."""

    output_dir: str = field(default="runs/demo", metadata={"help": "New folder for experts and searched model."})
    seed: int = field(default=0, metadata={"help": "Fixes everything."})


def search(data: DataArguments, args: SearchArguments, inputs: SearchInputs) -> None:
    """Search dispatchers for a pool of experts."""
    from .data import load_images
    from .search import DispatcherSearch

    if args.output_dir is None:
        raise PertinenceError("a search needs a place for its result: give --output-dir")
    images, report = load_images(data, args.token), None
    if inputs.report_split is not None or inputs.report_dataset is not None:
        report = load_images(data.replaced(inputs.report_dataset, inputs.report_split), args.token)
    result = DispatcherSearch(inputs.experts, images, args, report_dataset=report).run()
    result.save(args.output_dir, save_experts=inputs.save_experts)
    print(result.evaluation)
    print(f"Saved to {args.output_dir}")


def evaluate(model: str, data: DataArguments, args: RuntimeArguments, outputs: EvaluationOutputs) -> None:
    """Measure a searched model and its baselines on other images."""
    from .evaluation import evaluate_model
    from .plots import plot_front

    evaluation = evaluate_model(model, data, args, outputs.operating_point)
    print(evaluation)
    if outputs.output_dir is not None:
        folder = Path(outputs.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(evaluation.to_dict(), indent=1))
        plot_front(evaluation, folder / "front.png")
        print(f"Saved to {folder}")


def info(model: str) -> None:
    """Show what a searched model is made of and what it can be set to; loads no weights."""
    config = PertinenceConfig.from_pretrained(model)
    if not config.experts:
        raise PertinenceError(f"{model} is not a pertinence model: its config.json lists no experts")
    header = ["expert", "GMACs", "parameters", "licence", "revision", "from"]
    rows = [
        [e["name"], f"{e['gmacs']:.4g}", f"{e['parameters']:,}", e["licence"] or "", e["revision"][:14], e["repo_id"]]
        for e in config.experts
    ]
    print(f"{len(rows)} experts, {config.num_labels} labels, {config.preprocessing} preprocessing\n")
    print(format_table(header, rows), "\n")
    print(config.build_front(), "\n")
    print(f"Default operating point: {config.operating_point}")


def demo(args: DemoArguments) -> None:
    """Train three small experts on scikit-learn's digits, search, save, reload and classify; offline."""
    from .demo import run_demo

    run_demo(args.output_dir, args.seed)


COMMANDS = {
    # name: function, positional arguments, dataclasses
    "search": (search, [], [DataArguments, SearchArguments, SearchInputs]),
    "evaluate": (evaluate, ["model"], [DataArguments, RuntimeArguments, EvaluationOutputs]),
    "info": (info, ["model"], []),
    "demo": (demo, [], [DemoArguments]),
}


def build_parser() -> HfArgumentParser:
    parser = HfArgumentParser([], prog="pertinence", description="The cheapest of your classifiers, for each image.")
    subparsers = parser.add_subparsers(dest="command", required=True, parser_class=HfArgumentParser)
    for name, (function, positional, dataclasses) in COMMANDS.items():
        summary = function.__doc__.split("\n")[0]
        subparser = subparsers.add_parser(name, dataclass_types=dataclasses, help=summary, description=summary)
        for argument in positional:
            subparser.add_argument(argument, help="Folder or Hub id of a searched model.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit status: 0, 1 for an error of the user's, 130 when interrupted."""
    values: dict[str, Any] = vars(build_parser().parse_args(arguments))
    function, positional, dataclasses = COMMANDS[values["command"]]
    try:
        settings = [cls(**{f.name: values[f.name] for f in fields(cls) if f.init}) for cls in dataclasses]
        function(*(values[name] for name in positional), *settings)
    except PertinenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of transformers and huggingface_hub, too: no such model, no connection, disk full
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; predictions that were finished are kept", file=sys.stderr)
        return 130
    return 0
