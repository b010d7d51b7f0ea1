"""Streams: route one frame, then run only its last expert until the interval ends or the scene changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..data.decoding import decode_image
from ..routing.costs import GMACS
from ..runtime.stream import FrameAnswer as FrameAnswer
from ..runtime.stream import Routed, Stream
from .modeling_pertinence import PertinenceForImageClassification


class StreamDispatcher(Stream):
    r"""Classifies the frames of one stream, and routes only some of them.

    A routed frame runs the model as usual. The frames after it run only the expert that ran last: without the stem,
    without the experts before it, and (in a cascade) without their share of the mixture.

    Args:
        model: the model that routes and answers.
        interval: frames from one decision to the next; None: only a change of the scene causes one.
        scene_change: route again when 0.2 x pixel difference + 0.8 x histogram difference between this frame and the
            last routed one exceeds this, 0 to 1 (PERTINENCE uses 0.016); None: scenes are not compared.
        operating_point: name of the operating point; default: the model's, at each decision.

    Attributes:
        frames, dispatches: number of frames, and of routed frames.
        gmacs: mean cost per frame so far; preprocessing and the comparison of scenes are not counted.

    Raises:
        PertinenceError: neither interval nor scene_change is given, or one of them is impossible.

    Examples:
        >>> stream = StreamDispatcher(model, interval=30, scene_change=0.05)
        >>> labels = [model.config.id2label[answer.logits.argmax().item()] for answer in stream(frames)]
        >>> stream.frames, stream.dispatches
        (60, 2)
    """

    def __init__(
        self,
        model: PertinenceForImageClassification,
        interval: int | None = None,
        *,
        scene_change: float | None = None,
        operating_point: str | None = None,
    ):
        super().__init__(interval, scene_change)
        if operating_point is not None:
            model.front.find(operating_point)
        self.model, self.operating_point = model, operating_point

    def _decode(self, frame: Any) -> torch.Tensor:
        return decode_image(frame)

    def _channels(self, image: torch.Tensor) -> np.ndarray:
        return image.cpu().numpy()

    def _route(self, image: torch.Tensor) -> Routed:
        out = self.model(image[None], operating_point=self.operating_point, return_dict=True)
        confidence = None if out.confidence is None else out.confidence[0].item()
        abstained = bool(out.abstained[0])
        return Routed(out.logits[0], out.expert_indices[0].item(), out.gmacs[0].item(), confidence, abstained)

    def _run(self, expert: int, image: torch.Tensor) -> Routed:
        logits = self.model.pool[expert](image[None])[0][0]
        return Routed(logits, expert, float(self.model.costs.alone(GMACS)[expert]))
