"""Clips of camera motion, made of the zoo's real images: labels are known, and scenes change as films do."""

from pathlib import Path

import torch
from datasets import load_dataset

from pertinence.data.decoding import decode_image


MARGIN = 3


def camera_clip(
    zoo: Path, scenes: int, frames: int, seed: int, split: str = "test"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Over each of so many CIFAR-10 images of a split a hand-held camera wanders for so many frames, then cuts to the
    next.

    Returns:
        uint8 (scenes * frames, 3, 32, 32) and int64 (scenes * frames,), the label of each frame.
    """
    dataset = load_dataset("parquet", data_files={split: str(zoo / "cifar10" / "data" / f"{split}-*.parquet")})[split]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:scenes].tolist()
    clip, labels = [], []
    for row in dataset.select(chosen):
        wide = torch.nn.functional.pad(decode_image(row["image"]).float()[None], [MARGIN] * 4, mode="reflect")[0]
        at = torch.full((2,), MARGIN)
        for _ in range(frames):
            top, left = at.tolist()
            light = 1 + 0.02 * torch.randn((), generator=generator)
            clip.append((wide[:, top : top + 32, left : left + 32] * light).clamp(0, 255).to(torch.uint8))
            at = (at + torch.randint(-1, 2, (2,), generator=generator)).clamp(0, 2 * MARGIN)
        labels += [row["label"]] * frames
    return torch.stack(clip), torch.tensor(labels)
