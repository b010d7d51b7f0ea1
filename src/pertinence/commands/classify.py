"""`pertinence classify`: classifies any number of images to a parquet, CSV or JSONL file."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.arguments import InputArguments
from ..evaluation.arguments import ClassificationArguments
from ..routing.budgets import Budget
from ..utils.errors import PertinenceError
from ..utils.settings import setting
from .models import MODEL, ModelArguments
from .output import JsonArguments, next_line, print_result
from .parser import Command, CommandParser


INPUTS = (
    "Image files, folders, patterns, parquet or tar shards, Hub ids of data sets; - for a list of paths on standard "
    "input."
)


@dataclass
class OutputFileArguments(ModelArguments, JsonArguments):
    """Where answers are written."""

    output: str | None = setting(None, "File to write: .parquet, .csv or .jsonl.", group="output", metavar="FILE")


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_positional("inputs", INPUTS, several=True)
    parser.add_settings(Budget, InputArguments, ClassificationArguments, OutputFileArguments)


def run(
    model: str,
    inputs: list[str],
    budget: Budget,
    data: InputArguments,
    args: ClassificationArguments,
    where: OutputFileArguments,
) -> None:
    from ..evaluation.classify import classify

    if where.output is None:
        raise PertinenceError("there is no place for the answers: give --output, such as --output answers.parquet")
    found = classify(model, inputs, where.output, args, budget, data, where.expert_folders, where.revision)
    if found is None:  # the main process prints
        return
    nothing = f"{where.output} is the finished output of this very run: nothing to do (--no-resume runs it again)"
    print_result(
        found.to_dict(),
        *([nothing] if found.is_old else []),
        str(found),
        next_line("pertinence", "info", model),
        as_json=where.json,
    )


COMMAND = Command(
    "Classify any number of images to a file; a run that was killed goes on where it stopped.", add_arguments, run
)
