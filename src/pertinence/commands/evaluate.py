"""`pertinence evaluate`: measures a searched model and its baselines on other images."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ..data.arguments import DataArguments
from ..predictions.arguments import RuntimeArguments
from ..utils.errors import PertinenceError
from ..utils.settings import setting
from .models import MODEL, ModelArguments
from .output import OutputArguments, next_line, print_result
from .parser import Command, CommandParser


logger = logging.getLogger(__name__)


@dataclass
class EvaluationOutputs(ModelArguments):
    """What an evaluation measures, and where it is saved."""

    operating_point: str | None = setting(None, "Measure only the point of this name.", group="output")
    group_column: str | None = setting(
        None, "Also compare with the reference expert by the values of this column.", group="output"
    )
    output_dir: str | None = setting(None, "Folder for evaluation.json and figures.", group="output")


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(DataArguments, RuntimeArguments, EvaluationOutputs, OutputArguments)


def run(
    model: str, data: DataArguments, args: RuntimeArguments, outputs: EvaluationOutputs, output: OutputArguments
) -> None:
    from accelerate import PartialState

    from ..evaluation.certainty_plots import plot_certainty
    from ..evaluation.evaluate import evaluate_model
    from ..evaluation.plots import plot_front, plot_shares
    from ..hub.layout import CERTAINTY_FIGURE, FRONT_FIGURE, RECORD, SHARES_FIGURE
    from ..utils.io import replaced

    paths = outputs.expert_folders
    folder = None if outputs.output_dir is None else Path(outputs.output_dir)
    if folder is not None and any((folder / name).exists() for name in ("config.json", RECORD)):
        raise PertinenceError(f"{folder} holds a model or a search: give an evaluation a folder of its own")
    evaluation = evaluate_model(
        model, data, args, outputs.operating_point, paths, outputs.revision, outputs.group_column
    )
    if not PartialState().is_main_process:
        return
    if folder is not None:
        path, text = folder / "evaluation.json", json.dumps(evaluation.to_dict(), indent=1)
        if path.is_file() and path.read_text() != text:
            logger.warning(f"{path} was that of another evaluation, which is replaced.")
        with replaced(path) as file:
            file.write_text(text)
        plot_front(evaluation, folder / FRONT_FIGURE)
        plot_shares(evaluation, folder / SHARES_FIGURE)
        if evaluation.certainty:
            plot_certainty(evaluation.certainty, folder / CERTAINTY_FIGURE)
    print_result(
        evaluation.to_dict(),
        evaluation.text(whole=output.verbose, with_warnings=False),
        *([] if folder is None else [f"Saved to {folder}"]),
        next_line("pertinence", "benchmark", model),
        as_json=output.json,
    )


COMMAND = Command("Measure a searched model and its baselines on other images.", add_arguments, run)
