"""Pools of public ImageNet models, known by the classes that they answered with: 40,000 images, no scores, no models.

    uv run python tests/benchmarks/imagenet_tables.py

Half of the images search, the other half reports. Costs are GMACs that fvcore counts on the architectures of timm and
torchvision, with random weights.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd
import timm
import torchvision
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import logging

from pertinence import PredictionTable, SearchArguments, search_predictions
from pertinence.evaluation.report import Series
from pertinence.experts.operations import count_operations


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
TABLE = ZOO / "predictions" / "imagenet-val-top1.parquet"
COSTS = Path("runs") / "imagenet_costs.json"
IN_TIMM = {
    "dpn68b": (224, "dpn68b"),
    "dpn92": (224, "dpn92"),
    "dpn98": (224, "dpn98"),
    "dpn131": (224, "dpn131"),
    "dpn107": (224, "dpn107"),
    "inceptionv3": (299, "inception_v3"),
    "inceptionv4": (299, "inception_v4"),
    "inceptionresnetv2": (299, "inception_resnet_v2"),
    "nasnetalarge": (331, "nasnetalarge"),
    "pnasnet5large": (331, "pnasnet5large"),
    "resnext101_32x4d": (224, "resnext101_32x4d"),
    "resnext101_64x4d": (224, "resnext101_64x4d"),
    "se_resnet50": (224, "legacy_seresnet50"),
    "se_resnet101": (224, "legacy_seresnet101"),
    "se_resnet152": (224, "legacy_seresnet152"),
    "se_resnext50_32x4d": (224, "legacy_seresnext50_32x4d"),
    "se_resnext101_32x4d": (224, "legacy_seresnext101_32x4d"),
    "senet154": (224, "legacy_senet154"),
    "xception": (299, "legacy_xception"),
}
IN_TORCHVISION = [
    *("alexnet", "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg13", "vgg16", "vgg19", "vgg16_bn", "vgg19_bn"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet169", "densenet201", "densenet161"),
]
POOLS = {
    "ResNet-18 to 152": ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
    "four families": ["squeezenet1_1", "resnet18", "se_resnext50_32x4d", "inceptionv4", "pnasnet5large"],
    "all that can be counted": [*IN_TORCHVISION, *IN_TIMM],
}


class _Classifier(nn.Module):
    """An architecture of timm or torchvision as transformers calls its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.model(pixel_values))


def count_costs() -> dict[str, float]:
    """GMACs by model; counted once."""
    if not COSTS.is_file():
        costs = {name: (224, torchvision.models.get_model(name, weights=None)) for name in IN_TORCHVISION}
        costs |= {name: (size, timm.create_model(own)) for name, (size, own) in IN_TIMM.items()}
        COSTS.parent.mkdir(exist_ok=True)
        counted = {n: count_operations(_Classifier(m).eval(), (size, size)).gmacs for n, (size, m) in costs.items()}
        COSTS.write_text(json.dumps(counted, indent=1))
    return json.loads(COSTS.read_text())


def row(name: str, series: Series, area: float, hull: float, largest_cost: float) -> str:
    default, versus = series.points[series.default], series.versus_reference[series.default]
    at = max((i for i, point in enumerate(series.points) if point.select.cost <= 0.6 * largest_cost), default=0)
    cells = [
        name,
        f"{100 * (1 - default.report.cost / largest_cost):.1f} %",
        f"{100 * versus.mean:+.2f} ± {100 * versus.standard_error:.2f}",
        f"{100 * series.versus_reference[at].mean:+.2f}",
        f"{100 * (area - hull):+.2f}",
        ", ".join(str(member) for member in default.members),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=list(POOLS))
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    everything = pd.read_parquet(TABLE)
    header = ["pool, method", "default: saved", "against the largest", "at 40 % saved", "area above the random mix"]
    header.append("members")
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for title in options.pools:
        costs = {name: count_costs()[name] for name in POOLS[title]}
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "table.parquet", Path(folder) / "costs.json"
            everything[["label", *costs]].to_parquet(files[0])
            files[1].write_text(json.dumps(costs))
            table = PredictionTable.load(*files)
        args = SearchArguments(report_fraction=0.5, device="cpu")
        evaluation = search_predictions(table, args).evaluation
        hull, largest = evaluation.hypervolumes["random-mix"], evaluation.experts[-1].cost
        for name, series in {"cascade": evaluation.series, **evaluation.baselines}.items():
            area = evaluation.hypervolumes["front" if name == "cascade" else name]
            print(row(f"{title}: {name}", series, area, hull, largest), flush=True)


if __name__ == "__main__":
    main()
