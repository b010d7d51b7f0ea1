"""The whole road over HTTP, as `tests/benchmarks/hub_road.py` walks it, with few images."""

import json
import os
import subprocess
import sys
from pathlib import Path


ROAD = Path(__file__).parents[1] / "benchmarks" / "hub_road.py"


def test_from_hub_ids_to_a_pushed_model_that_loads_offline(zoo, tmp_path):
    arguments = ["--images", "300", "--population", "4", "--generations", "1", "--json", "road.json"]
    finished = subprocess.run(
        [sys.executable, str(ROAD), *arguments], cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    road = json.loads((tmp_path / "road.json").read_text())
    assert {"README.md", "config.json", "model.safetensors", "search_result.json", "front.png"} <= set(road["files"])
    for pool, weights in (("CIFAR-10, three", 4), ("Lite, two", 3)):
        steps = {step.partition(": ")[2]: row for step, row in road["loads"].items() if step.startswith(pool)}
        assert steps["cold"]["downloads"] > weights
        assert steps["warm"]["downloads"] == 0
        assert steps["warm, local_files_only"]["requests"] == steps["warm, HF_HUB_OFFLINE"]["requests"] == 0
    assert road["loads"]["CIFAR-10, three: info"]["downloads"] == 1
    for fault, outcome in road["faults"].items():
        assert outcome.startswith("refused: expert 'resnet8'" if "always" in fault else "loaded"), (fault, outcome)
        assert "the next load went well" in outcome or "always" not in fault
