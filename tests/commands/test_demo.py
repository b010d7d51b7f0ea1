"""The demo, as a user starts it: offline, from nothing."""

import os

from warm_processes import run_python


def test_demo_offline_from_nothing(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    finished = run_python("-m", "pertinence", "demo", cwd=tmp_path, env=environment)
    assert finished.returncode == 0, finished.stderr
    for word in ("resnet10t", "oracle", "The default point, ", "fewer operations than resnet10t"):
        assert word in finished.stdout
    assert finished.stdout.splitlines()[-1] == "Next: pertinence info runs/demo/model"
    assert (tmp_path / "runs/demo/model/front.png").is_file()
