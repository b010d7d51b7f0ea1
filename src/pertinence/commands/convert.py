"""`pertinence convert`: makes an expert of a file of weights, or of a folder of timm."""

from __future__ import annotations

from ..experts.conversion.arguments import ConversionArguments
from .output import JsonArguments, next_line, print_result
from .parser import Command, CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional(
        "file",
        "File of weights: of timm's train script, Lightning or torchvision, or a state dict (.safetensors, ...); or a "
        "folder of timm's save_for_hf.",
    )
    parser.add_settings(ConversionArguments, JsonArguments)


def run(file: str, args: ConversionArguments, output: JsonArguments) -> None:
    from ..experts.conversion.convert import convert_checkpoint

    converted = convert_checkpoint(file, args)
    print_result(
        converted.to_dict(),
        str(converted),
        next_line("pertinence", "advise", "--experts", str(args.output_dir), "OTHER", "--dataset", "IMAGES"),
        as_json=output.json,
    )


COMMAND = Command(
    "Make an expert of weights (.pth.tar, .pth, .ckpt, .safetensors, a folder) of timm, torchvision or Lightning.",
    add_arguments,
    run,
)
