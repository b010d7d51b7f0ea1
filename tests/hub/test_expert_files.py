"""The experts of a model that was saved on another machine, with paths of another operating system."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.commands.main import main


load = PertinenceForImageClassification.from_pretrained

PLACES = ["d:/models/{}", "\\\\server\\share\\my models\\{}"]


@pytest.fixture
def saved(tiny_experts, tmp_path: Path):
    """A function: the folder of a model whose experts were in such a place."""

    def save(place: str) -> Path:
        folder = tmp_path / "model"
        PertinenceForImageClassification.from_experts(tiny_experts, 0.5).save_pretrained(folder)
        values = json.loads((folder / "config.json").read_text())
        for entry in values["experts"]:
            entry["repo_id"] = place.format(entry["name"])
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return save


@pytest.mark.parametrize("place", PLACES)
def test_experts_of_another_operating_system_are_found_where_the_user_says(
    saved, place, tiny_experts, images, tmp_path
):
    folder, paths = saved(place), {expert.name: expert for expert in tiny_experts}
    with pytest.raises(PertinenceError) as refused:
        load(folder)
    assert f"was in the folder {place.format('vit')}, which does not exist" in str(refused.value)
    assert "expert_paths={'vit': folder}" in str(refused.value)
    expected = PertinenceForImageClassification.from_experts(tiny_experts, 0.5)(images(2, 96)).logits
    for lazy in (False, True):
        model = load(folder, expert_paths=paths, lazy=lazy)
        assert torch.equal(model(images(2, 96)).logits, expected)
    model.save_pretrained(tmp_path / "mended")
    assert load(tmp_path / "mended").config.experts[0]["repo_id"] == str(tiny_experts[0])


def test_a_folder_that_is_called_like_a_path_of_windows_is_not_it(saved, tiny_experts, tmp_path, monkeypatch):
    folder = saved("C:\\models\\{}")
    monkeypatch.chdir(tmp_path)
    for expert in tiny_experts:
        shutil.copytree(expert, tmp_path / f"C:\\models\\{expert.name}")
    with pytest.raises(PertinenceError, match="which does not exist: say where it has moved to"):
        load(folder)
    lazy = load(folder, lazy=True, expert_paths={"vit": tiny_experts[0]})
    with pytest.raises(PertinenceError, match="expert 'efficientnet' was in .* does not exist"):
        lazy.save_pretrained(tmp_path / "copy", save_experts=True)


def test_commands_on_a_model_that_was_saved_on_windows(saved, tiny_experts, hub, capsys):
    folder = saved("C:\\Users\\someone\\{}")
    assert main(["info", str(folder)]) == 0
    assert "C:\\Users\\someone\\vit" in capsys.readouterr().out
    push = ["push", str(folder), "tester/from-windows", "--token", hub.token]
    assert main(push) == 1
    assert "expert 'vit' is on this machine only" in capsys.readouterr().err
    paths = json.dumps({expert.name: str(expert) for expert in tiny_experts})
    assert main([*push, "--save-experts", "--expert-paths", paths]) == 0
    pushed = hub.files("tester/from-windows")
    assert "experts/0/model.safetensors" in pushed
    assert not [name for name, content in pushed.items() if b"Users" in content]
