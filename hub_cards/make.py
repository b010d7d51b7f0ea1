"""Makes the reference dispatchers of this folder: what `pertinence push --save-experts --examples` would push after a
search of each pool, without the experts' own files.

    uv run python hub_cards/make.py
    uv run python hub_cards/make.py cifar10 imagenet-mobile

It reads the folder `../shared/zoo`, which examples/zoo builds. The pools with vision transformers also need what this
command makes:

    uv run python examples/distill_experts.py --config examples/distill_cifar10.yaml

Pools of CIFAR are searched on `validation` and reported on `test`. Those of ImageNet are searched on one half of
the 1,300 images and reported on the other, and no pictures of them are kept. Predictions are cached.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import metadata_save

from pertinence.commands.main import main as pertinence
from pertinence.hub.bundle import collect
from pertinence.hub.local_paths import check_no_paths
from pertinence.hub.push import CARD


HERE = Path(__file__).resolve().parent
ZOO = HERE.parents[1] / "shared" / "zoo"
STUDENTS = HERE.parent / "runs" / "vit" / "experts"
RESNETS = {"resnet8": "apache-2.0"} | {f"resnet{depth}": "bsd-3-clause" for depth in (20, 32, 44, 56)}
TRANSFORMERS = dict.fromkeys(("vit-6m", "swin-12m", "coatnet-47m"), "apache-2.0")
MOBILE = dict.fromkeys(
    (
        *("mobilenet_v1_0.25_128", "mobilenet_v1_0.5_160", "mobilenet_v1_0.75_192", "mobilenet_v2_1.0_224"),
        *("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"),
    ),
    "apache-2.0",
)
WITH_VIT = ("mobilenet_v1_0.5_160", "mobilenet_v2_1.0_224", "tf_efficientnet_lite0", "deit_tiny_patch16_224")
POOLS = {
    "cifar10": RESNETS,
    "cifar100": {name: RESNETS[name] for name in ("resnet20", "resnet32", "resnet44", "resnet56")},
    "cifar10-vit": TRANSFORMERS,
    "cifar10-vit-cnn": TRANSFORMERS | {name: RESNETS[name] for name in ("resnet8", "resnet20", "resnet56")},
    "cifar10-vit-teacher": TRANSFORMERS | {"resnet56": RESNETS["resnet56"]},
    "imagenet-mobile": MOBILE,
    "imagenet-mobile-vit": dict.fromkeys(WITH_VIT, "apache-2.0"),
}
"""Experts and their licences, which their own cards state only in prose. The first word of a pool names its images."""
IMAGES = {"imagenet": "imagenet-val"}
"""Where the images of a pool are, if not beside its experts."""
SETTINGS = {"imagenet": ["--label-map", "by_name", "--report-fraction", "0.5"]}
"""Settings of a search; by default the split `test` is reported."""
HOW_MADE = """
## The experts that are not on the Hub

{names} were distilled from ResNet-56 on `train`, on which this dispatcher was neither searched nor reported. In a
clone of the repository of `pertinence`, with the teacher and the images that the file names, this command makes them
again, with the same seed:

```console
uv run python examples/distill_experts.py --config examples/distill_cifar10.yaml
```

`examples/distill_cifar10.log` records the accuracy during training.
"""
KEPT = (".md", ".json", ".png", ".yaml")
"""What is kept here of a push: everything but weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", default=list(POOLS), help=f"of {', '.join(POOLS)}; default: all")
    for pool in parser.parse_args().pools:
        with tempfile.TemporaryDirectory() as work:
            make(pool, Path(work))


def make(pool: str, work: Path) -> None:
    """Search one pool and write what would be pushed to a folder of its name."""
    experts, dataset = [], pool.split("-")[0]
    for name, licence in POOLS[pool].items():
        experts.append(work / name)
        shutil.copytree((STUDENTS if name in TRANSFORMERS else ZOO / dataset) / name, work / name)
        metadata_save(work / name / CARD, {"license": licence})
    images = IMAGES.get(dataset, dataset)
    (work / images).mkdir()
    for path in (ZOO / images / "data").iterdir():
        (work / images / path.name).symlink_to(path)
    run = work / f"pertinence-{pool}"
    arguments = [
        "search", "--experts", *map(str, experts), "--dataset", str(work / images), "--split", "validation",
        "--trust-remote-code", "--output-dir", str(run), *SETTINGS.get(dataset, ["--report-split", "test"]),
    ]  # fmt: skip
    if pertinence(arguments):
        raise SystemExit(f"the search of {pool} failed")
    bundle = collect(run, work / "changed", save_experts=True, examples=dataset not in IMAGES)
    files = {path: content for path, content in bundle.files.items() if "/" not in path and path.endswith(KEPT)}
    card = bundle.card(f"pertinence/{run.name}")
    if made := [name for name in POOLS[pool] if name in TRANSFORMERS]:
        card = card.rstrip() + "\n" + HOW_MADE.format(names=", ".join(made))
    files[CARD] = card.encode()
    check_no_paths(files, [work])
    folder = HERE / run.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in files.items():
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    print(f"{folder.name}: {', '.join(sorted(files))}")


if __name__ == "__main__":
    main()
