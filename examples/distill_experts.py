"""No small expert? Make one: train cheaper classifiers of any timm architecture to answer as one that you have.

    python examples/distill_experts.py --config examples/distill_cifar10.yaml
    python examples/distill_experts.py --teacher user/resnet56 --dataset user/images --image-size 32 --students \
        '{name: vit, architecture: vit_tiny_patch16_224, model_args: {img_size: 32, patch_size: 8}, epochs: 50}'

The teacher sees a few augmented views of every training image once; what it says of them is kept, and every student is
trained on these views (Accelerate: `torchrun`, GPUs and bf16 work). Each becomes a folder that transformers and timm
load, with its preprocessing and a card. Killed? The same command goes on. Search on images that are not trained on.
"""

from __future__ import annotations

import json
import time
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
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import HfArgumentParser

from pertinence import PertinenceError
from pertinence.accelerators import make_accelerator
from pertinence.arguments import DataArguments
from pertinence.checkpoints import ExpertReference, LoadOptions
from pertinence.cli import read_config
from pertinence.data import LabelledImages, load_images, raise_or
from pertinence.experts import Expert, is_convolutional, load_expert
from pertinence.files import replaced, save_tensors, update_config
from pertinence.preprocessing import Transform
from pertinence.progress import progress_bar


MEAN = STD = (0.5, 0.5, 0.5)
PROBE_BATCH = 256


@dataclass
class Student:
    """What is trained; `model_args` are keyword arguments of `timm.create_model`."""

    name: str
    architecture: str
    epochs: int
    model_args: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None  # pixels of a side, below those of the views
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    bf16: bool = False  # trained in mixed precision; saved in float32

    @classmethod
    def parse(cls, value: Any) -> Student:
        try:
            return cls(**(yaml.safe_load(value) if isinstance(value, str) else value))
        except (TypeError, yaml.YAMLError) as error:
            known = ", ".join(setting.name for setting in fields(cls))
            raise PertinenceError(f"a student is not understood ({error}): it is a mapping of {known}") from error


@dataclass
class Distillation:
    """Everything that a run depends on."""

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


def main() -> None:
    parser = HfArgumentParser(Distillation, description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="YAML file of these settings; flags replace what it says.")
    if path := parser.parse_known_args()[0].config:
        parser.set_defaults(**read_config(path, {setting.name for setting in fields(Distillation)}))
    run(parser.parse_args_into_dataclasses()[0])


def run(settings: Distillation) -> list[Path]:
    """Make every student that is not there yet; returns their folders."""
    if not (settings.teacher and settings.dataset and settings.students):
        raise PertinenceError("name --teacher, --dataset and --students, or a --config that does")
    students = [Student.parse(student) for student in settings.students]
    accelerator = make_accelerator()
    folder = Path(settings.output_dir)
    images = load_images(DataArguments(settings.dataset, split=settings.split))
    validation = None
    if settings.validation_split:
        validation = load_images(DataArguments(settings.dataset, split=settings.validation_split))
    teacher = load_expert(
        ExpertReference.parse(settings.teacher), LoadOptions(trust_remote_code=settings.trust_remote_code)
    )
    images.check_labels(teacher.labels)
    made = []
    with accelerator.main_process_first():  # the others then find them made
        views = make_views(settings, teacher.to(accelerator.device), images, folder / "views")
    for student in (student for student in students if not settings.only or student.name in settings.only):
        expert = folder / student.name
        if not (expert / "config.json").is_file():
            model = train(student, settings, views, validation, accelerator, folder / f"{student.name}.training")
            if accelerator.is_main_process:
                save(student, settings, model, teacher, validation, expert)
            accelerator.wait_for_everyone()
        made.append(expert)
    return made


def make_views(settings: Distillation, teacher: Expert, images: LabelledImages, folder: Path) -> list[Path]:
    """Augmented views of all images, each a file of uint8 `pixels` (n, 3, S, S), float32 `logits` (n, C) that the
    teacher answers with, and int64 `labels` (n,). What is there already, of the same images, is kept."""
    size = settings.image_size
    same = {
        "images": images.fingerprint,
        "teacher": teacher.revision,
        "size": str(size),
        "flip": str(settings.flip),
        "seed": str(settings.seed),
    }
    flips = [v2.RandomHorizontalFlip()] if settings.flip else []
    shift = v2.Compose([v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"), *flips])
    cut = v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), *flips])
    paths = []
    with progress_bar(settings.views * len(images), "Teaching", "image") as bar:
        for view in range(settings.views):
            path = folder / f"view-{view}.safetensors"
            paths.append(path)
            if path.is_file():
                with safe_open(path, "pt") as file:
                    if file.metadata() == same:
                        bar.update(len(images))
                        continue
            pixels, logits = [], []
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed * 1000 + view)
                for start in range(0, len(images), PROBE_BATCH):
                    batch = raise_or([images[row] for row in range(start, min(start + PROBE_BATCH, len(images)))])
                    seen = torch.stack([(shift if i.shape[-2:] == (size, size) else cut)(i) for i in batch])
                    pixels.append(seen)
                    logits.append(teacher(seen)[0].cpu())
                    bar.update(len(batch))
            tensors = {"pixels": torch.cat(pixels), "logits": torch.cat(logits), "labels": images.labels}
            with replaced(path) as temporary:
                save_tensors(tensors, temporary, metadata=same)
    return paths


def train(
    student: Student,
    settings: Distillation,
    views: list[Path],
    validation: LabelledImages | None,
    accelerator: Accelerator,
    folder: Path,
) -> torch.nn.Module:
    """Train a student from where it was left, an epoch on one view after the other; `folder` gets `log.jsonl` and the
    state after the last whole epoch."""
    torch.manual_seed(settings.seed)
    with safe_open(views[0], "pt") as file:
        count, labels = file.get_slice("logits").get_shape()
    model = timm.create_model(student.architecture, num_classes=labels, **student.model_args)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=student.learning_rate, weight_decay=student.weight_decay
    )  # none on norms, biases and position embeddings
    same = {"student": json.dumps(asdict(student)), "settings": json.dumps(_training_settings(settings))}
    state, log = folder / "state.safetensors", folder / "log.jsonl"
    done = load_state(state, model, optimizer, same)
    memory_format = torch.channels_last if is_convolutional(model) else torch.contiguous_format
    model, optimizer = accelerator.prepare(model.to(memory_format=memory_format), optimizer)
    transform = make_transform(student, settings)
    steps_an_epoch = max(1, count // settings.batch_size)
    steps = student.epochs * steps_an_epoch
    with progress_bar(steps, f"Training {student.name}", "step", accelerator.is_main_process) as bar:
        bar.update(done * steps_an_epoch)
        for epoch in range(done, student.epochs):
            start, losses = time.perf_counter(), 0.0
            torch.manual_seed(settings.seed * 1000 + epoch)  # whatever was before, an epoch is the same
            order = torch.randperm(count)
            tensors = load_view(views[epoch % len(views)])
            model.train()
            for step in range(steps_an_epoch):
                rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
                rows = rows[accelerator.process_index :: accelerator.num_processes]
                pixels, taught, right = (tensors[key][rows].to(accelerator.device) for key in tensors)
                for group in optimizer.param_groups:
                    group["lr"] = student.learning_rate * schedule(
                        (epoch * steps_an_epoch + step + 1) / steps, settings.warmup
                    )
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=student.bf16):
                    logits = model(transform.apply(pixels).to(memory_format=memory_format))
                loss = distillation_loss(logits.float(), taught, right, settings)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses += loss.item()
                bar.update(1)
            entry = {"epoch": epoch + 1, "loss": round(losses / steps_an_epoch, 4)}
            entry["seconds"] = round(time.perf_counter() - start, 1)
            network = accelerator.unwrap_model(model)
            is_last = epoch + 1 == student.epochs
            if validation is not None and (is_last or (epoch + 1) % settings.measure_every == 0):
                answers = predict(lambda seen, n=network.eval(): n(transform.apply(seen)), validation, accelerator)
                entry["accuracy"] = round((answers == validation.labels).float().mean().item(), 4)
            if accelerator.is_main_process:
                bar.set_postfix({key: value for key, value in entry.items() if key not in ("epoch", "seconds")})
                save_state(state, network, optimizer, same | {"epochs": str(epoch + 1)})
                entries = log.read_text().splitlines()[:epoch] if epoch else []
                with replaced(log) as temporary:
                    temporary.write_text("\n".join([*entries, json.dumps(entry)]) + "\n")
    return accelerator.unwrap_model(model).eval()


def _training_settings(settings: Distillation) -> dict[str, Any]:
    """What a student's training depends on besides itself."""
    others = ("students", "only", "output_dir", "measure_every", "licence", "validation_split", "trust_remote_code")
    return {name: value for name, value in asdict(settings).items() if name not in others}


def distillation_loss(
    logits: torch.Tensor, taught: torch.Tensor, right: torch.Tensor, settings: Distillation
) -> torch.Tensor:
    """Divergence from the teacher's softened distribution, and cross-entropy with the labels: scalar.

    Args:
        logits, taught: float32 (b, C), the student's and the teacher's.
        right: int64 (b,), the labels.
    """
    t, hard = settings.temperature, settings.hard_labels
    soft = F.kl_div((logits / t).log_softmax(1), (taught / t).log_softmax(1), log_target=True, reduction="batchmean")
    return (1 - hard) * t * t * soft + hard * F.cross_entropy(logits, right)


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine down to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * torch.tensor((progress - warmup) / (1 - warmup) * torch.pi).cos().item()


def make_transform(student: Student, settings: Distillation) -> Transform:
    size = student.image_size or settings.image_size
    return Transform("timm", (size, size), resize=size, rescale=1 / 255, mean=MEAN, std=STD)


def load_view(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in ("pixels", "logits", "labels")}


@torch.no_grad()
def predict(network: Any, images: LabelledImages, accelerator: Accelerator) -> torch.Tensor:
    """Labels (n,) that a network answers with, given uint8 images of one size."""
    answers = []
    for start in range(0, len(images), PROBE_BATCH):
        seen = torch.stack(raise_or([images[row] for row in range(start, min(start + PROBE_BATCH, len(images)))]))
        answers.append(network(seen.to(accelerator.device)).argmax(1).cpu())
    return torch.cat(answers)


def save_state(path: Path, model: torch.nn.Module, optimizer: Any, metadata: dict[str, str]) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in values.items()}
    with replaced(path) as temporary:
        save_tensors({name: t.contiguous().cpu() for name, t in tensors.items()}, temporary, metadata=metadata)


def load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, same: dict[str, str]) -> int:
    """Put a training back to where it was saved; returns the epochs that are done, 0 for other settings."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    done = int(metadata.pop("epochs"))
    if metadata != same:
        return 0
    model.load_state_dict({k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return done


def save(
    student: Student,
    settings: Distillation,
    model: torch.nn.Module,
    teacher: Expert,
    validation: LabelledImages | None,
    folder: Path,
) -> None:
    """Write a student as timm's repositories on the Hub are, load it as an expert, measure it, and write its card."""
    size = student.image_size or settings.image_size
    labels = list(teacher.labels.values())
    model.pretrained_cfg.update(
        input_size=(3, size, size), interpolation="bilinear", crop_pct=1.0, mean=MEAN, std=STD, num_classes=len(labels)
    )
    config = {"num_classes": len(labels), "label_names": labels, "model_args": dict(student.model_args)}
    with replaced(folder) as temporary:
        save_for_hf(model.cpu().to(memory_format=torch.contiguous_format), temporary, config, safe_serialization=True)
        # timm >= 1.0.31 adds what transformers gives timm by itself.
        update_config(temporary / "config.json", {"model_args": student.model_args})
        expert = load_expert(ExpertReference.parse(temporary), LoadOptions())
        accuracy = None
        if validation is not None:
            answers = predict(lambda images: expert(images)[0], validation, Accelerator())
            accuracy = (answers == validation.labels).float().mean().item()
        (temporary / "README.md").write_text(card(student, settings, expert, teacher, accuracy))


def card(student: Student, settings: Distillation, expert: Expert, teacher: Expert, accuracy: float | None) -> str:
    entry = expert.entry
    metadata = ModelCardData(library_name="timm", pipeline_tag="image-classification", license=settings.licence)
    return f"---\n{metadata.to_yaml()}\n---\n\n# {student.name}\n\n{accuracy} {entry['gmacs']} {teacher.entry['name']}\n"


if __name__ == "__main__":
    main()
