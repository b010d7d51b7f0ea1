"""Runs the tests of what other libraries give against the oldest and the newest versions that pyproject.toml allows.

    uv run python tests/compatibility.py                       # both sets
    uv run python tests/compatibility.py oldest tests/end_to_end/test_format_1.py   # one set, other tests

Each set is an environment of its own, made from uv's cache where that has the packages; nothing here is changed. The
oldest set has exactly the lower bounds of pyproject.toml (of what they in turn need the newest that fits), the newest
whatever the index has.
"""

import argparse
import subprocess
import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/end_to_end/test_format_1.py",
    "tests/hub/test_configuration.py",
    "tests/models/test_image_processing_pertinence.py",
    "tests/end_to_end/test_pipeline.py",
    "tests/experts/test_expert.py",
    "tests/models/test_expert_store.py",
    "tests/hub/test_push.py",
    "tests/routing/test_policy.py",
    "tests/end_to_end/test_properties.py",
    "tests/end_to_end/test_metamorphic.py",
)
"""What reads files of other versions, and what leans on transformers, timm, torch and NumPy, torchvision, the Hub,
accelerate and pymoo."""
SETS = ("oldest", "newest")


def requirements(which: str) -> list[str]:
    """Of the package, with lower bounds as the very versions for the oldest set."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [bound.replace(">=", "==") for bound in declared] if which == "oldest" else declared


def run_tests(which: str, tests: list[str]) -> int:
    packages = [*requirements(which), "hypothesis", "pytest"]
    command = ["uv", "run", "--no-project", "--isolated", "--with-editable", str(ROOT)]
    command += [argument for package in packages for argument in ("--with", package)]
    shown = "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in %r), sep=', ')"
    names = [package.split("=")[0].split(">")[0] for package in packages]
    code = f"{shown % (names,)}; import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    print(f"{which}:", flush=True)
    return subprocess.run([*command, "python", "-c", code, "-q", *tests], cwd=ROOT).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), help="oldest, newest; and test files")
    given = parser.parse_args().sets
    chosen = [name for name in given if name in SETS] or list(SETS)
    tests = [name for name in given if name not in SETS] or list(TESTS)
    failed = [name for name in chosen if run_tests(name, tests)]
    raise SystemExit(f"failed with the {' and the '.join(failed)} versions" if failed else 0)


if __name__ == "__main__":
    main()
