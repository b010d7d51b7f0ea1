"""Settings: dataclasses whose fields say which values they accept, in one place for flags, YAML files and Python."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from inspect import cleandoc
from numbers import Real
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

from .errors import PertinenceError, shown


TRUTH = dict.fromkeys(("true", "yes", "y", "t", "1"), True) | dict.fromkeys(("false", "no", "n", "f", "0"), False)
"""Spellings of a Boolean, in a flag or a file."""


class Names(Protocol):
    """The names that a setting accepts: a list of them, or a view of a registry."""

    def __contains__(self, name: Any, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Names | None = None,
    least: int | None = None,
    most: int | None = None,
    above: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
    extends: bool = False,
    decides: bool = True,
    flag: str | None = None,
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: the value if none is given; a list is copied.
        help: one sentence.
        group: the group of a command's help that lists it, see `pertinence.commands.parser.GROUPS`.
        choices: the accepted names.
        least, most: inclusive bounds of a whole number.
        above, below: exclusive bounds of any other number.
        metavar: the placeholder for the value in the help; default: the type or the last word of the name.
        extends: whether a repeated flag adds to a list; else the last one counts.
        decides: whether the result of a search depends on it, so that another value makes another search.
        flag: its name among the settings of a command; default: that of the field.
    """
    limits = {
        "choices": choices,
        "least": least,
        "most": most,
        "above": above,
        "below": below,
        "metavar": metavar,
        "flag": flag,
    }
    metadata = {"help": help, "group": group, "extends": extends, "decides": decides}
    metadata |= {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """What a field of a settings dataclass accepts, according to its annotation and its metadata.

    Attributes:
        name: name of the field.
        type: bool, int, float or str; for a list the type of its elements.
        is_list, is_optional, takes_mapping: whether it is a list, may be None, and may be a mapping, which cannot be
            given by a flag.
        default: the value if none is given.
        metadata: see `setting`; every key may be missing.
    """

    name: str
    type: type
    is_list: bool
    is_optional: bool
    takes_mapping: bool
    default: Any
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, source: Field[Any], annotation: Any) -> Setting:
        """Read a field; raises `PertinenceError` if its annotation is of another type, or it has no default."""
        if source.default is not MISSING:
            default = source.default
        elif source.default_factory is not MISSING:
            default = source.default_factory()
        else:
            raise PertinenceError(f"the setting {source.name!r} has no default: give it one")
        options = _alternatives(annotation)
        is_optional = type(None) in options
        is_list = any(get_origin(option) is list for option in options)
        if is_list:
            options = {part for option in options for inner in get_args(option) for part in _alternatives(inner)}
        kinds = [kind for kind in (bool, int, float, str) if kind in options]
        if not kinds:
            raise PertinenceError(
                f"the setting {source.name!r} is of a type that no flag gives: annotate it as bool, int, float, str, "
                "or a list of one of these"
            )
        takes_mapping = any(get_origin(option) is dict for option in options)
        return cls(source.name, kinds[-1], is_list, is_optional, takes_mapping, default, source.metadata)

    @property
    def flag(self) -> str:
        """Its name among the settings of a command, with underscores."""
        return str(self.metadata.get("flag", self.name))

    @property
    def choices(self) -> Names | None:
        """The accepted names; None if it is not a choice among names."""
        return self.metadata.get("choices")

    def convert(self, value: Any) -> Any:
        """Convert a value from a file: text is read as a flag's text would be, and a number becomes text if text is
        expected.

        Raises:
            PertinenceError: the text is not a value of this type.
        """
        if self.type is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if self.type is str or self.is_list or not isinstance(value, str):
            return value
        try:
            return TRUTH[value.lower()] if self.type is bool else self.type(value)
        except (KeyError, ValueError):
            raise self._refusal(value) from None

    def check(self, value: Any) -> None:
        """Raise `PertinenceError` unless the setting accepts a value."""
        if value is None and self.is_optional:
            return
        if self.choices is not None:
            if not isinstance(value, str) or value not in self.choices:
                raise PertinenceError(f"{self.name}={shown(value)} is not one of {', '.join(self.choices)}")
        elif not self.is_list:
            self._check_one(value, value)
        elif self.type is not str:  # lists of text name experts, and are checked when those are loaded
            if not isinstance(value, list):
                raise self._refusal(value, is_of_wrong_type=True)
            for one in value or [None]:
                self._check_one(one, value)

    def _check_one(self, one: Any, value: Any) -> None:
        """Check a value, or an element of a list; a refusal shows `value`."""
        limits = {"least": -math.inf, "most": math.inf, "above": -math.inf, "below": math.inf, **self.metadata}
        if self.type is str:
            if isinstance(one, (list, tuple, set)) or (isinstance(one, dict) and not self.takes_mapping):
                raise self._refusal(value, is_of_wrong_type=True)
        elif self.type is bool:
            if not isinstance(one, int) or one not in (0, 1):
                raise self._refusal(value, is_of_wrong_type=True)
        elif self.type is int:
            if isinstance(one, bool) or not isinstance(one, int) or one < limits["least"]:
                raise self._refusal(value)
            if one > limits["most"]:
                raise PertinenceError(f"{self.name} must be at most {limits['most']}, got {shown(value)}")
        elif isinstance(one, bool) or not isinstance(one, Real):
            raise self._refusal(value, is_of_wrong_type=True)
        elif not limits["above"] < one < limits["below"]:
            raise self._refusal(value)

    def _refusal(self, value: Any, is_of_wrong_type: bool = False) -> PertinenceError:
        prefix = "a setting is of the wrong type: " if is_of_wrong_type else ""
        return PertinenceError(f"{prefix}{self.name} must {self._expected}, got {shown(value)}")

    @property
    def _expected(self) -> str:
        """What a value must be or do, for the sentence that refuses another one."""
        least, above, below = (self.metadata.get(name) for name in ("least", "above", "below"))
        if self.type in (str, bool):
            return "be text" if self.type is str else "be true or false"
        if self.type is int:
            return "be a whole number" if least is None else f"be at least {least}, a whole number"
        if above is not None and below is not None:
            return f"lie between {above:g} and {below:g}"
        if above is not None:
            return "be a positive number" if above == 0 else f"be a number above {above:g}"
        return "be a number" if below is None else f"be a number below {below:g}"


def _alternatives(annotation: Any) -> set[Any]:
    return set(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else {annotation}


def settings_of(arguments: type) -> tuple[Setting, ...]:
    """The settings of a dataclass, in order: the fields of its constructor, except those that are marked
    `is_no_setting` in their metadata.

    Raises:
        PertinenceError: a field has no default, or is of a type that no flag can give.
    """
    key: Any = arguments  # mypy believes that a class with __eq__ cannot be hashed
    return _settings_of(key)


@cache
def _settings_of(arguments: Any) -> tuple[Setting, ...]:
    hints = get_type_hints(arguments)
    return tuple(
        Setting.of(source, hints[source.name])
        for source in fields(arguments)
        if source.init and not source.metadata.get("is_no_setting")
    )


def check_settings(arguments: Any) -> None:
    """Raise `PertinenceError` if a field does not accept its value."""
    for one in settings_of(type(arguments)):
        one.check(getattr(arguments, one.name))


@dataclass
class Settings:
    """Base of dataclasses of settings: their values are checked when an object is made, and the `help` of their fields
    is added to the docstring."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = {name: one for name, one in vars(cls).items() if isinstance(one, Field)}
        of_bases = [vars(base).get("__dataclass_fields__", {}) for base in reversed(cls.__mro__[1:])]
        found = {name: one for part in [*of_bases, own] for name, one in part.items() if "help" in one.metadata}
        if cls.__doc__ and found:  # not with python -OO
            lines = [f"    {name}: {one.metadata['help']}" for name, one in found.items()]
            cls.__doc__ = "\n".join([cleandoc(cls.__doc__), "", "Args:", *lines])

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def settings(cls) -> tuple[Setting, ...]:
        """All settings, in the order of the help."""
        return settings_of(cls)

    def used(self) -> tuple[Setting, ...]:
        """The settings that have an effect, given the values of the others."""
        return settings_of(type(self))
