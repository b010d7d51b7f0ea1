"""Registries: implementations by name."""

import importlib
import sys

import pytest

from pertinence import PertinenceError
from pertinence.utils.registry import GROUP, Registry, import_plugins


THINGS = """
from pertinence.utils.registry import Registry

class Thing:
    size = 1

OURS = Thing()
THINGS = Registry("thing", {"ours": f"{__name__}:OURS", "far": "no_such_module:Thing"}, asked=("size",))
"""
OFFERING = """
from some_things import THINGS, Thing

THINGS.register("offered", Thing())
"""
ENTRY_POINTS = f"[{GROUP}]\nthing.offered = offered_things\nthing.missing = offered_things\nother.one = nowhere\n"


@pytest.fixture
def things(tmp_path, monkeypatch):
    """A module with a registry of its own, and beside it an installed package that offers two more things, one of
    which it does not register."""
    (tmp_path / "some_things.py").write_text(THINGS)
    (tmp_path / "offered_things.py").write_text(OFFERING)
    info = tmp_path / "offered_things-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-things\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("some_things")
    for name in ("some_things", "offered_things"):
        sys.modules.pop(name, None)


@pytest.fixture
def registry(things) -> Registry:
    return things.THINGS


def test_ours_is_imported_when_it_is_asked_for(registry, things):
    assert registry.names == ["ours", "far"]
    assert registry.get("ours") is registry.find("ours") is registry.require("ours", "a file") is things.OURS
    with pytest.raises(ModuleNotFoundError):
        registry.find("far")


def test_what_is_registered_is_found(registry, things):
    mine = registry.register("mine", things.Thing())
    assert registry.get("mine") is registry.find("mine") is registry.require("mine", "a file") is mine
    assert registry.names == ["ours", "far", "mine"]
    other = things.Thing()
    assert registry.register("mine", other) is registry.get("mine") is other, "registered anew"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ours", "thing 'ours' is a part of pertinence: choose another name"),
        ("", "the name of the thing must be one line of text, got ''"),
        ("two\nlines", "the name of the thing must be one line of text"),
        (3, "the name of the thing must be one line of text, got 3"),
    ],
)
def test_names_that_are_taken_or_none(registry, things, name, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        registry.register(name, things.Thing())
    assert registry.names == ["ours", "far"]


def test_what_lacks_something_is_refused(registry):
    with pytest.raises(PertinenceError, match="the thing 'mine' has no size: see `Thing`"):
        registry.register("mine", object())
    assert registry.names == ["ours", "far"]


@pytest.mark.parametrize("name", ["other", "offered", None, 3, ["ours"], {}])
def test_a_file_that_asks_for_another_is_refused(registry, name):
    assert registry.find(name) is None
    with pytest.raises(PertinenceError, match="a.json: thing .* is not one of ours, far, which are registered: "):
        registry.require(name, "a.json")
    assert "offered_things" not in sys.modules


def test_what_packages_declare_is_imported_where_a_user_asks_for_it(registry, things):
    assert registry.declared == ["offered", "missing"]
    assert registry.names == ["ours", "far"]
    assert list(registry.choices) == ["ours", "far", "offered", "missing"]
    assert "offered" in registry.choices
    assert "offered_things" not in sys.modules
    assert isinstance(registry.get("offered"), things.Thing)
    assert registry.require("offered", "a file") is registry.get("offered"), "it is registered by now"


@pytest.mark.parametrize("name", ["missing", "other"])
def test_what_no_package_registers_is_refused(registry, name):
    with pytest.raises(PertinenceError, match=f"thing='{name}' is not one of ours, far, (offered, )?missing|offered"):
        registry.get(name)


def test_modules_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fine_plugin.py").write_text("value = 3")
    (tmp_path / "failing_plugin.py").write_text("raise OSError('the disk is away')")
    import_plugins(["fine_plugin"])
    assert sys.modules.pop("fine_plugin").value == 3
    with pytest.raises(PertinenceError, match=r"the plugin failing_plugin cannot be imported \(OSError: the disk is"):
        import_plugins(["failing_plugin"])
