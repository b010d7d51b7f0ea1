"""`pertinence convert`: from a file of weights to an expert that the next command takes."""

from pathlib import Path

import timm
import torch

from pertinence.commands.main import main
from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions


def test_a_file_of_weights_becomes_an_expert(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=2).state_dict()}, "best.pth")
    Path("names.txt").write_text("cat\ndog\n")
    words = ["best.pth", "--architecture", "test_resnet", "--labels", "names.txt", "--image-size", "48"]
    assert main(["convert", *words, "--mean", "0.4", "0.5", "0.6", "--no-ema", "--output-dir", "experts/a"]) == 0
    printed = capsys.readouterr()
    starts = [line.partition(":")[0].partition(" to ")[0] for line in printed.out.splitlines()]
    assert starts == ["Weights", "Network", "Images", "Checked", "Saved", "Next"]
    assert "48 x 48 pixels" in printed.out
    assert "mean 0.4, 0.5, 0.6" in printed.out
    assert not printed.err
    assert {path.name for path in Path("experts").rglob("*")} == {"a", "config.json", "model.safetensors"}
    assert load_expert(ExpertReference.parse("experts/a"), LoadOptions()).labels == {0: "cat", 1: "dog"}
    # the folder is an expert, and says what is not to be otherwise
    assert main(["convert", "experts/a", "--output-dir", "experts/b"]) == 1
    assert "experts/a is an expert already: give it as it is, `--experts experts/a`" in capsys.readouterr().err
    assert main(["convert", "experts/a", "--model-kwargs", "drop_rate=0.1", "--output-dir", "experts/b"]) == 0
    assert "timm's test_resnet, drop_rate=0.1, 2 labels (cat, ..., dog)\nImages: 48 x 48" in capsys.readouterr().out
    assert main(["convert", *words, "--output-dir", "experts/a"]) == 1
    assert capsys.readouterr().err == "error: experts/a exists: choose another --output-dir, or remove it first\n"
