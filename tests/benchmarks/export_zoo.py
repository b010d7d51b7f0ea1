"""Which experts can be exported, and how far their graphs agree with torch: the zoo, and other architectures.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/export_zoo.py zoo
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/export_zoo.py timm transformers
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/export_zoo.py timm --only vit_tiny

`zoo`: all its experts, on real images (CIFAR: 512 of the test split; ImageNet: 256 of the validation images). `timm`,
`transformers`: architectures with random weights, whose last layer is scaled so that logits spread as those of a
trained network do (standard deviation 2), on smooth random patterns. Nothing is downloaded.

It prints one line for each expert: operator set, size of the file, CPU seconds of the export, and for ONNX Runtime and
OpenVINO the largest difference of a logit and the share of the same answers; or the sentence that refuses it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from datasets import load_dataset
from torch import nn
from two_counters import _build_transformers

from pertinence.data.decoding import decode_image
from pertinence.evaluation.latency import synthetic_images
from pertinence.experts.backends.openvino import CompiledGraph
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.export_agreement import MOST_DIFFERENCE, agreement_of
from pertinence.experts.exporting import exported
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.runtime.sessions import Session, SessionSettings
from pertinence.utils.errors import PertinenceError


ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
PATTERNS = 32
TIMM = [
    *("resnet10t", "resnetv2_18", "res2net50_14w_8s", "dla46_c", "densenet121", "inception_v3"),
    *("regnety_002", "repvgg_a0", "mobilenetv3_small_050", "mobilenetv4_conv_small", "ghostnet_050"),
    *("efficientnet_b0", "convnext_atto", "convnextv2_atto", "starnet_s1", "repvit_m0_9", "fastvit_t8"),
    *("mambaout_femto", "inception_next_atto", "edgenext_xx_small", "mobilevit_xxs", "efficientformer_l1"),
    *("efficientvit_b0", "efficientvit_m0", "levit_128s", "vit_tiny_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "eva02_tiny_patch14_224"),
    *("beit_base_patch16_224", "convit_tiny", "pit_ti_224", "visformer_tiny", "pvt_v2_b0", "poolformer_s12"),
    *("davit_tiny", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "maxvit_pico_rw_256"),
    *("coatnet_pico_rw_224", "gcvit_xxtiny", "focalnet_tiny_srf", "hiera_tiny_224", "mvitv2_tiny"),
    *("tiny_vit_5m_224", "sequencer2d_s", "volo_d1_224", "mixer_s32_224", "gmlp_ti16_224", "halonet26t"),
    *("lambda_resnet26t", "botnet26t_256"),
]
TRANSFORMERS = [
    *("ResNet", "RegNet", "MobileNetV1", "MobileNetV2", "MobileViT", "EfficientNet", "ConvNext"),
    *("PoolFormer", "Levit", "PvtV2", "Segformer", "SwiftFormer", "FocalNet", "Swin", "Swinv2", "Beit"),
    *("Data2VecVision", "DeiT", "Dinov2", "ViTFor", "ViTMSN", "Hiera", "SiglipFor", "HGNetV2"),
]
"""Beginnings of the names of classes."""


def of_zoo() -> Iterator[tuple[str, Callable[[], Any]]]:
    for folder in sorted(path.parent for path in ZOO.glob("*/*/config.json")):
        yield f"{folder.parent.name}/{folder.name}", partial(str, folder)


def of_timm() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in TIMM:
        yield f"timm: {name}", partial(_save_timm, name)


def of_transformers() -> Iterator[tuple[str, Callable[[], Any]]]:
    for (
        config_class,
        model_class,
    ) in transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.items():
        for one in model_class if isinstance(model_class, tuple) else (model_class,):
            if one.__name__.startswith(tuple(TRANSFORMERS)):
                yield f"transformers: {one.__name__}", partial(_give_transformers, config_class, one)


SETS = {"zoo": of_zoo, "timm": of_timm, "transformers": of_transformers}


def _save_timm(name: str) -> str:
    """The folder of an architecture of timm with random weights, as timm saves one."""
    network = timm.create_model(name, num_classes=10).eval()
    folder = tempfile.mkdtemp(prefix="pertinence-architecture-")
    timm.models.save_for_hf(network, folder, safe_serialization=True, model_args={"num_classes": 10})
    return folder


def _give_transformers(config_class: Any, model_class: Any) -> dict[str, Any]:
    model, (height, width) = _build_transformers(config_class, model_class)
    processor = transformers.ViTImageProcessor(size={"height": height, "width": width})
    return {"model": model.eval(), "processor": processor}


@torch.no_grad()
def spread_logits(expert: Expert, images: torch.Tensor | list[torch.Tensor]) -> None:
    """Scale the last layer of a network with random weights, so that its answers differ."""
    last: list[nn.Module] = []
    labels = expert.checkpoint.model.config.num_labels
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: last.append(module))
        for module in expert.checkpoint.model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and labels in (module.weight.shape[0],)
    ]
    logits, _ = expert(images)
    for hook in hooks:
        hook.remove()
    if last and torch.isfinite(logits).all():
        scale = 2 / logits.std(0).clamp_min(1e-6)
        last[-1].weight.mul_(scale.view(-1, *[1] * (last[-1].weight.ndim - 1)))
        if last[-1].bias is not None:
            last[-1].bias.copy_((last[-1].bias - logits.mean(0)) * scale)


def images_for(name: str, expert: Expert, counts: dict[str, int]) -> list[torch.Tensor]:
    """Real images for an expert of the zoo, patterns for others."""
    pool = name.split("/")[0]
    if pool not in counts:
        return synthetic_images(PATTERNS, expert.entry.transform.size)
    files, split = (
        ("imagenet-val/data/*.parquet", "train") if pool == "imagenet" else (f"{pool}/data/test-*.parquet", "train")
    )
    rows = load_dataset("parquet", data_files=str(ZOO / files), split=split)
    step = len(rows) // counts[pool]
    return [decode_image(image) for image in rows.select(range(0, step * counts[pool], step))["image"][:]]


def line(name: str, reference: Any, counts: dict[str, int], root: Path) -> str:
    """The line of one expert; raises `PertinenceError` if it is refused."""
    parsed = ExpertReference.parse(reference)
    expert = load_expert(parsed, LoadOptions(trust_remote_code=True))
    images = images_for(name, expert, counts)
    if name.split("/")[0] not in counts:
        spread_logits(expert, images)
    start = time.process_time()
    export = exported(expert.checkpoint, expert.entry, "0", root, with_features=True)
    seconds = time.process_time() - start
    cells = [name, str(export.opset), f"{(root / export.file).stat().st_size / 1e6:.1f}", f"{seconds:.1f}"]
    content, settings = export.read(root / export.file), SessionSettings(threads=torch.get_num_threads())
    for opened in (lambda: Session(content, export, settings), lambda: CompiledGraph(content, export)):
        try:
            agreement, apart = agreement_of(expert, opened(), images)
        except PertinenceError as error:
            cells += [str(error), ""]
            continue
        is_fit = max(agreement.largest_difference, apart) <= MOST_DIFFERENCE and agreement.same_answers == 1
        doubt = "" if is_fit else f", features {apart:.1g}: refused"
        cells += [
            f"{agreement.largest_difference:.1e}{doubt}",
            f"{100 * agreement.same_answers:.2f} % of {len(images)}",
        ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--only", nargs="+", default=[], help="parts of names")
    parser.add_argument("--images", type=int, nargs=2, default=[512, 256], help="of CIFAR, and of ImageNet")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    counts = {"cifar10": options.images[0], "cifar100": options.images[0], "imagenet": options.images[1]}
    print("| expert | opset | MB | CPU s | ONNX Runtime: within | same answers | OpenVINO: within | same answers |")
    print("| --- | ---: | ---: | ---: | --- | --- | --- | --- |")
    count, refused = 0, []
    for chosen in options.sets:
        for name, build in SETS[chosen]():
            if options.only and not any(part in name for part in options.only):
                continue
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as root:
                try:
                    print(line(name, build(), counts, Path(root)), flush=True)
                    count += 1
                except Exception as error:  # an architecture may need another library, or a config of its own
                    kind = "" if isinstance(error, PertinenceError) else f"not built: {type(error).__name__}: "
                    refused.append(f"- {name}: {kind}{' '.join(str(error).split())[:400]}")
                    print(refused[-1], flush=True)
    print(f"\n{count} exported, {len(refused)} not:\n" + "\n".join(refused))


if __name__ == "__main__":
    main()
