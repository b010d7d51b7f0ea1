"""Experts without torch: each preprocesses images on the host and runs its exported graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from ..utils.errors import PertinenceError
from .entry import ONNX_INT8, ExpertEntry
from .exports import FLOAT32, INT8, Export
from .pixels import differs_from_torch, host_pixels
from .sessions import Session, SessionSettings, Widths
from .transform import UnfitImage


PIXELS_AT_ONCE, ACCELERATED_PIXELS_AT_ONCE = 2**20, 2**25
"""Pixels per call of a graph: 20 images of 224 x 224 on a CPU, where larger batches gain nothing; on an accelerator
only memory is the limit."""
LEAST_SAME = 0.995
"""Share of the images whose answers must not depend on who resized them."""


class GraphExpert:
    """An exported expert; it may run in several threads. Its graph is opened when it first runs.

    Args:
        entry: its entry in the config.
        export: the exported graph to run.
        folder: folder of the model.
        num_labels: number of labels of the model; 0: not known.
        preprocessing: "exact" or "fast".
        settings: how the graph is opened.

    Raises:
        PertinenceError: its preprocessing cannot be done here, or was measured to change answers; or the graph takes
            other images.
    """

    def __init__(
        self,
        entry: ExpertEntry,
        export: Export,
        folder: Path,
        num_labels: int = 0,
        preprocessing: str = "exact",
        settings: SessionSettings | None = None,
    ):
        self.entry, self.export, self.settings = entry, export, settings or SessionSettings()
        self._path, self._num_labels = folder / export.file, num_labels
        self._session: Session | None = None
        self._opening = Lock()
        height, width = entry.transform.size
        if export.input_shape != (3, height, width):
            self._fail(f"its exported graph takes {export.input_shape}, its preprocessing gives {(3, height, width)}")
        self._check_pixels(preprocessing)

    @property
    def is_open(self) -> bool:
        """Whether its graph is in memory."""
        return self._session is not None

    def open(self) -> Session:
        """The opened graph; raises `PertinenceError` if it cannot be opened."""
        with self._opening:
            if self._session is None:
                widths = Widths(self._num_labels, self.entry.features, self.entry.label_map)
                self._session = Session.of(self._path, self.export, self.settings, widths)
            return self._session

    def run(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Classify uint8 images (H, W, 3) of any sizes: logits (b, C) in the label order of the model, and features
        (b, F), or None if the graph gives none.

        Raises:
            PertinenceError: an image is unfit, or the scores are NaN or infinite.
        """
        session, outputs = self.open(), []
        height, width = self.entry.transform.size
        most = PIXELS_AT_ONCE if self.settings.device == "cpu" else ACCELERATED_PIXELS_AT_ONCE
        size = max(1, most // (height * width))
        for start in range(0, len(images), size):
            try:
                outputs.append(session.run(host_pixels(self.entry.transform, images[start : start + size])))
            except UnfitImage:
                raise
            except PertinenceError as error:
                raise PertinenceError(f"expert {self.entry.name!r}: {error}") from error
        logits = np.concatenate([one for one, _ in outputs])
        features = [one for _, one in outputs if one is not None]
        if self.entry.label_map is not None:
            logits = logits[:, self.entry.label_map]
        if not np.isfinite(logits).all():
            self._fail("it answers with NaN or infinite scores: check its weights, and export it again")
        return logits, np.concatenate(features) if features else None

    def _check_pixels(self, preprocessing: str) -> None:
        transform, measured = self.entry.transform, self.export.host_pixels
        if transform.library == "own":
            self._fail("its preprocessing is code of its own, which is not here: use the full package")
        if not differs_from_torch(transform, preprocessing):
            return
        if measured is None:
            self._fail(
                "torchvision resizes its images, and it was not measured what Pillow changes: export it again, with "
                "images (pertinence export)"
            )
        elif measured.same_answers < LEAST_SAME:
            self._fail(
                f"with images that Pillow resizes, only {100 * measured.same_answers:.1f} % of its answers are the "
                f"same (of {measured.images} images), expected {100 * LEAST_SAME:.1f} %: use the full package"
            )

    def _fail(self, reason: str) -> None:
        raise PertinenceError(f"expert {self.entry.name!r}: {reason}")


def chosen_export(entry: ExpertEntry, file_name: str | None = None) -> Export:
    """The exported graph of an expert to run, in the precision that its heads were fitted to.

    Raises:
        PertinenceError: there is none, or none of this file name, or it is of another revision.
    """
    return entry.find_export(INT8 if entry.backend == ONNX_INT8 else FLOAT32, file_name)
