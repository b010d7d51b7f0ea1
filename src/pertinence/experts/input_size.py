"""The size of an expert's input where its image processor does not say it, or says another than its network takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers.utils import logging

from ..runtime.transform import MAX_SIDE, Transform
from ..utils.errors import PertinenceError
from ..utils.validation import is_whole
from .loading import Checkpoint
from .preprocessing import PROBE_SIDE, is_timm_processor, resized_processor, resolve_transform


logger = logging.get_logger(__name__)


def native_side(config: Any) -> int:
    """Side, in pixels, of the square images that a network was made for, as far as its config says it."""
    side: Any = getattr(config, "image_size", None)
    if isinstance(side, (list, tuple)) and all(map(is_whole, side)):
        side = max(side, default=None)
    return side if is_whole(side, 1, MAX_SIDE) else PROBE_SIDE


def fitting_transform(checkpoint: Checkpoint, transform: Transform) -> Transform:
    """The transform of an expert, at the size of its network if that is one of timm's that takes no other.

    Older versions of timm saved a network with an `img_size` of its own beside the size of its architecture, which
    alone it refuses; within a pool it would interpolate its position embeddings.

    Args:
        checkpoint: checkpoint of the expert.
        transform: transform of the checkpoint's own processor.

    Raises:
        PertinenceError: the network takes another size, which its config does not give.
    """
    own = _only_size(checkpoint.model)
    if own in (None, transform.size) or not is_timm_processor(checkpoint.processor):
        return transform
    wrong, right = (f"{height}x{width}" for height, width in (transform.size, own))
    if (checkpoint.model.config.model_args or {}).get("img_size") is None:
        raise PertinenceError(
            f"its pretrained_cfg gives images of {wrong} pixels, and its network takes only {right}: correct "
            "`input_size` there, or give `model_args` its `img_size`, in its config.json"
        )
    logger.warning(
        f"The pretrained_cfg of {checkpoint.folder or type(checkpoint.model).__name__} gives images of {wrong} "
        f"pixels, but its network was made with an `img_size` of {right}: it gets images of that size."
    )
    return replace(resolve_transform(resized_processor(checkpoint.processor, own)), processor_size=own)


def _only_size(model: Any) -> tuple[int, int] | None:
    """(height, width) of the images that a network of timm's takes alone; None if it takes several sizes."""
    network = getattr(model, "timm_model", None)
    patches = getattr(network, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        return None
    # We load it for any size if its config does not choose (see `loading`), which is not what it does alone.
    chosen = (model.config.model_args or {}).get("dynamic_img_size")
    ours = chosen is None and getattr(network, "dynamic_img_size", False)
    return (size[0], size[1]) if ours or getattr(patches, "strict_img_size", False) else None


def assumed_size(checkpoint: Checkpoint, transform: Transform) -> str:
    """What is to be said of the cost of an expert whose input has no fixed size."""
    height, width = transform.size
    return (
        f"its {type(checkpoint.processor).__name__} gives images of no fixed size: its operations are counted at "
        f"{height}x{width} pixels, which is assumed"
    )
