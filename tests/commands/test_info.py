"""`pertinence info`: what it says of a saved model."""

import json

from command_line import run

from pertinence.commands.main import main


def test_info_loads_no_weights(searched, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_bytes((searched / "runs/digits/config.json").read_bytes())
    shown = run("info", "run", "--verbose", cwd=tmp_path).stdout
    for word in ("3 experts, 10 labels", "test_resnet", "sha256:", "fastest", "The default point, "):
        assert word in shown


def test_info_of_experts_that_are_in_no_file(searched, tmp_path, capsys):
    config = json.loads((searched / "runs/digits/config.json").read_text())
    config["experts"][0]["repo_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["info", str(tmp_path), "--verbose"]) == 0
    assert "no file" in capsys.readouterr().out
