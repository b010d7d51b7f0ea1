"""The command line: parses, calls the Python API, prints."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOWrapper
from typing import Any

from .._version import __version__
from ..utils.errors import PertinenceError, first_line
from ..utils.processes import quiet_other_processes
from . import advise, benchmark, calibrate, classify, convert, demo, evaluate, export, info, push, search, serve
from .config import check_known, import_user_plugins, pop_plugins, read_config, read_early
from .parser import Command, CommandParser


logger = logging.getLogger(__name__)

LEAST_COLUMNS = 80
"""A narrower terminal wraps lines itself."""
COMMANDS: dict[str, Command] = {
    "convert": convert.COMMAND,
    "advise": advise.COMMAND,
    "search": search.COMMAND,
    "evaluate": evaluate.COMMAND,
    "calibrate": calibrate.COMMAND,
    "benchmark": benchmark.COMMAND,
    "classify": classify.COMMAND,
    "serve": serve.COMMAND,
    "export": export.COMMAND,
    "push": push.COMMAND,
    "info": info.COMMAND,
    "demo": demo.COMMAND,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 after an error, 130 if interrupted."""
    quiet_other_processes()
    with console():
        return run_command(sys.argv[1:] if arguments is None else list(arguments))


@contextmanager
def console() -> Iterator[None]:
    """Let a command write within the context, whatever it is started from."""
    with ExitStack() as until_the_end:
        # A program without a terminal (pythonw, a closed descriptor) has no streams, which libraries write to.
        if sys.stdout is None or sys.stderr is None:
            nowhere = until_the_end.enter_context(open(os.devnull, "w", encoding="utf-8"))
            if sys.stdout is None:
                until_the_end.enter_context(redirect_stdout(nowhere))
            if sys.stderr is None:
                until_the_end.enter_context(redirect_stderr(nowhere))
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal without ± must not stop a command
        yield


def run_command(arguments: Sequence[str]) -> int:
    """Parse a command line and run it; returns the exit status."""
    try:
        run, parts = parse(arguments)
        load_package()
        run(*parts)
        sys.stdout.flush()
    except PertinenceError as error:
        print_error(str(error))
        return 1
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # also from transformers and huggingface_hub: no such model, no connection, disk full
        print_error(first_line(error))
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def print_error(sentence: str) -> None:
    """Print an error: on one line, or wrapped between words on a terminal of at least 80 columns."""
    text, width = f"error: {sentence}", 0
    with suppress(AttributeError, OSError, ValueError):  # stderr may be anything
        width = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 0
    if width >= LEAST_COLUMNS:
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr)


def load_package() -> None:
    """Register the model with the Auto classes of transformers, which the console script postpones until now."""
    import pertinence

    pertinence.PertinenceConfig  # noqa: B018


def build_parser() -> argparse.ArgumentParser:
    """The parser that finds the command; the parser of that command parses the rest."""
    parser = argparse.ArgumentParser(
        "pertinence", description="The cheapest of your classifiers, for each image.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pertinence {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", title="commands")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, add_help=False)
    return parser


def parse(arguments: Sequence[str]) -> tuple[Callable[..., None], list[Any]]:
    """Parse a command line.

    Returns:
        The function that runs the command, and its arguments.

    Raises:
        PertinenceError: a setting does not accept its value, a file cannot be read, or a plug-in cannot be imported.
        SystemExit: the arguments are invalid, or ask for help or the version; the text has been printed.
    """
    chosen, words = build_parser().parse_known_args(arguments)
    command = COMMANDS[chosen.command]
    early = read_early(chosen.command, words)
    config = read_config(early.config) if command.takes_config and early.config else {}
    plugins = pop_plugins(early.config, config)
    if early.plugins:
        plugins = early.plugins
    elif plugins:
        logger.warning(f"{early.config} imports modules of its own choice (plugins): {', '.join(plugins)}.")
    import_user_plugins(plugins)
    parser = CommandParser(chosen.command, command, early.recipe or config.get("recipe"))
    given = parser.given(words)
    if config.get("trust_remote_code") and "trust_remote_code" not in given:
        logger.warning(f"{early.config} allows experts to run code of their own (trust_remote_code).")
    for name in sorted(parser.hidden & set(given)):
        logger.warning(f"--{name.replace('_', '-')} has no effect: no recipe of this search has such a setting.")
    known = {name: value for name, value in config.items() if name in parser.settings}
    parts = parser.make_arguments(
        {name: parser.settings[name].convert(value) for name, value in known.items()} | given
    )
    check_known(early.config, config, parser.settings)  # last, as an unknown recipe explains unknown settings
    return command.run, parts
