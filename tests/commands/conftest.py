"""What the tests of commands share: images as files, and a folder in which a search was run."""

import os
import shutil
from pathlib import Path

import pytest
from command_line import SETTINGS, run


@pytest.fixture(scope="session")
def data(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    digits[1].to_parquet(folder / "validation.parquet")
    digits[2].to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture(scope="session")
def searched(data, digit_experts, tmp_path_factory) -> Path:
    """A folder in which a search was run, with the relative paths that people type."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "experts").symlink_to(digit_experts[0].parent)
    (folder / "data").symlink_to(data)
    experts = [f"experts/{expert.name}" for expert in digit_experts]
    # Whatever other tests of this process have predicted: here experts run.
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "pertinence", ignore_errors=True)
    finished = run(
        "search", "--experts", *experts[:2], "--experts", experts[2], "--dataset", "data", "--split", "validation",
        "--report-split", "test", "--output-dir", "runs/digits", *SETTINGS, cwd=folder,
        show_progress=True,
    )  # fmt: skip
    assert "Saved to runs/digits" in finished.stdout
    assert "Predictions of test_vit" in finished.stderr  # progress goes where it belongs
    return folder
