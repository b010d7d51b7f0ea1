"""Flags and the help of every command."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import pertinence
from pertinence.commands.main import COMMANDS, main, parse
from pertinence.commands.parser import CommandParser
from pertinence.utils.settings import Settings


DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("flags", "mixing"),
    [
        ([], None),
        (["--mixing"], True),
        (["--no-mixing"], False),
        (["--no_mixing"], False),
        (["--mixing", "false"], False),
    ],
)
def test_optional_booleans_are_flags(flags, mixing):
    assert parse(["search", *flags])[1][2].mixing is mixing


@pytest.mark.parametrize("command", ["search", "evaluate", "calibrate", "push", "info", "demo"])
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "usage: pertinence" in capsys.readouterr().out


def shown_help(*words: str, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_spells_each_flag_once(command, capsys):
    shown = shown_help(command, capsys=capsys)
    flags = re.findall(r"^  (--\S+)", shown, re.MULTILINE)
    assert "--plugins" in flags
    assert len(flags) == len(set(flags))
    assert not re.search(r"--\w*_", shown)
    assert "None" not in shown
    assert "SUPPRESS" not in shown


def test_the_help_of_a_search_is_in_groups(capsys):
    shown = shown_help("search", capsys=capsys)
    groups = re.findall(r"^([a-z ]+):$", shown, re.MULTILINE)
    assert groups == ["options", "images and labels", "experts", "search", "recipe", "output", "hardware"]
    assert "--folds" in shown
    assert "--epochs" not in shown
    assert "--epochs" in shown_help("search", "--recipe", "both", capsys=capsys)
    paper = shown_help("search", "--recipe=paper", capsys=capsys)
    assert "--epochs" in paper
    assert "--folds" not in paper
    assert len(shown.splitlines()) < 115


def test_settings_of_another_recipe_are_taken():
    assert parse(["search", "--recipe", "cascade", "--epochs", "3", "--learning_rate", "1e-2"])[1][2].epochs == 3
    assert parse(["search", "--recipe", "both", "--folds=3"])[1][2].folds == 3


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--image_column", "x_y"], "image_column", "x_y"),
        (["--image-column=x_y"], "image_column", "x_y"),
        (["--trust_remote_code"], "trust_remote_code", True),
        (["--trust-remote-code", "true"], "trust_remote_code", True),
        (["--trust_remote_code=False"], "trust_remote_code", False),
        (["--no_baselines"], "baselines", False),
        (["--no-baselines"], "baselines", False),
        (["--baselines", "no"], "baselines", False),
        (["--resume", "1"], "resume", True),
        (["--no-resume"], "resume", False),
        (["--save-experts", "--experts", "a", "b"], "save_experts", True),
        (["--experts", "a", "b", "--experts", "c"], "experts", ["a", "b", "c"]),
        (["--learning-rate", "1e-2"], "learning_rate", 0.01),
        (["--seed", "3", "--seed", "4"], "seed", 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_every_spelling_of_a_flag(words, name, value):
    (found,) = {getattr(part, name) if name != "experts" else tuple(part.experts)
                for part in parse(["search", *words])[1] if hasattr(part, name)}  # fmt: skip
    assert found == (tuple(value) if name == "experts" else value)


def test_batch_sizes_of_a_benchmark():
    assert parse(["benchmark", "model"])[1][2].batch_size == [1, 32]
    assert parse(["benchmark", "model", "--batch-size", "8", "4", "8"])[1][2].batch_size == [4, 8]
    assert parse(["benchmark", "model", "--batch_size", "8", "--batch_size", "2"])[1][2].batch_size == [2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["search", "--population", "x"], "argument --population: invalid int value: 'x'"),
        (["search", "--cost", "euros"], "argument --cost: invalid choice: 'euros'"),
        (["search", "--mixing=perhaps"], "--mixing"),
        (["evaluate"], "the following arguments are required: model"),
        (["evaluate", "model", "--config", "x.yaml"], "unrecognized arguments: --config x.yaml"),
        (["search", "--config"], "usage: pertinence search [settings]"),
        (["info", "model", "--plugins"], "argument --plugins: expected at least one argument"),
        ([], "the following arguments are required: command"),
        (["fly"], "invalid choice: 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_not_understood_exits_with_usage(words, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_docstring_and_the_page_of_the_api_say_the_same(command, capsys, hooks):
    words = [command, *(["--recipe", "both"] if command == "search" else [])]
    page = hooks.on_page_markdown(
        (DOCS / "api.md").read_text(), SimpleNamespace(file=SimpleNamespace(src_uri="api.md")), {}, []
    )
    assert "<!-- settings" not in page
    shown = "".join(shown_help(*words, capsys=capsys).split())
    for part in CommandParser(command, COMMANDS[command], "both")._classes:
        for one in part.settings():
            text = one.metadata["help"]
            assert f"\n    {one.name}: {text}" in part.__doc__
            assert "".join(text.removesuffix(".").split()) in shown
            if part.__name__ in pertinence.__all__:
                assert f"| `{one.name}` | `{one.default!r}` | {text}" in page


def test_settings_on_the_page_of_the_api_are_all_that_are_public():
    named = re.findall(r"<!-- settings of (\w+) -->", (DOCS / "api.md").read_text())
    public = {name: getattr(pertinence, name) for name in pertinence.__all__}
    assert sorted(named) == sorted(
        name for name, one in public.items() if isinstance(one, type) and issubclass(one, Settings)
    )
