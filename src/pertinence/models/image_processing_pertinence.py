"""`PertinenceImageProcessor`: decodes images to uint8 and does nothing else; each expert has its own preprocessing."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature
from transformers.utils import logging

from ..data.decoding import decode_image
from ..utils.errors import MALFORMED, PertinenceError, explain


logger = logging.get_logger(__name__)


class PertinenceImageProcessor(BaseImageProcessor):
    r"""Decodes images to RGB uint8 tensors of their original size.

    Examples:
        >>> from PIL import Image
        >>> inputs = PertinenceImageProcessor()(Image.new("L", (40, 30)))
        >>> inputs["images"][0].shape, inputs["images"][0].dtype
        (torch.Size([3, 30, 40]), torch.uint8)
    """

    model_input_names = ["images"]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> PertinenceImageProcessor:
        """Load the processor, as in transformers; raises `PertinenceError` if the file is damaged."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except MALFORMED as error:
            raise PertinenceError(
                f"the preprocessor_config.json of {pretrained_model_name_or_path} is damaged "
                f"({explain(error)}): fetch it again"
            ) from error

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Decode one image or a list of images.

        Args:
            images: PIL, path or URL, numpy (H, W), (H, W, C) or (C, H, W), or torch (C, H, W); arrays are uint8, or
                float in [0, 1].
            return_tensors: "pt" or None.

        Returns:
            `{"images": [uint8 tensor (3, H, W), ...]}`, in their original sizes.
        """
        if return_tensors not in (None, "pt"):
            raise PertinenceError(
                f"return_tensors={return_tensors!r} is not supported: images come as torch tensors ('pt')"
            )
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            images = list(images)
        if not isinstance(images, (list, tuple)):
            images = [images]
        decoded = []
        for index, image in enumerate(images):
            try:
                decoded.append(decode_image(image))
            except PertinenceError as error:
                if len(images) == 1:
                    raise
                raise PertinenceError(f"image {index} of {len(images)}: {error}") from error
        return BatchFeature({"images": decoded})
