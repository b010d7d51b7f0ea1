"""`pertinence push`: pushes a searched model to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import PertinenceError
from ..utils.settings import setting
from .models import MODEL, ModelArguments
from .output import JsonArguments, print_result
from .parser import Command, CommandParser


@dataclass
class PushArguments(ModelArguments, JsonArguments):
    """What to push, and how."""

    private: bool = setting(False, "Make the repository private if it is created.", group="output")
    revision: str | None = setting(None, "Branch to push to; created if it does not exist.", group="output")
    pr: bool = setting(False, "Open a pull request.", group="output")
    save_experts: bool = setting(False, "Also push a copy of each expert's own files.", group="output")
    replace_card: bool = setting(False, "Replace an existing README.md.", group="output")
    examples: bool = setting(False, "Also push examples.png, which shows images of the report split.", group="output")
    export: str | None = setting(
        None,
        "First export the experts into the folder, compared with torch on images of the data set that was searched.",
        group="experts",
        choices=["onnx"],
    )
    trust_remote_code: bool = setting(
        False, "With --export, run code that comes with experts. Read it first.", group="experts"
    )
    token: str | None = setting(None, "Hub token; default: that of `hf auth login`.", group="output")


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_positional("repo_id", "Model repository on the Hub.")
    parser.add_settings(PushArguments)


def run(model: str, repo_id: str, args: PushArguments) -> None:
    if args.trust_remote_code and args.export is None:
        raise PertinenceError("--trust-remote-code runs code of experts for --export: give --export, or leave it out")
    from ..hub.push import push_folder

    if args.export is not None:
        _export(model, args)
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
        expert_paths=args.expert_folders,
    )
    url = pushed.pr_url or pushed.commit_url
    print_result({"repo_id": repo_id, "url": url, "commit": pushed.oid}, f"Pushed to {url}", as_json=args.json)


def _export(model: str, args: PushArguments) -> None:
    from ..evaluation.exports import export_onnx
    from ..predictions.arguments import RuntimeArguments

    if not Path(model).is_dir():
        raise PertinenceError(f"{model} is not a folder here, and --export writes into the folder of the model")
    runtime = RuntimeArguments(trust_remote_code=args.trust_remote_code, token=args.token)
    export_onnx(model, model, args=runtime, expert_paths=args.expert_folders)


COMMAND = Command(
    "Push a searched model to the Hub, with its card, its record and its figures, in one commit.", add_arguments, run
)
