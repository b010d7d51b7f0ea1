"""`pertinence calibrate`: chooses an operating point that is guaranteed to lose little accuracy, and stores it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data.arguments import DataArguments
from ..predictions.arguments import RuntimeArguments
from ..utils.settings import setting
from .models import MODEL, ModelArguments
from .output import JsonArguments, print_result
from .parser import Command, CommandParser


@dataclass
class GuaranteeArguments(ModelArguments, JsonArguments):
    """What to guarantee."""

    max_accuracy_loss: float = setting(
        0.005,
        "Accuracy (0 to 1) that may be lost against the reference expert (see info).",
        group="model",
    )
    confidence: float = setting(0.95, "Probability that the guarantee holds.", group="model")


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(DataArguments, RuntimeArguments, GuaranteeArguments)


def run(model: str, data: DataArguments, args: RuntimeArguments, promise: GuaranteeArguments) -> None:
    from accelerate import PartialState

    from ..evaluation.calibration import calibrate, store_guarantee
    from ..hub.configuration import PertinenceConfig

    paths = promise.expert_folders
    guarantee = calibrate(model, data, args, promise.max_accuracy_loss, promise.confidence, paths, promise.revision)
    if not PartialState().is_main_process:
        return
    config = PertinenceConfig.from_pretrained(model, token=args.token, revision=promise.revision)
    if Path(model).is_dir():
        store_guarantee(model, guarantee)
        stored = f"Stored in {model}, whose default operating point is now {guarantee.operating_point}."
    else:
        at = f" --revision {promise.revision}" if promise.revision else ""
        stored = (
            f"Not stored, as {model} is not a local folder: get it with `hf download {model}{at} --local-dir "
            f"FOLDER`, calibrate FOLDER, and push it with `pertinence push FOLDER {model} --replace-card`."
        )
    print_result(guarantee.to_dict(), guarantee.describe(config.build_front()), stored, as_json=promise.json)


COMMAND = Command(
    "Choose the cheapest operating point that is guaranteed to lose little accuracy, on unseen images.",
    add_arguments,
    run,
)
