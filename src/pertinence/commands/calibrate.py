"""`pertinence calibrate`: promises what holds on images to come: loss of accuracy, error rates, sets."""

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
    max_error_rate: list[float] | None = setting(
        None,
        "Promise instead that at most this share (0 to 1) of what is answered is wrong; one or several.",
        group="model",
    )
    coverage: list[float] | None = setting(
        None,
        "Promise prediction sets that contain the right label so often (0 to 1); one or several.",
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
    if promise.max_error_rate or promise.coverage:
        _promise_answers(model, data, args, promise)
        return
    guarantee = calibrate(model, data, args, promise.max_accuracy_loss, promise.confidence, paths, promise.revision)
    if not PartialState().is_main_process:
        return
    config = PertinenceConfig.from_pretrained(model, token=args.token, revision=promise.revision)
    if Path(model).is_dir():
        store_guarantee(model, guarantee)
        stored = f"Stored in {model}, whose default operating point is now {guarantee.operating_point}."
    else:
        stored = _not_stored(model, promise.revision)
    print_result(guarantee.to_dict(), guarantee.describe(config.build_front()), stored, as_json=promise.json)


def _promise_answers(model: str, data: DataArguments, args: RuntimeArguments, promise: GuaranteeArguments) -> None:
    """Promise error rates and prediction sets."""
    from accelerate import PartialState

    from ..evaluation.promising import calibrate_answers, store_promises
    from ..hub.configuration import PertinenceConfig

    rates, coverages = promise.max_error_rate or [], promise.coverage or []
    paths, revision = promise.expert_folders, promise.revision
    promises = calibrate_answers(model, data, args, rates, coverages, promise.confidence, paths, revision)
    if not PartialState().is_main_process:
        return
    front = PertinenceConfig.from_pretrained(model, token=args.token, revision=revision).build_front()
    stored = _not_stored(model, revision)
    if Path(model).is_dir():
        store_promises(model, promises)
        uses = [f"set_budget(max_error_rate={rate:g})" for rate in promises.max_error_rates]
        uses += [f"model(images, coverage={coverage:g})" for coverage in promises.coverages]
        stored = f"Stored in {model} for all operating points; used by {', '.join(uses)}."
    print_result(promises.to_dict(), promises.describe(front), stored, as_json=promise.json)


def _not_stored(model: str, revision: str | None) -> str:
    at = f" --revision {revision}" if revision else ""
    return (
        f"Not stored, as {model} is not a local folder: get it with `hf download {model}{at} --local-dir "
        f"FOLDER`, calibrate FOLDER, and push it with `pertinence push FOLDER {model} --replace-card`."
    )


COMMAND = Command(
    "Promise what holds on images to come: a small loss of accuracy, error rates, or prediction sets.",
    add_arguments,
    run,
)
