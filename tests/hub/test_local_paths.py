"""Paths of a machine are found whatever its operating system, and however they are spelt."""

import json

import pytest

from pertinence import PertinenceError
from pertinence.hub.local_paths import check_no_paths, without_paths


@pytest.mark.parametrize(
    "folder", ["C:\\Users\\me\\{}", "\\\\server\\me\\{}", "D:/me/{}", "/home/me/{}", "..\\{}", "./{}"]
)
def test_settings_name_the_folders_of_any_machine(folder):
    settings = {"dataset": folder.format("pets"), "experts": [folder.format("vit"), "user/cnn"], "recipe": "paper"}
    changed, names = without_paths({**settings, "output_dir": folder.format("run")})
    assert changed == {"dataset": "pets", "experts": ["vit", "user/cnn"], "recipe": "paper", "output_dir": "run"}
    assert names == {"dataset": ["pets"], "experts": ["vit"]}


@pytest.mark.parametrize("spell", [str, lambda text: json.dumps(text)[1:-1]], ids=["plain", "json"])
def test_a_backslash_does_not_hide_a_path(tmp_path, spell):
    folder = tmp_path / "my\\own"
    folder.mkdir()
    check_no_paths({"notes.json": b'{"from": "elsewhere"}'}, [folder])
    with pytest.raises(PertinenceError, match=r"notes.json names a folder of this machine"):
        check_no_paths({"notes.json": f'{{"from": "{spell(str(folder))}/data"}}'.encode()}, [folder])
