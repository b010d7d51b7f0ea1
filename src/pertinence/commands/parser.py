"""The parser of one command: settings as flags, in the groups of its help."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..utils.settings import TRUTH, Setting, Settings


GROUPS = {
    "model": "the model",
    "data": "images and labels",
    "experts": "experts",
    "search": "search",
    "recipe": "recipe",
    "output": "output",
    "hardware": "hardware",
}
"""Groups of the help, in order, and their titles."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        summary: one sentence.
        add_arguments: adds its positional arguments and its settings to a parser.
        run: called with the positional arguments, then an object of each class of settings.
        takes_config: whether its settings may be given by a YAML file.
    """

    summary: str
    add_arguments: Callable[[CommandParser], None]
    run: Callable[..., None]
    takes_config: bool = False


class CommandParser(argparse.ArgumentParser):
    """Parses flags, and makes dataclasses of settings from them and from the values of a `--config` file.

    Args:
        name: name of the command.
        command: the command to parse arguments for.
        recipe: the value of `--recipe`, whose settings the help shows; None if it is not given.
    """

    def __init__(self, name: str, command: Command, recipe: Any = None):
        super().__init__(
            prog=f"pertinence {name}",
            description=command.summary,
            formatter_class=partial(argparse.HelpFormatter, max_help_position=30),
            allow_abbrev=False,  # an abbreviation would change its meaning when a flag is added
            argument_default=argparse.SUPPRESS,  # to distinguish flags that are given from those that are not
        )
        self.recipe = recipe
        self.settings: dict[str, Setting] = {}
        self.hidden: set[str] = set()
        self._positional: list[str] = []
        self._classes: list[type[Settings]] = []
        command.add_arguments(self)
        self.usage = " ".join(["%(prog)s", *(name.upper() for name in self._positional), "[settings]"])
        if command.takes_config:
            self.add_argument("--config", metavar="FILE", help="YAML file of settings; flags override it.")
        add_plugins(self)

    def add_positional(self, name: str, help: str, several: bool = False) -> None:
        """Add a positional argument; with `several` it takes one or more words."""
        self._positional.append(name)
        self.add_argument(name, help=help, nargs="+" if several else None)

    def add_settings(self, *classes: type[Settings], hidden: Collection[str] = ()) -> None:
        """Add a flag for every setting of these dataclasses; the help omits those with `hidden` names."""
        self._classes += classes
        found = [setting for cls in classes for setting in cls.settings()]
        self.settings |= {setting.flag: setting for setting in found}
        self.hidden |= set(hidden)
        for name, title in GROUPS.items():
            if members := [setting for setting in found if _group_of(setting) == name]:
                group = self.add_argument_group(title)
                for setting in members:
                    _add_flag(group, setting, setting.flag in hidden)

    def given(self, words: Sequence[str]) -> dict[str, Any]:
        """The values in a command line, by name.

        Raises:
            SystemExit: it is invalid, or asks for help; the text has been printed.
        """
        given, unknown = self.parse_known_args(self._as_in_help(words))
        if unknown:
            flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
            hints = [hint for flag in flags if (hint := nearest(flag, map(flag_of, self.settings)))]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")
        return vars(given)

    def make_arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """The positional arguments and an object of each class of settings.

        Raises:
            PertinenceError: a setting does not accept its value.
        """
        settings = [
            cls(**{one.name: values[one.flag] for one in cls.settings() if one.flag in values})
            for cls in self._classes
        ]
        return [*(values[name] for name in self._positional), *settings]

    def _as_in_help(self, words: Sequence[str]) -> list[str]:
        """Rewrite words to the spelling in the help: `--batch_size` to `--batch-size`, `--mixing no` to
        `--no-mixing`."""
        left, done = list(words), []
        switches = {flag_of(s.flag): f"--no-{flag_of(s.flag)[2:]}" for s in self.settings.values() if s.type is bool}
        while left and left[0] != "--":
            flag, equals, value = spelt_with_dashes(left.pop(0)).partition("=")
            if flag in switches and not equals and left and left[0].lower() in TRUTH:
                equals, value = "=", left.pop(0)
            if flag in switches and value.lower() in TRUTH:
                done.append(flag if TRUTH[value.lower()] else switches[flag])
            else:
                done.append(f"{flag}{equals}{value}")
        return done + left


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add the flag that every command has."""
    parser.add_argument(
        "--plugins",
        nargs="+",
        action="extend",
        metavar="MODULE",
        help="Your own modules to import first, which register recipes, costs, ...",
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like another one; empty if none is."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def spelt_with_dashes(word: str) -> str:
    """Replace `_` by `-` in the name of a flag; other words are unchanged."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word


def _group_of(setting: Setting) -> str:
    group = setting.metadata.get("group")
    return group if group in GROUPS else "recipe"  # recipes from outside may use any group


def _add_flag(group: Any, setting: Setting, is_hidden: bool) -> None:
    flag, help = flag_of(setting.flag), argparse.SUPPRESS if is_hidden else _help_of(setting)
    if setting.type is bool and setting.default is False:
        group.add_argument(flag, dest=setting.flag, action="store_true", help=help)
        group.add_argument(f"--no-{flag[2:]}", dest=setting.flag, action="store_false", help=argparse.SUPPRESS)
        return
    options: dict[str, Any] = {"dest": setting.flag, "help": help}
    if setting.type is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif setting.choices is not None:
        options["choices"] = setting.choices
    else:
        word = {int: "N", float: "X"}.get(setting.type, setting.name.rpartition("_")[2].upper())
        options |= {"type": setting.type, "metavar": setting.metadata.get("metavar", word)}
    if setting.is_list:
        options |= {"nargs": "+", "action": "extend" if setting.metadata.get("extends") else "store"}
    group.add_argument(flag, **options)


def _help_of(setting: Setting) -> str:
    text, default = setting.metadata.get("help", ""), setting.default
    if default is None or default is False:
        return str(text).replace("%", "%%")
    shown = "yes" if default is True else " ".join(map(str, default)) if setting.is_list else default
    return f"{text.removesuffix('.')} (default: {shown}).".replace("%", "%%")
