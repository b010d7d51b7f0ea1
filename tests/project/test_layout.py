"""The tests mirror the package: a test module lies where its subject lies, and bears its name."""

from pathlib import Path

import pytest


TESTS = Path(__file__).resolve().parents[1]
SOURCE = TESTS.parent / "src" / "pertinence"
CROSSING = {"contracts", "end_to_end", "examples", "project"}
"""Folders of tests whose subject is no single module."""
MODULES = sorted(TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_a_test_module_is_named_after_its_subject(module: Path) -> None:
    folder, subject = module.parent.relative_to(TESTS), module.stem.removeprefix("test_")
    if folder.parts[:1] and folder.parts[0] in CROSSING:
        return
    assert (SOURCE / folder).is_dir(), f"there is no package {folder}"
    subjects = {path.stem for path in (SOURCE / folder).glob("*.py")}
    if folder.name == "commands":
        subjects.add("pertinence_cli")  # the console script, beside the package
    assert any(subject == name or subject.startswith(f"{name}_") for name in subjects), f"{folder} has no {subject}"
