"""`--plugins`: modules of the user's own, imported before anything else is parsed."""

import subprocess
import sys

import pytest
import yaml

from pertinence.commands.main import COMMANDS, main, parse


PLUGIN = """
from dataclasses import dataclass, field

from pertinence import register_recipe


@dataclass
class TreeArguments:
    depth: int = field(default=2, metadata={"help": "Of the trees.", "least": 1})
    kinds: list[str] = field(default_factory=lambda: ["oak"], metadata={"group": "of my own"})
    pruned: bool = False


register_recipe("trees", "trees_plugin:TreeRecipe", TreeArguments)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch, registered_recipes) -> str:
    """The name of a module in the current folder, which registers a recipe."""
    (tmp_path / "trees_plugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    yield "trees_plugin"
    sys.modules.pop("trees_plugin", None)


def arguments_of(*words: str):
    """The settings of a search that a command line gives."""
    return parse(["search", *words])[1][2]


def test_settings_of_a_plug_in_recipe_are_flags(plugin):
    args = arguments_of("--plugins", plugin, "--recipe", "trees", "--depth", "3", "--kinds", "a", "b", "--pruned")
    assert (args.recipe, args.depth, args.kinds, args.pruned) == ("trees", 3, ["a", "b"], True)
    assert args.search_settings["depth"] == 3
    assert args.of_recipe("trees").kinds == ["a", "b"]
    assert arguments_of("--recipe", "cascade+trees").depth == 2  # registered once, it stays


def test_help_shows_the_settings_of_the_recipe_alone(plugin, capsys):
    for recipe, is_shown in (("trees", True), ("cascade", False), ("cascade+trees", True)):
        with pytest.raises(SystemExit):
            main(["search", "--plugins", plugin, "--recipe", recipe, "--help"])
        shown = capsys.readouterr().out
        assert ("--depth N" in shown and "Of the trees (default: 2)." in shown) is is_shown
        assert ("--folds" in shown) is ("cascade" in recipe)
        assert "--epochs" not in shown
        assert "{cascade,paper,trees,both}" in shown


def test_the_current_folder_is_searched_for_plug_ins_alone(tmp_path, monkeypatch, registered_recipes):
    monkeypatch.chdir(tmp_path)
    arguments_of("--experts", "a")
    assert str(tmp_path) not in sys.path
    (tmp_path / "empty_plugin.py").touch()
    arguments_of("--plugins", "empty_plugin")
    assert sys.path[0] == str(tmp_path)
    sys.modules.pop("empty_plugin")


def test_a_file_names_plug_ins_and_their_settings(plugin, caplog):
    with open("search.yaml", "w") as file:
        yaml.safe_dump({"plugins": [plugin], "recipe": "trees", "depth": "5"}, file)
    args = arguments_of("--config", "search.yaml", "--no-pruned")
    assert (args.recipe, args.depth, args.pruned) == ("trees", 5, False)
    assert f"search.yaml imports modules of its own choice (plugins): {plugin}" in caplog.text


def test_the_flag_replaces_the_plug_ins_of_a_file(plugin, caplog):
    with open("search.yaml", "w") as file:
        yaml.safe_dump({"plugins": "nowhere", "recipe": "trees"}, file)
    assert arguments_of("--config", "search.yaml", "--plugins", plugin).recipe == "trees"
    assert "imports modules" not in caplog.text


@pytest.mark.parametrize("value", ["[1]", "{a: b}", "[[a]]", '["two\\nlines"]'])
def test_plug_ins_in_a_file_are_names(value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(f"plugins: {value}")
    assert main(["search", "--config", "search.yaml"]) == 1
    assert "plugins in search.yaml must be a list of names of modules" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_imports_plug_ins_first(command, tmp_path, monkeypatch, capsys, registered_recipes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    assert main([command, *positional(command), "--plugins", "broken_plugin"]) == 1
    assert "the plugin broken_plugin cannot be imported (ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_plug_in_that_is_nowhere_is_one_sentence(command, capsys, registered_recipes):
    assert main([command, *positional(command), "--plugins", "no_such_module"]) == 1
    assert capsys.readouterr().err.startswith("error: the plugin no_such_module cannot be imported")


def positional(command: str) -> list[str]:
    """What a command takes without a flag."""
    return {"search": [], "demo": [], "push": ["model", "user/model"]}.get(command, ["model"])


def test_a_recipe_of_an_installed_package_needs_no_flag(tmp_path):
    (tmp_path / "trees_plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "forest-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: forest\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pertinence.plugins]\nrecipe.trees = trees_plugin\n")
    script = f"import sys; sys.path.append({str(tmp_path)!r}); from pertinence_cli import main; main()"
    imported = "; print('torch' in sys.modules, 'trees_plugin' in sys.modules)"
    shown = {}
    for recipe in ("cascade", "trees"):
        words = ["search", "--recipe", recipe, "--help"]
        program = f"try:\n    {script}\nfinally:\n    {imported[2:]}"
        finished = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        shown[recipe] = finished.stdout
    for text in shown.values():
        assert "{cascade,paper,trees,both}" in text
    assert shown["cascade"].endswith("False False\n")
    assert "--depth N" not in shown["cascade"]
    assert shown["trees"].endswith("True True\n")
    assert "--depth N" in shown["trees"]


def test_without_its_plug_in_a_recipe_is_unknown(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["search", "--recipe", "trees"])
    assert stopped.value.code == 2
    assert "invalid choice: 'trees'" in capsys.readouterr().err
    (tmp_path / "search.yaml").write_text("recipe: trees\ndepth: 3")
    assert main(["search", "--config", str(tmp_path / "search.yaml")]) == 1
    assert "recipe='trees' is not one of cascade, paper" in capsys.readouterr().err
