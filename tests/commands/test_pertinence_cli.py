"""The console script: it is there at once, and what it runs finds the package as any other program does."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run


MODEL = Path(__file__).parents[1] / "fixtures" / "format_1"
SCRIPT = "import sys; from pertinence_cli import main; sys.argv[0] = 'pertinence'; code = main(); "
HEAVY = "print(sorted({'torch', 'transformers', 'datasets', 'pymoo', 'timm'} & set(sys.modules)))"


def run_script(*arguments: str, cwd, then: str = "sys.exit(code)") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + then, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["search", "--help"], ["search", "--recipe", "paper", "--help"], ["evaluate", "-h"]],
    ids=" ".join,
)
def test_help_and_version_import_neither_torch_nor_transformers(arguments, tmp_path):
    script = f"import atexit, sys; atexit.register(lambda: {HEAVY}); {SCRIPT}"
    shown = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "[]"
    assert "pertinence" in shown.stdout.splitlines()[0]


def test_a_command_registers_the_model_with_transformers(tmp_path):
    then = "import transformers; print(transformers.AutoConfig.for_model('pertinence').model_type, code)"
    shown = run_script("info", str(MODEL), cwd=tmp_path, then=then)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "pertinence 0"


@pytest.mark.nightly
def test_the_script_says_what_the_module_says():
    through_module = run("info", MODEL, cwd=MODEL.parent)
    assert run_script("info", str(MODEL), cwd=MODEL.parent).stdout == through_module.stdout


def test_a_plug_in_imports_the_package_as_any_module_does(tmp_path):
    (tmp_path / "looking.py").write_text(
        "import pertinence\nfrom pertinence import SearchArguments, register_recipe\n"
        "print(SearchArguments().seed, pertinence.PertinenceConfig.model_type)\n"
    )
    shown = run_script("search", "--plugins", "looking", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("0 pertinence\nusage: pertinence search")


def test_errors_are_one_sentence(tmp_path):
    failed = run_script("info", str(tmp_path), cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1
