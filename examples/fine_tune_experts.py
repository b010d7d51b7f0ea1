"""Bring your own experts: fine-tune a few checkpoints with Trainer, then search a dispatcher for them.

    python examples/fine_tune_experts.py
    python examples/fine_tune_experts.py --checkpoints timm/mobilenetv3_small_100.lamb_in1k microsoft/resnet-50 \
        --epochs 5

The images are scikit-learn's digits, so nothing needs to be prepared and the run is short. With your own images, keep
the parts separate as here: one part trains the experts; another part, which none of them has seen, is searched on.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

from pertinence import DispatcherSearch, PertinenceError, SearchArguments
from pertinence.commands.demo_pool import digits


CHECKPOINTS = ["timm/test_efficientnet.r160_in1k", "timm/test_resnet.r160_in1k", "timm/resnet10t.c3_in1k"]


def fine_tune(checkpoint: str, dataset, epochs: int, folder: Path) -> Path:
    """Give a checkpoint a new head for the labels of a data set, train all of it, and return its folder."""
    labels = dataset.features["label"].names
    model = AutoModelForImageClassification.from_pretrained(
        checkpoint,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        ignore_mismatched_sizes=True,  # the head
    )
    processor = AutoImageProcessor.from_pretrained(checkpoint)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        pixels = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=2e-3,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    Trainer(model, arguments, collate, train_dataset=dataset).train()
    if hasattr(model.config, "label_names"):
        model.config.label_names = labels  # where a timm config still has the old names
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", default=CHECKPOINTS, help="Hub ids or folders.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/fine-tuned"))
    options = parser.parse_args()

    train, search, unseen = digits(seed=0)
    experts = [
        fine_tune(checkpoint, train, options.epochs, options.output_dir / "experts" / Path(checkpoint).name)
        for checkpoint in options.checkpoints
    ]
    args = SearchArguments()
    result = DispatcherSearch(experts, search, args, report_dataset=unseen).run()
    print(result.evaluation)
    result.save(options.output_dir / "model", save_experts=True)  # the model then needs no other folder


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
