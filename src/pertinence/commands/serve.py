"""`pertinence serve`: serves a model over HTTP, and moves along its front under load."""

from __future__ import annotations

from ..serving.arguments import ServeArguments, ServedPointArguments
from ..utils.errors import PertinenceError
from .models import MODEL, ModelArguments
from .parser import Command, CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.add_positional("model", MODEL)
    parser.add_settings(ServedPointArguments, ServeArguments, ModelArguments)


def run(model: str, points: ServedPointArguments, args: ServeArguments, where: ModelArguments) -> None:
    try:
        from ..serving.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pertinence"):
            raise
        raise PertinenceError(
            f"the server needs the package {error.name}: pip install starlette uvicorn[standard] prometheus-client "
            "python-multipart (the extra `serve`)"
        ) from error
    serve(model, args, points, where.expert_folders, where.revision)


COMMAND = Command(
    "Serve a model over HTTP, as Hugging Face's clients speak it; under load it answers at cheaper points.",
    add_arguments,
    run,
)
