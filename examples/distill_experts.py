"""Make small experts by distillation: train cheaper classifiers of any timm architecture to answer like a given one.

    python examples/distill_experts.py --config examples/distill_cifar10.yaml
    python examples/distill_experts.py --teacher user/resnet56 --dataset user/images --image-size 32 --students \
        '{name: vit, architecture: vit_tiny_patch16_224, model_args: {img_size: 32, patch_size: 8}, epochs: 50}'

The teacher sees a few augmented views of every training image once. Its logits are stored, and every student is
trained on these views (with Accelerate: on GPUs, and in several processes by torchrun). Each student becomes a folder
that timm, transformers and pertinence load, with its preprocessing and a card. If the run is killed, the same command
continues it.

Search on images that neither the teacher nor the students were trained on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from accelerate import Accelerator
from huggingface_hub import ModelCardData
from safetensors import safe_open
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.transforms import v2
from transformers import HfArgumentParser

from pertinence import PertinenceError
from pertinence.commands.config import read_config
from pertinence.data.arguments import DataArguments
from pertinence.data.dataset import LabelledImages, raise_or
from pertinence.data.loading import load_images
from pertinence.experts.backends.torch import is_convolutional
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.experts.transforms import apply_transform
from pertinence.hub.layout import update_config
from pertinence.runtime.transform import Transform
from pertinence.utils.distributed import make_accelerator
from pertinence.utils.io import replaced
from pertinence.utils.progress import progress_bar
from pertinence.utils.tensors import save_tensors


MEAN = STD = (0.5, 0.5, 0.5)
AT_ONCE = 256
"""Images of one batch in which nothing is trained."""


@dataclass(frozen=True)
class Student:
    """A network to train.

    Attributes:
        name: the name of its folder.
        architecture, model_args: as in `timm.create_model(architecture, **model_args)`.
        epochs: number of passes, each over one view of every image.
        image_size: side of its input in pixels; default: that of the views.
        learning_rate, weight_decay: settings of AdamW; after a linear rise the rate falls to zero as a cosine.
        bf16: whether it is trained in mixed precision; it is always saved in float32.
    """

    name: str
    architecture: str
    epochs: int
    model_args: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    bf16: bool = False

    @classmethod
    def parse(cls, value: Any) -> Student:
        """Make a student from a mapping, or from YAML or JSON text of one."""
        try:
            return cls(**(yaml.safe_load(value) if isinstance(value, str) else value))
        except (TypeError, yaml.YAMLError) as error:
            known = ", ".join(setting.name for setting in fields(cls))
            raise PertinenceError(f"a student is not understood ({error}): it is a mapping of {known}") from error

    def make(self, num_labels: int) -> nn.Module:
        try:
            return timm.create_model(self.architecture, num_classes=num_labels, **self.model_args)
        except Exception as error:  # architectures raise any type for arguments that they do not take
            raise PertinenceError(f"timm does not make student {self.name!r}: {error}") from error

    def transform(self, view_size: int) -> Transform:
        size = self.image_size or view_size
        return Transform("timm", (size, size), resize=size, rescale=1 / 255, mean=MEAN, std=STD)


@dataclass
class Distillation:
    """All settings of a run; each is a flag, and a key in the YAML file."""

    teacher: str | None = field(default=None, metadata={"help": "Hub id or folder."})
    students: list[str] | None = field(default=None, metadata={"help": "YAML or JSON mappings.", "action": "extend"})
    only: list[str] | None = field(default=None, metadata={"help": "Names of the students to make; default: all."})
    dataset: str | None = field(default=None, metadata={"help": "Hub name or folder of the training images."})
    split: str = "train"
    validation_split: str | None = field(default=None, metadata={"help": "Images to measure on; they choose nothing."})
    image_size: int = field(default=224, metadata={"help": "Side of the views in pixels."})
    views: int = field(default=4, metadata={"help": "Augmented views of each image that the teacher sees."})
    flip: bool = field(default=True, metadata={"help": "Whether a mirrored image has the same label."})
    temperature: float = field(default=2.0, metadata={"help": "Both distributions are softened by it."})
    hard_labels: float = field(default=0.0, metadata={"help": "Weight of the labels, against the teacher's answers."})
    batch_size: int = 128
    warmup: float = field(default=0.1, metadata={"help": "Share of the steps in which the learning rate rises."})
    measure_every: int = field(default=5, metadata={"help": "Epochs between two measurements on validation images."})
    licence: str | None = field(default=None, metadata={"help": "Of the students, for their cards."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let the teacher run code that it brings."})
    seed: int = 0
    output_dir: str = "runs/distilled"

    def of_training(self) -> dict[str, Any]:
        """The settings of the run on which the weights of a student depend."""
        others = "students only output_dir measure_every licence validation_split trust_remote_code".split()
        return {name: value for name, value in asdict(self).items() if name not in others}


def main() -> None:
    parser = HfArgumentParser(Distillation, description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="YAML file of these settings; flags replace what it says.")
    try:
        given = parser.parse_known_args()[0]
        if given.config:
            values = read_config(given.config, {setting.name for setting in fields(Distillation)})
            if given.students:
                del values["students"]  # a list given as a flag would be added to the file's
            parser.set_defaults(**values)
        run(parser.parse_args_into_dataclasses()[0])
    except (PertinenceError, OSError) as error:  # such as no connection
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept, and the same command continues from there")


def run(settings: Distillation) -> list[Path]:
    """Make every student that does not exist yet, and return the folders of all."""
    if not (settings.teacher and settings.dataset and settings.students):
        raise PertinenceError("name --teacher, --dataset and --students, or a --config that does")
    students = [Student.parse(student) for student in settings.students]
    names = [student.name for student in students]
    if len(set(names)) < len(names):
        raise PertinenceError(f"two students have the same name: {', '.join(names)}")
    if unknown := set(settings.only or ()) - set(names):
        raise PertinenceError(f"there is no student {', '.join(sorted(unknown))}")
    students = [student for student in students if not settings.only or student.name in settings.only]
    folder = Path(settings.output_dir)
    made = [folder / student.name for student in students]
    missing = [s for s, path in zip(students, made, strict=True) if not (path / "config.json").is_file()]
    if not missing:
        return made
    for student in missing:
        student.make(2)  # an error now is better than one after hours
    accelerator = make_accelerator()
    images = load_images(DataArguments(settings.dataset, split=settings.split))
    validation = None
    if settings.validation_split:
        validation = load_images(DataArguments(settings.dataset, split=settings.validation_split))
    options = LoadOptions(trust_remote_code=settings.trust_remote_code)
    teacher = load_expert(ExpertReference.parse(settings.teacher), options).to(accelerator.device)
    images.match_labels(teacher.labels)
    with accelerator.main_process_first():  # the other processes then find the files
        views = make_views(settings, teacher, images, folder / "views")
    accuracy = {}
    if validation is not None:
        accuracy[teacher.entry.name] = measure(lambda seen: teacher(seen)[0], validation)
    for student in missing:
        model = train(student, settings, views, validation, accelerator, folder / f"{student.name}.training")
        if accelerator.is_main_process:
            save(student, settings, model, teacher, validation, accuracy, folder / student.name)
        accelerator.wait_for_everyone()
    return made


# Views and the teacher's answers


def make_views(settings: Distillation, teacher: Expert, images: LabelledImages, folder: Path) -> list[Path]:
    """Write augmented views of all images with the teacher's logits; files that fit the settings are kept.

    Returns:
        The files, one per view: uint8 `pixels` (n, 3, S, S), the teacher's float32 `logits` (n, C), and int64 `labels`
        (n,).
    """
    size = settings.image_size
    same = {"images": images.fingerprint, "teacher": teacher.find_revision()}
    same |= {name: str(getattr(settings, name)) for name in ("image_size", "flip", "seed")}
    flips = [v2.RandomHorizontalFlip()] if settings.flip else []
    shift = v2.Compose([v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"), *flips])
    cut = v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), *flips])
    paths = [folder / f"view-{index}.safetensors" for index in range(settings.views)]
    with progress_bar(len(paths) * len(images), "Teaching", "image") as bar:
        for index, path in enumerate(paths):
            if _metadata(path) == same:
                bar.update(len(images))
                continue
            pixels, logits = [], []
            with torch.random.fork_rng():
                torch.manual_seed(1000 * settings.seed + index)
                for batch in _batches(images):
                    seen = torch.stack([(shift if i.shape[-2:] == (size, size) else cut)(i) for i in batch])
                    pixels.append(seen)
                    logits.append(teacher(seen)[0].cpu())
                    bar.update(len(seen))
            tensors = {"pixels": torch.cat(pixels), "logits": torch.cat(logits), "labels": images.labels}
            with replaced(path) as temporary:
                save_tensors(tensors, temporary, metadata=same)
    return paths


def _batches(images: LabelledImages):
    """All images in order, in lists of `AT_ONCE`."""
    for start in range(0, len(images), AT_ONCE):
        yield raise_or([images[row] for row in range(start, min(start + AT_ONCE, len(images)))])


def _metadata(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return file.metadata()


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


# Training


def train(
    student: Student,
    settings: Distillation,
    views: list[Path],
    validation: LabelledImages | None,
    accelerator: Accelerator,
    folder: Path,
) -> nn.Module:
    """Train a student, or continue; `folder` gets `log.jsonl` and the state after the last finished epoch."""
    with safe_open(views[0], "pt") as file:
        count, num_labels = file.get_slice("logits").get_shape()
    torch.manual_seed(settings.seed)
    model = student.make(num_labels)
    # Norms, biases and position embeddings have no weight decay.
    optimizer = create_optimizer_v2(model, "adamw", lr=student.learning_rate, weight_decay=student.weight_decay)
    same = {"student": json.dumps(asdict(student)), "settings": json.dumps(settings.of_training())}
    state, log, transform = folder / "state.safetensors", folder / "log.jsonl", student.transform(settings.image_size)
    done = load_state(state, model, optimizer, same)
    layout = torch.channels_last if is_convolutional(model) else torch.contiguous_format
    model, optimizer = accelerator.prepare(model.to(memory_format=layout), optimizer)
    network, device = accelerator.unwrap_model(model), accelerator.device
    batches = max(1, count // settings.batch_size)
    is_main, steps = accelerator.is_main_process, student.epochs * batches
    with progress_bar(steps, f"Training {student.name}", "step", is_main) as bar:
        bar.update(done * batches)
        for epoch in range(done, student.epochs):
            start, total = time.perf_counter(), 0.0
            torch.manual_seed(1000 * settings.seed + epoch)  # so that a continued run draws the same
            order, view = torch.randperm(count), _tensors(views[epoch % len(views)])
            model.train()
            for batch in range(batches):
                rows = order[batch * settings.batch_size : (batch + 1) * settings.batch_size]
                rows = rows[accelerator.process_index :: accelerator.num_processes]
                pixels, taught, right = (view[name][rows].to(device) for name in ("pixels", "logits", "labels"))
                for group in optimizer.param_groups:
                    progress = (epoch * batches + batch + 1) / steps
                    group["lr"] = student.learning_rate * schedule(progress, settings.warmup)
                with torch.autocast(device.type, torch.bfloat16, enabled=student.bf16):
                    logits = model(apply_transform(transform, pixels).to(memory_format=layout))
                loss = distillation_loss(logits.float(), taught, right, settings.temperature, settings.hard_labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                total += loss.item()
                bar.update(1)
            entry = {"epoch": epoch + 1, "loss": round(total / batches, 4)}
            entry["seconds"] = round(time.perf_counter() - start, 1)
            is_due = epoch + 1 == student.epochs or (epoch + 1) % settings.measure_every == 0
            if validation is not None and is_due and is_main:
                network.eval()
                entry["accuracy"] = measure(
                    lambda seen: network(apply_transform(transform, seen.to(device))), validation
                )
            if is_main:  # the log first: entries after the stored state are written again
                bar.set_postfix({name: entry[name] for name in ("loss", "accuracy") if name in entry})
                lines = log.read_text().splitlines()[:epoch] if epoch else []
                with replaced(log) as temporary:
                    temporary.write_text("\n".join([*lines, json.dumps(entry)]) + "\n")
                save_state(state, network, optimizer, same | {"epochs": str(epoch + 1)})
    return network.eval()


def distillation_loss(
    logits: torch.Tensor, taught: torch.Tensor, right: torch.Tensor, temperature: float, hard_labels: float
) -> torch.Tensor:
    """Divergence from the teacher's softened distribution plus cross-entropy with the labels, as a scalar.

    Args:
        logits, taught: float32 (b, C), the student's and the teacher's.
        right: int64 (b,), the labels.
        temperature: by which both distributions are softened.
        hard_labels: weight of the cross-entropy, in [0, 1].
    """
    own, wanted = ((scores / temperature).log_softmax(1) for scores in (logits, taught))
    soft = nn.functional.kl_div(own, wanted, log_target=True, reduction="batchmean")
    return (1 - hard_labels) * temperature**2 * soft + hard_labels * nn.functional.cross_entropy(logits, right)


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate at a share of all steps: a linear rise, then half a cosine down to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * torch.tensor((progress - warmup) / (1 - warmup) * torch.pi).cos().item()


@torch.no_grad()
def measure(network: Callable[[torch.Tensor], torch.Tensor], images: LabelledImages) -> float:
    """Accuracy of a network that takes uint8 images of one size."""
    answers = torch.cat([network(torch.stack(batch)).argmax(1).cpu() for batch in _batches(images)])
    return round((answers == images.labels).double().mean().item(), 4)


def save_state(path: Path, model: nn.Module, optimizer: Any, metadata: dict[str, str]) -> None:
    """Store the state of a training, as safetensors because a pickle may run code when it is opened."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in values.items()}
    with replaced(path) as temporary:
        save_tensors({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata=metadata)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, same: dict[str, str]) -> int:
    """Restore a training, and return the number of finished epochs: 0 if the settings differ."""
    metadata = _metadata(path) or {}
    done = int(metadata.pop("epochs", 0))
    if metadata != same:
        return 0
    weights, state = {}, {}
    for name, tensor in _tensors(path).items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = tensor
        else:
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return done


# Saving


def save(
    student: Student,
    settings: Distillation,
    model: nn.Module,
    teacher: Expert,
    validation: LabelledImages | None,
    accuracy: dict[str, float],
    folder: Path,
) -> None:
    """Write a student like timm's repositories on the Hub, load it as an expert, measure it, and write its card.

    Args:
        accuracy: that of the teacher, by its name; empty if there are no validation images.
        folder: where to write; an existing folder is replaced.
    """
    labels, size = list(teacher.labels.values()), student.transform(settings.image_size).size
    for stale in ("license", "tag", "origin_url", "paper_ids"):  # these describe other weights
        model.pretrained_cfg.pop(stale, None)
    model.pretrained_cfg.update(input_size=(3, *size), interpolation="bilinear", crop_pct=1.0, mean=MEAN, std=STD)
    if settings.licence:
        model.pretrained_cfg["license"] = settings.licence
    config = {"num_classes": len(labels), "label_names": labels, "model_args": dict(student.model_args)}
    with replaced(folder) as temporary:
        save_for_hf(model.cpu().to(memory_format=torch.contiguous_format), temporary, config, safe_serialization=True)
        # timm >= 1.0.31 adds `num_classes`, which transformers gives timm by itself.
        update_config(temporary / "config.json", {"model_args": student.model_args})
        expert = load_expert(ExpertReference.parse(temporary), LoadOptions())
        if validation is not None:
            accuracy = accuracy | {student.name: measure(lambda seen: expert(seen)[0], validation)}
        (temporary / "README.md").write_text(card(student, settings, expert, teacher, accuracy))


def card(student: Student, settings: Distillation, expert: Expert, teacher: Expert, accuracy: dict[str, float]) -> str:
    """The text of a model card: what the student is, its cost and accuracy beside its teacher, and how it was made."""
    on_hub = None if ExpertReference.parse(settings.teacher).is_folder else settings.teacher
    metadata = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", license=settings.licence, base_model=on_hub
    )
    rows = []
    for name, entry in ((student.name, expert.entry), (teacher.entry.name, teacher.entry)):
        right = f"{100 * accuracy[name]:.2f} %" if accuracy else ""
        rows.append(f"| {name} | {right} | {entry.gmacs:.4g} | {entry.parameters:,} |")
    made = {**settings.of_training(), "students": [asdict(student)]}
    made |= {name: Path(made[name]).name for name in ("teacher", "dataset") if Path(made[name]).is_dir()}
    measured_on = f" on split `{settings.validation_split}`" if accuracy else ""
    return f"""---
{metadata.to_yaml()}
---

# {student.name}

This model classifies images of {expert.entry.transform.size[0]} pixels into {len(expert.labels)} labels. It is timm's
`{student.architecture}`, distilled from {teacher.entry.name}.

| | accuracy{measured_on} | GMACs | parameters |
| --- | ---: | ---: | ---: |
{chr(10).join(rows)}

```python
from transformers import pipeline

classify = pipeline("image-classification", model="path/to/{student.name}")
```

It was made by `examples/distill_experts.py` of the package `pertinence` with these settings:

```yaml
{yaml.safe_dump(made, sort_keys=False).strip()}
```
"""


if __name__ == "__main__":
    main()
