"""The cost of experts whose input has no fixed size: measured on images of the data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data.dataset import LabelledImages
from ..data.splits import sample_rows
from ..experts.expert import Expert
from ..experts.operations import count_operations
from ..routing.costs import GMACS
from ..runtime.transform import UnfitImage
from ..utils.errors import PertinenceError


MEASURED_IMAGES = 32
"""Number of images whose sizes are measured; each size is one more pass through the network."""


def measured_on(experts: Sequence[Expert], images: LabelledImages) -> list[Expert]:
    """Experts with their mean cost on images of a data set, where the size of their input depends on the image.

    Raises:
        PertinenceError: an architecture does not take images of such a size.
    """
    if all(expert.preprocess.has_fixed_size for expert in experts):
        return list(experts)
    decoded = (images[row] for row in sample_rows(len(images), MEASURED_IMAGES).tolist())
    sample = [image for image in decoded if isinstance(image, torch.Tensor)]
    return [expert if expert.preprocess.has_fixed_size else _measured(expert, sample) for expert in experts]


def _measured(expert: Expert, images: Sequence[torch.Tensor]) -> Expert:
    checkpoint, entry = expert.checkpoint, expert.entry
    options = checkpoint.call_options(entry.transform)
    try:
        sizes = [size for size in (_input_size(expert, image) for image in images) if size is not None]
        counted = {size: count_operations(checkpoint.model, size, options) for size in sorted(set(sizes))}
    except PertinenceError as error:
        raise PertinenceError(f"expert {entry.name!r}: {error}") from error
    if not counted:
        return expert
    gmacs = [counted[size].gmacs for size in sizes]
    low, high = (pick(counted, key=lambda size: counted[size].gmacs) for pick in (min, max))
    spread = [f"{counted[size].gmacs:.4g} at {size[0]}x{size[1]}" for size in (low, high)]
    note = f"its GMACs are the mean over {len(sizes)} images of the search: {spread[0]} to {spread[1]} pixels"
    notes = filter(None, [counted[high].note, note])
    costs = {**entry.costs, GMACS: sum(gmacs) / len(gmacs)}
    return expert.with_entry(entry.replace(costs=costs, cost_note="; ".join(notes)))


def _input_size(expert: Expert, image: torch.Tensor) -> tuple[int, int] | None:
    """(height, width) of an image at the network; None for one that the expert cannot take."""
    try:
        height, width = expert.preprocess([image]).shape[-2:]
    except UnfitImage:
        return None
    return height, width
