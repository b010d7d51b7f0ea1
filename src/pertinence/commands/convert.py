"""`pertinence convert`: makes an expert of a file of weights."""

from __future__ import annotations

from ..experts.conversion.arguments import ConversionArguments
from .output import next_line
from .parser import Command, CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional(
        "file",
        "File of weights: of timm's train script, Lightning or torchvision, or a state dict (.safetensors, ...).",
    )
    parser.add_settings(ConversionArguments)


def run(file: str, args: ConversionArguments) -> None:
    from ..experts.conversion.convert import convert_checkpoint

    converted = convert_checkpoint(file, args)
    print(converted)
    print(next_line("pertinence", "advise", "--experts", str(args.output_dir), "OTHER", "--dataset", "IMAGES"))


COMMAND = Command(
    "Make an expert of a file of weights (.pth.tar, .pth, .ckpt, .safetensors) of timm, torchvision or Lightning.",
    add_arguments,
    run,
)
