"""A pool that knows something, made in seconds: random timm backbones whose last layer is fitted to scikit-learn's
digits."""

from pathlib import Path

import datasets
import timm
import torch
from timm.models import save_for_hf

from pertinence.data.dataset import LabelledImages
from pertinence.experts.transforms import apply_transform
from pertinence.runtime.transform import Transform


ARCHITECTURES = {  # two CNNs and a ViT: input size, images that the last layer is fitted to, arguments
    "test_efficientnet": (10, 40, {}),
    "test_vit": (48, 400, {"img_size": 48, "patch_size": 8}),
    "test_resnet": (64, 400, {}),
}


def save_digit_expert(architecture: str, dataset: datasets.Dataset, folder: Path) -> Path:
    """Fit the last layer of a random network by ridge regression and save the network as the Hub would have it."""
    size, count, model_args = ARCHITECTURES[architecture]
    images = LabelledImages(dataset.select(range(count)))
    transform = Transform("timm", (size, size), resize=size, rescale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = apply_transform(transform, torch.stack([images[index] for index in range(len(images))]))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=10, **model_args).train()
        model(pixels)  # batch norm needs statistics
        model.eval()
        features = model.forward_head(model.forward_features(pixels), pre_logits=True)
        mean = features.mean(0)
        centred = (features - mean).double()
        targets = torch.nn.functional.one_hot(images.labels, 10).double() - 0.1
        gram = centred.T @ centred
        weight = torch.linalg.solve(gram + 1e-2 * gram.trace() / len(gram) * torch.eye(len(gram)), centred.T @ targets)
        last = model.get_classifier()
        last.weight.copy_(8 * weight.T)
        last.bias.copy_(-last.weight @ mean)
    model.pretrained_cfg.update(input_size=(3, size, size), interpolation="bilinear", crop_pct=1.0)
    model.pretrained_cfg.update(mean=(0.5,) * 3, std=(0.5,) * 3)
    config = {"num_classes": 10, "label_names": list(images.label_names.values())}
    save_for_hf(model, folder, config | ({"model_args": model_args} if model_args else {}), safe_serialization=True)
    return folder
