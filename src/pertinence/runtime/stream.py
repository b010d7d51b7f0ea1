"""Streams: which frames are routed, and how much a scene has changed; the same with torch and without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import PertinenceError


PIXEL_WEIGHT, HISTOGRAM_WEIGHT = 0.2, 0.8
HISTOGRAM_BINS = 32


@dataclass(frozen=True)
class FrameAnswer:
    """The answer for one frame.

    Attributes:
        logits: float32 (C,): a tensor in the full package, an array in the runtime without torch.
        expert_index: pool index of the expert that ran last.
        gmacs: GMACs of this frame.
        dispatched: whether the dispatcher routed this frame; otherwise the last expert of the frame before ran alone.
        change: how much the scene has changed since the last decision, 0 to 1; None if it was not compared.
        confidence: calibrated probability that the answer is right; None for frames that were not routed, whose path
            nothing was calibrated for, and for models that do not know it.
        abstained: whether the frame is not answered; one that was not routed as the last routed frame.
    """

    logits: Any
    expert_index: int
    gmacs: float
    dispatched: bool
    change: float | None = None
    confidence: float | None = None
    abstained: bool = False


class Routed(NamedTuple):
    """The answer of a model for one frame: logits, index of the expert that ran last, GMACs; for a routed frame its
    confidence, too, and whether the model abstained."""

    logits: Any
    expert_index: int
    gmacs: float
    confidence: float | None = None
    abstained: bool = False


class Stream:
    """One stream of frames: when it is routed, and what it has cost. Subclasses say how a frame is run.

    Args:
        interval: frames from one decision to the next; None: only a change of the scene causes one.
        scene_change: route again when the scene has changed more than this since the last routed frame, 0 to 1; None:
            scenes are not compared.

    Attributes:
        frames, dispatches: number of frames, and of routed frames.
        gmacs: mean cost per frame so far; preprocessing and the comparison of scenes are not counted.

    Raises:
        PertinenceError: neither interval nor scene_change is given, or one of them is impossible.
    """

    def __init__(self, interval: int | None = None, scene_change: float | None = None):
        if interval is None and scene_change is None:
            raise PertinenceError("give `interval`, `scene_change` or both: otherwise there is only one decision")
        if interval is not None and (not isinstance(interval, int) or interval < 1):
            raise PertinenceError(f"interval must be a whole number of frames, at least 1, got {interval!r}")
        if scene_change is not None and not 0 <= scene_change <= 1:
            raise PertinenceError(f"scene_change must lie between 0 and 1, got {scene_change!r}")
        self.interval, self.scene_change = interval, scene_change
        self.reset()

    def reset(self) -> None:
        """Start a new stream with the next frame."""
        self.frames = self.dispatches = 0
        self._total_gmacs = 0.0
        self._expert: int | None = None
        self._abstained = False
        self._since = 0
        self._scene: Scene | None = None

    @property
    def gmacs(self) -> float:
        return self._total_gmacs / max(self.frames, 1)

    def __call__(self, frames: Iterable[Any]) -> Iterator[FrameAnswer]:
        """Classify frames one by one; each may be any image that the model takes."""
        for frame in frames:
            yield self.update(frame)

    def update(self, frame: Any) -> FrameAnswer:
        """Classify the next frame."""
        image = self._decode(frame)
        scene = None if self.scene_change is None else Scene.of(self._channels(image))
        change = None if scene is None or self._scene is None else scene.change_since(self._scene)
        has_changed = change is not None and self.scene_change is not None and change > self.scene_change
        is_due = has_changed or (self.interval is not None and self._since >= self.interval)
        dispatched = self._expert is None or is_due
        if self._expert is None or is_due:
            routed = self._route(image)
            self._expert, self._scene, self._since = routed.expert_index, scene, 0
            self._abstained = routed.abstained
        else:
            routed = self._run(self._expert, image)
        self.frames += 1
        self.dispatches += dispatched
        self._since += 1
        self._total_gmacs += routed.gmacs
        answer = routed.logits, routed.expert_index, routed.gmacs
        return FrameAnswer(*answer, dispatched, change, routed.confidence, self._abstained)

    def _decode(self, frame: Any) -> Any:
        """The image of a frame."""
        raise NotImplementedError

    def _channels(self, image: Any) -> np.ndarray:
        """An image as uint8 (3, H, W)."""
        raise NotImplementedError

    def _route(self, image: Any) -> Routed:
        """Route an image through the model."""
        raise NotImplementedError

    def _run(self, expert: int, image: Any) -> Routed:
        """Run one expert of the pool alone."""
        raise NotImplementedError

    def __repr__(self) -> str:
        share = 100 * self.dispatches / max(self.frames, 1)
        return (
            f"{type(self).__name__}: {self.dispatches} decisions on {self.frames} frames ({share:.1f} %), "
            f"{self.gmacs:.4g} GMACs per frame"
        )


@dataclass(frozen=True)
class Scene:
    """Features for comparing frames: pixels, and the brightness histogram of each channel, (3, bins)."""

    pixels: np.ndarray
    histogram: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray) -> Scene:
        """Compute the features of a uint8 image (3, H, W)."""
        counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in image])
        return cls(image, counts.reshape(3, HISTOGRAM_BINS, -1).sum(2) / image[0].size)

    def change_since(self, other: Scene) -> float:
        """0.2 x mean absolute difference of pixels + 0.8 x differing share of the histograms, 0 to 1; 1 if the frames
        have different sizes."""
        if self.pixels.shape != other.pixels.shape:
            return 1.0
        pixels = np.abs(self.pixels.astype(np.int16) - other.pixels).mean() / 255
        histogram = np.abs(self.histogram - other.histogram).sum(1).mean() / 2
        return float(PIXEL_WEIGHT * pixels + HISTOGRAM_WEIGHT * histogram)
