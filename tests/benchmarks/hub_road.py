"""The whole road over HTTP, on a Hub of this machine: what it takes to load a pushed model, and what faults give.

    uv run python tests/benchmarks/hub_road.py

Experts of the zoo are pushed by transformers and by timm, images by datasets; `pertinence search` finds them by their
Hub ids and pushes what it finds; then a process without any cache loads it through `pipeline` and changes its budget,
again with that cache, and again offline. Requests and bytes are those that the Hub itself counted. Needs the zoo of
this project's development.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_hub import LocalHub  # noqa: E402


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
CIFAR = {"resnet8": "apache-2.0", "resnet20": "bsd-3-clause", "resnet56": "bsd-3-clause"}
LITES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1")
USE = """
import json, sys
import pertinence
from transformers import pipeline

repo_id, options, images = json.loads(sys.argv[1])
if options:  # which `pipeline` does not take
    model = pertinence.PertinenceForImageClassification.from_pretrained(repo_id, trust_remote_code=True, **options)
    processor = pertinence.PertinenceImageProcessor.from_pretrained(repo_id, **options)
    classify = pipeline("image-classification", model=model, image_processor=processor)
else:
    classify = pipeline("image-classification", model=repo_id, trust_remote_code=True)
answers = [classify(images, top_k=1)]
classify.model.set_budget(operating_point="fastest")
answers.append(classify(images, top_k=1))
print(json.dumps(answers))
"""
WEIGHTS = r"/tester/resnet8/resolve/[^/]+/model\.safetensors"
FAULTS: dict[str, dict[str, Any]] = {
    "503, once": {"status": 503, "times": 1},
    "500, always": {"status": 500},
    "a second late, every file": {"delay": 1.0, "path": r"/tester/.*/resolve/.*"},
    "cut off after 10 kB, once": {"truncate": 10_000, "times": 1},
    "cut off after 10 kB, always": {"truncate": 10_000},
    "connection reset, once": {"reset": True, "times": 1},
    "connection reset, always": {"reset": True},
    "one byte changed, once": {"corrupt": True, "times": 1},
    "one byte changed, always": {"corrupt": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="of each split")
    parser.add_argument("--population", type=int, default=10)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--json", help="file for the same figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = walk(Path(work), options)
    for step, row in figures["loads"].items():
        print(f"{step:34} {row['requests']:4} requests, {row['downloads']:3} files, {row['bytes'] / 1e6:8.3f} MB")
    print()
    for fault, outcome in figures["faults"].items():
        print(f"{fault:34} {outcome}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


def walk(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    hub = LocalHub().start()
    os.environ |= {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(work / "home"), "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    images = push_parts(work, options.images)
    searched, cascade = "tester/pertinence-cifar10", "tester/pertinence-lite"
    arguments = [
        "--experts", *(f"tester/{name}" for name in CIFAR), "--dataset", "tester/cifar10", "--split", "validation",
        "--report-split", "test", "--trust-remote-code", "--population", str(options.population), "--generations",
        str(options.generations), "--output-dir", str(work / "run"), "--push-to-hub", searched,
    ]  # fmt: skip
    run("-m", "pertinence", "search", *arguments, home=work / "searcher")

    from pertinence import PertinenceForImageClassification

    model = PertinenceForImageClassification.from_experts([f"tester/{name}" for name in LITES], thresholds=0.8)
    model.push_to_hub(cascade)

    loads, answers = {}, {}
    for name, repo_id, pictures in (("CIFAR-10, three", searched, images[:4]), ("Lite, two", cascade, images[4:])):
        for step, given, environment in (
            ("cold", {}, {}),
            ("warm", {}, {}),
            ("warm, local_files_only", {"local_files_only": True}, {}),
            ("warm, HF_HUB_OFFLINE", {}, {"HF_HUB_OFFLINE": "1"}),
        ):
            hub.requests.clear()
            told = json.dumps([repo_id, given, pictures])
            answers[name, step] = run("-c", USE, told, home=work / name, **environment)
            loads[f"{name}: {step}"] = count(hub)
        if len({answer for (of, _), answer in answers.items() if of == name}) != 1:
            raise SystemExit(f"{name}: not the same answers on every road")
    hub.requests.clear()
    run("-m", "pertinence", "info", searched, "--json", home=work / "informed")
    loads["CIFAR-10, three: info"] = count(hub)
    faults = {name: struck(hub, searched, dict(fault), work / "faults" / name) for name, fault in FAULTS.items()}
    hub.stop()
    return {"files": {path: len(data) for path, data in hub.files(searched).items()}, "loads": loads, "faults": faults}


def push_parts(work: Path, count: int) -> list[str]:
    """Push experts and images, each by its own library; returns image files: four small ones and two photographs."""
    import timm
    from datasets import DatasetDict, load_dataset
    from huggingface_hub import ModelCard, ModelCardData
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    for name, licence in CIFAR.items():
        folder = ZOO / "cifar10" / name
        model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
        model.push_to_hub(f"tester/{name}")
        AutoImageProcessor.from_pretrained(folder).push_to_hub(f"tester/{name}")
        card = (folder / "README.md").read_text()
        ModelCard(f"---\n{ModelCardData(license=licence).to_yaml()}\n---\n{card}").push_to_hub(f"tester/{name}")
    for name in LITES:
        model = timm.create_model(f"local-dir:{ZOO / 'imagenet' / name}", pretrained=True)
        timm.models.push_to_hf_hub(model, f"tester/{name}", safe_serialization=True)
    splits = {
        split: load_dataset(str(ZOO / "cifar10" / "data"), split=f"{split}[:{count}]")
        for split in ("validation", "test")
    }
    DatasetDict(splits).push_to_hub("tester/cifar10")
    photographs = load_dataset(str(ZOO / "imagenet" / "data"), split="validation[:2]")
    pictures = [*splits["test"].select(range(4))["image"], *photographs["image"]]
    files = [str(work / f"{index}.png") for index in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    return files


def run(*arguments: str, home: Path, **environment: str) -> str:
    """What a process of its own prints, with a cache of its own."""
    finished = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise SystemExit(f"{' '.join(arguments[:4])} failed:\n{finished.stderr[-3000:]}")
    return finished.stdout


def count(hub: LocalHub) -> dict[str, int]:
    downloads = [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    return {
        "requests": len(hub.requests),
        "downloads": sum(request.status < 300 for request in downloads),
        "bytes": sum(request.sent for request in hub.requests),
    }


def struck(hub: LocalHub, repo_id: str, fault: dict[str, Any], cache: Path) -> str:
    """What loading gives while something goes wrong with the weights of one expert, and what it gives afterwards."""
    from pertinence import PertinenceError, PertinenceForImageClassification

    def load() -> None:
        PertinenceForImageClassification.from_pretrained(repo_id, cache_dir=str(cache), trust_remote_code=True)

    with hub.fault(fault.pop("path", WEIGHTS), **fault) as happening:
        try:
            load()
            outcome = "loaded"
        except PertinenceError as error:
            outcome = f"refused: {error}"
    if outcome != "loaded":
        load()
        outcome += " (and the next load went well)"
    return f"{outcome}; happened {happening.happened} x"


if __name__ == "__main__":
    main()
