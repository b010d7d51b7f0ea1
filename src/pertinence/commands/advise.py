"""`pertinence advise`: says what a search of some experts can be expected to give, before any search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.arguments import DataArguments
from ..predictions.arguments import RuntimeArguments
from ..utils.errors import PertinenceError
from ..utils.settings import setting
from .output import JsonArguments, given_flags, next_line, print_result
from .parser import Command, CommandParser


if TYPE_CHECKING:
    from ..search.advice import Advice


PICTURES = (".png", ".svg", ".pdf", ".jpg")


@dataclass
class AdviceInputs(JsonArguments):
    """The experts to advise on, and where the advice goes."""

    experts: list[str | dict[str, Any]] | None = setting(
        None, "Hub ids, id@revision or local folders; at least two.", group="experts", metavar="EXPERT", extends=True
    )
    predictions: str | None = setting(
        None, "Table instead of experts and images, as for `pertinence search`.", group="data", metavar="FILE"
    )
    costs: str | None = setting(
        None, "JSON file of GMACs by model name, for --predictions.", group="data", metavar="FILE"
    )
    figure: str | None = setting(None, "Picture of accuracy against cost, and the pairs.", group="output")


def add_arguments(parser: CommandParser) -> None:
    parser.add_settings(DataArguments, AdviceInputs, RuntimeArguments)


def run(data: DataArguments, inputs: AdviceInputs, args: RuntimeArguments) -> None:
    from accelerate import PartialState

    from ..data.loading import load_images
    from ..experts.pool import check_references
    from ..predictions.tables import PredictionTable
    from ..search.advising import advise
    from ..utils.io import replaced

    if inputs.figure is not None and Path(inputs.figure).suffix.lower() not in PICTURES:
        raise PertinenceError(f"figure={inputs.figure!r} must end in {', '.join(PICTURES)}")
    if inputs.predictions is not None:
        if inputs.experts or inputs.costs is None or data.dataset or data.limit:
            raise PertinenceError("--predictions takes --costs, and neither --experts nor --dataset nor --limit")
        advice = advise(PredictionTable.load(inputs.predictions, inputs.costs, data.split))
    elif inputs.experts:
        check_references(inputs.experts, args.load_options)
        advice = advise(inputs.experts, load_images(data, args.token), args, label_map=data.label_map)
    else:
        raise PertinenceError("advice needs --experts and --dataset, or --predictions and --costs")
    if not PartialState().is_main_process:
        return
    if inputs.figure is not None:
        with replaced(Path(inputs.figure)) as file:
            advice.plot(file)
    print_result(
        advice.to_dict(),
        str(advice),
        *([] if advice.is_one_enough else [next_line(*_next_command(advice, data, inputs, args))]),
        *([] if inputs.figure is None else [f"Saved {inputs.figure}"]),
        as_json=inputs.json,
    )


def _next_command(advice: Advice, data: DataArguments, inputs: AdviceInputs, args: RuntimeArguments) -> list[str]:
    """The search to type; that of a table searches all its models."""
    words = ["pertinence", "search"]
    if inputs.predictions is not None:
        words += ["--predictions", inputs.predictions, "--costs", str(inputs.costs)]
    else:
        typed = {str(Path(one).resolve()): one for one in inputs.experts or [] if isinstance(one, str)}
        sources = [str(advice.sources[index]) for index in advice.taken]
        words += ["--experts", *(typed.get(source, source) for source in sources)]
    return [*words, *given_flags(data, args), "--output-dir", "RUN"]


COMMAND = Command("Say what a search of some experts can be expected to give.", add_arguments, run)
