"""Streams: route one frame, then run only its last expert until the interval ends or the scene changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..data.decoding import decode_image
from ..routing.costs import GMACS
from ..utils.errors import PertinenceError
from .modeling_pertinence import PertinenceForImageClassification


PIXEL_WEIGHT, HISTOGRAM_WEIGHT = 0.2, 0.8
HISTOGRAM_BINS = 32


@dataclass(frozen=True)
class FrameAnswer:
    """The answer for one frame.

    Attributes:
        logits: float32 (C,).
        expert_index: pool index of the expert that ran last.
        gmacs: GMACs of this frame.
        dispatched: whether the dispatcher routed this frame; otherwise the last expert of the frame before ran alone.
        change: how much the scene has changed since the last decision, 0 to 1; None if it was not compared.
    """

    logits: torch.Tensor
    expert_index: int
    gmacs: float
    dispatched: bool
    change: float | None = None


class StreamDispatcher:
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
        if interval is None and scene_change is None:
            raise PertinenceError("give `interval`, `scene_change` or both: otherwise there is only one decision")
        if interval is not None and (not isinstance(interval, int) or interval < 1):
            raise PertinenceError(f"interval must be a whole number of frames, at least 1, got {interval!r}")
        if scene_change is not None and not 0 <= scene_change <= 1:
            raise PertinenceError(f"scene_change must lie between 0 and 1, got {scene_change!r}")
        if operating_point is not None:
            model.front.find(operating_point)
        self.model, self.operating_point = model, operating_point
        self.interval, self.scene_change = interval, scene_change
        self.reset()

    def reset(self) -> None:
        """Start a new stream with the next frame."""
        self.frames = self.dispatches = 0
        self._total_gmacs = 0.0
        self._expert: int | None = None
        self._since = 0
        self._scene: Scene | None = None

    @property
    def gmacs(self) -> float:
        return self._total_gmacs / max(self.frames, 1)

    def __call__(self, frames: Iterable[Any]) -> Iterator[FrameAnswer]:
        """Classify frames one by one; each may be any input of [`PertinenceImageProcessor`]."""
        for frame in frames:
            yield self.update(frame)

    def update(self, frame: Any) -> FrameAnswer:
        """Classify the next frame."""
        image = decode_image(frame)
        scene = None if self.scene_change is None else Scene.of(image)
        change = None if scene is None or self._scene is None else scene.change_since(self._scene)
        has_changed = change is not None and self.scene_change is not None and change > self.scene_change
        is_due = has_changed or (self.interval is not None and self._since >= self.interval)
        expert = self._expert
        if expert is None or is_due:
            out = self.model(image[None], operating_point=self.operating_point, return_dict=True)
            logits, gmacs, dispatched = out.logits[0], out.gmacs[0].item(), True
            expert = self._expert = out.expert_indices[0].item()
            self._scene, self._since = scene, 0
        else:
            logits = self.model.pool[expert](image[None])[0][0]
            gmacs, dispatched = float(self.model.costs.alone(GMACS)[expert]), False
        self.frames += 1
        self.dispatches += dispatched
        self._since += 1
        self._total_gmacs += gmacs
        return FrameAnswer(logits, expert, gmacs, dispatched, change)

    def __repr__(self) -> str:
        share = 100 * self.dispatches / max(self.frames, 1)
        return (
            f"StreamDispatcher: {self.dispatches} decisions on {self.frames} frames ({share:.1f} %), "
            f"{self.gmacs:.4g} GMACs per frame"
        )


@dataclass(frozen=True)
class Scene:
    """Features for comparing frames: pixels, and the brightness histogram of each channel, (3, bins)."""

    pixels: torch.Tensor
    histogram: torch.Tensor

    @classmethod
    def of(cls, image: torch.Tensor) -> Scene:
        """Compute the features of a uint8 image (3, H, W)."""
        bins = image.flatten(1).div(256 // HISTOGRAM_BINS, rounding_mode="floor").long()
        bins += torch.arange(3, device=image.device).unsqueeze(1) * HISTOGRAM_BINS
        counts = torch.bincount(bins.flatten(), minlength=3 * HISTOGRAM_BINS).view(3, HISTOGRAM_BINS)
        return cls(image, counts / bins.shape[1])

    def change_since(self, other: Scene) -> float:
        """0.2 x mean absolute difference of pixels + 0.8 x differing share of the histograms, 0 to 1; 1 if the frames
        have different sizes."""
        if self.pixels.shape != other.pixels.shape:
            return 1.0
        pixels = (self.pixels.float() - other.pixels.float()).abs().mean() / 255
        histogram = (self.histogram - other.histogram).abs().sum(1).mean() / 2
        return (PIXEL_WEIGHT * pixels + HISTOGRAM_WEIGHT * histogram).item()
