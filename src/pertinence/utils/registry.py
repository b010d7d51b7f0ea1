"""Registries: the implementations of an extension point by name, from this package, from installed packages and from
the user."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from .errors import PertinenceError, explain, shown
from .validation import is_name


T = TypeVar("T")
GROUP = "pertinence.plugins"
"""The group of entry points under which an installed package declares its plug-ins: `"<kind>.<name>" = "module"`, for
example `"recipe.mine" = "my_package.recipes"`. The module registers that name when it is imported."""


class Registry(Generic[T]):
    """Implementations of one extension point, by name.

    Built-in implementations are imported when they are first needed. Installed packages are imported only when the
    user asks for a name that they declare (see `GROUP`); a file never causes an import (see `find`).

    Args:
        kind: what an implementation is called in messages and entry points: "recipe", "evidence", ...
        ours: the built-in implementations, as "module:attribute", by name.
        asked: attributes that an implementation must have.
    """

    def __init__(self, kind: str, ours: Mapping[str, str] | None = None, asked: Sequence[str] = ()):
        self.kind, self._ours, self._asked = kind, dict(ours or {}), asked
        self._reserved = set(self._ours)
        self._registered: dict[str, T] = {}

    def register(self, name: Any, implementation: T, is_ours: bool = False) -> T:
        """Add an implementation; a module that is imported again replaces its own.

        Args:
            name: how it is asked for.
            implementation: what is asked for.
            is_ours: whether it is a part of pertinence, so that nothing else can take its name.

        Raises:
            PertinenceError: the name is not one line of text, or is that of another implementation, or the
                implementation lacks a required attribute.
        """
        if not is_name(name):
            raise PertinenceError(f"the name of the {self.kind} must be one line of text, got {shown(name)}")
        if name in self._reserved and not is_ours:
            raise PertinenceError(f"{self.kind} {name!r} is a part of pertinence: choose another name")
        if missing := [attribute for attribute in self._asked if not hasattr(implementation, attribute)]:
            raise PertinenceError(
                f"the {self.kind} {name!r} has no {', '.join(missing)}: see `{self.kind.capitalize()}`"
            )
        former = self._registered.get(name)
        if former is not None and _home_of(former) != _home_of(implementation):
            raise PertinenceError(
                f"{self.kind} {name!r} is registered already, by {_home_of(former)[0]}: choose another name"
            )
        if is_ours:
            self._reserved.add(name)
        self._registered[name] = implementation
        return implementation

    @property
    def names(self) -> list[str]:
        """The built-in names, then the registered ones; nothing is imported."""
        return list(dict.fromkeys([*self._ours, *self._registered]))

    @property
    def declared(self) -> list[str]:
        """The names that installed packages declare; nothing is imported."""
        prefix = f"{self.kind}."
        return [
            entry.name.removeprefix(prefix) for entry in entry_points(group=GROUP) if entry.name.startswith(prefix)
        ]

    @property
    def choices(self) -> Choices:
        """The names that a setting may take: a view, evaluated when the setting is checked."""
        return Choices(self)

    def find(self, name: Any) -> T | None:
        """The implementation of that name, or None unless it is built in or registered: what a file may ask for."""
        if not isinstance(name, str):
            return None
        if name not in self._registered and name in self._ours:
            module, _, attribute = self._ours[name].partition(":")
            self._registered[name] = getattr(importlib.import_module(module), attribute)
        return self._registered.get(name)

    def require(self, name: Any, where: str) -> T:
        """The implementation that a file asks for.

        Args:
            name: name of the implementation.
            where: what needs it, for the message.

        Raises:
            PertinenceError: it is not registered; a file never causes an import.
        """
        found = self.find(name)
        if found is None:
            raise PertinenceError(
                f"{where}: {self.kind} {shown(name)} is not one of {', '.join(self.names)}, which are registered: "
                "import the module that registers it first (--plugins MODULE on the command line)"
            )
        return found

    def get(self, name: str) -> T:
        """The implementation that the user asks for; an installed package that declares the name is imported.

        Raises:
            PertinenceError: the name is unknown, or the package that declares it cannot be imported.
        """
        if (found := self.find(name)) is None:
            for entry in entry_points(group=GROUP, name=f"{self.kind}.{name}"):
                import_plugin(entry.load, entry.value)
            found = self.find(name)
        if found is None:
            known = ", ".join(dict.fromkeys([*self.names, *self.declared]))
            raise PertinenceError(f"{self.kind}={shown(name)} is not one of {known}")
        return found


class Choices:
    """The names of a registry and those that installed packages declare; nothing is imported."""

    def __init__(self, registry: Registry[Any]):
        self._registry = registry

    def __contains__(self, name: Any) -> bool:
        return name in self._registry.names or name in self._registry.declared

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._registry.names, *self._registry.declared]))


def _home_of(implementation: Any) -> tuple[str, str]:
    """Module and name of a class, or of the class of an object: the same for a module that is imported again."""
    kind = implementation if isinstance(implementation, type) else type(implementation)
    return kind.__module__, kind.__qualname__


def import_plugin(load: Callable[[], Any], module: str) -> Any:
    """Import a plug-in by calling `load`; raises `PertinenceError` if that fails in any way."""
    try:
        return load()
    except Exception as error:  # the code of another package can fail in any way
        raise PertinenceError(f"the plugin {module} cannot be imported ({explain(error)})") from error


def import_plugins(modules: list[str]) -> None:
    """Import the user's own modules, which register recipes, evidence, backends, costs or baselines.

    Raises:
        PertinenceError: a module cannot be imported.
    """
    for module in modules:
        import_plugin(partial(importlib.import_module, module), module)
