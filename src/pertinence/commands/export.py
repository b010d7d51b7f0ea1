"""`pertinence export`: writes the experts of a searched model as ONNX files, compared with torch on real images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..data.arguments import DataArguments
from ..utils.errors import PertinenceError
from ..utils.settings import setting
from .models import MODEL, ModelArguments
from .output import JsonArguments, next_line, print_result
from .parser import Command, CommandParser


@dataclass
class ExportArguments(ModelArguments, JsonArguments):
    """What an export writes, and where."""

    backend: str = setting("onnx", "Format of the files; OpenVINO runs the same.", group="output", choices=["onnx"])
    output_dir: str | None = setting(
        None, "Folder for the model with its exported experts; default: the model's own.", group="output"
    )
    push_to_hub: str | None = setting(None, "Model repository to push the result to.", group="output")
    save_experts: bool = setting(
        False, "With --push-to-hub, also push a copy of each expert's own files.", group="output"
    )
    private: bool = setting(False, "Make the repository private if it is created.", group="output")
    trust_remote_code: bool = setting(False, "Run code that comes with experts. Read it first.", group="experts")
    token: str | None = setting(None, "Hub token; default: that of `hf auth login`.", group="experts")


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(DataArguments, ExportArguments)


def run(model: str, data: DataArguments, args: ExportArguments) -> None:
    if args.push_to_hub is None and (args.save_experts or args.private):
        raise PertinenceError("--save-experts and --private say what is pushed: give --push-to-hub, or leave them out")
    from ..evaluation.exports import export_onnx
    from ..hub.push import push_folder
    from ..predictions.arguments import RuntimeArguments

    runtime = RuntimeArguments(trust_remote_code=args.trust_remote_code, token=args.token)
    with TemporaryDirectory() as temporary:
        folder = args.output_dir or (model if Path(model).is_dir() else temporary if args.push_to_hub else None)
        if folder is None:
            raise PertinenceError(f"{model} is not a folder here: give --output-dir or --push-to-hub for the result")
        exported = export_onnx(model, folder, data, runtime, args.expert_folders, args.revision)
        if args.push_to_hub is not None:
            push_folder(
                folder,
                args.push_to_hub,
                save_experts=args.save_experts or any(entry.is_embedded for entry in exported.config.entries),
                private=args.private or None,
                token=args.token,
            )
    entries = [entry for entry in exported.config.entries if entry.exports]
    lines = [f"{entry.name}: {export.file}, {export.agreement}" for entry in entries for export in entry.exports]
    where = args.push_to_hub or folder
    values = {
        "model": where,
        "experts": {entry.name: [export.to_dict() for export in entry.exports] for entry in entries},
    }
    following = next_line("pertinence", "benchmark", str(where), "--backend", args.backend)
    print_result(values, *lines, f"Saved to {where}", following, as_json=args.json)


COMMAND = Command(
    "Write the experts of a searched model as ONNX files, each compared with torch on real images.", add_arguments, run
)
