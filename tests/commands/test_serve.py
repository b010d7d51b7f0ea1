"""`pertinence serve` as far as it goes without a server; the servers themselves are in tests/serving."""

from __future__ import annotations

import sys

import pytest

from pertinence.commands.main import main


@pytest.mark.parametrize("package", ["uvicorn", "prometheus_client"])
def test_a_missing_package_is_named(package, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pertinence.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "runs/none"]) == 1
    assert f"error: the server needs the package {package}: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--operating-point", "fastest", "--gmacs", "1"], "give one budget at most, got operating_point and gmacs"),
        (["--target-latency-ms", "0"], "target_latency_ms must be a positive number"),
        (["--api-key-file", "/none/keys"], "the file of keys /none/keys cannot be read"),
    ],
)
def test_wrong_settings_are_refused(flags, sentence, capsys):
    assert main(["serve", "runs/none", "--port", "0", *flags]) == 1
    assert sentence in capsys.readouterr().err
