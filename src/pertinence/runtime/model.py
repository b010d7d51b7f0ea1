"""A saved model without torch: `load` opens it, `RuntimeModel` classifies images as the full package does."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from ..routing.budgets import Budget, takes_budget
from ..routing.certainty import probability
from ..routing.costs import GMACS, STEM
from ..routing.front import Front, OperatingPoint
from ..routing.promises import find_coverage_promise, find_error_promise
from ..routing.sweep import Arrays, sweep
from ..routing.unlike import REFERENCE, UnlikeRule
from ..utils.errors import PertinenceError
from .config import ModelConfig
from .experts import GraphExpert, chosen_export
from .files import open_model
from .heads import Heads, read_heads
from .pixels import decode
from .sessions import CPU, SessionSettings
from .stream import Routed, Stream
from .transform import UnfitImage


@dataclass(frozen=True)
class Answer:
    """The answer for one image.

    Attributes:
        label, score: the most probable label, and its softmax probability.
        top: the most probable labels with their probabilities, as many as `top_k`.
        expert: name of the expert that ran last.
        experts_run: names of the experts that ran.
        gmacs: GMACs of stem, experts and heads; preprocessing is not counted.
        operating_point: name of the operating point.
        logits: float32 (C,).
        confidence: calibrated probability that the answer is right; None if the model does not know it.
        abstained: whether the image is not answered, as `set_budget(max_error_rate=...)` says.
        prediction_set: the labels of the prediction set, by falling score; None without `coverage`.
        ood_p_value: how unlike the search images the image is, see `PertinenceOutput`; None: not measured.
    """

    label: str
    score: float
    top: tuple[tuple[str, float], ...]
    expert: str
    experts_run: tuple[str, ...]
    gmacs: float
    operating_point: str
    logits: np.ndarray = field(repr=False, compare=False)
    confidence: float | None = None
    abstained: bool = False
    prediction_set: tuple[str, ...] | None = None
    ood_p_value: float | None = None


@dataclass(frozen=True)
class Routing:
    """The result of routing B images.

    Attributes:
        logits: float32 (B, C), the answers.
        expert_indices: int64 (B,), the expert of the pool that ran last.
        experts_run: bool (B, N), which experts ran.
        gmacs: float64 (B,), of stem, experts and heads.
        scores: float32 (B, decisions, N), NaN where a decision was not reached or an action is not allowed.
        operating_point: name of the operating point.
        confidence: float32 (B,), calibrated probability that each answer is right; None if the model does not know it.
        abstained: bool (B,), images that are not answered.
        prediction_sets: bool (B, C); None without `coverage`.
        p_values: float64 (B,), how unlike the search images each image is; None: not measured.
    """

    logits: np.ndarray
    expert_indices: np.ndarray
    experts_run: np.ndarray
    gmacs: np.ndarray
    scores: np.ndarray
    operating_point: str
    confidence: np.ndarray | None
    abstained: np.ndarray
    prediction_sets: np.ndarray | None = None
    p_values: np.ndarray | None = None


class RuntimeModel:
    """A saved model that runs in ONNX Runtime; it may be called from several threads. `load` makes one.

    Args:
        config: its config.
        heads: the heads of each operating point.
        experts: the experts that its operating points run, by pool index, and a separate stem by `STEM`.
        operating_point: name of the operating point; default: that of the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        heads: Heads,
        experts: Mapping[int, GraphExpert],
        operating_point: str | None = None,
    ):
        self.config, self.experts = config, dict(experts)
        self._heads, self._costs = heads, config.costs
        self._point = config.front.find(operating_point or config.operating_point)
        self._rate = config.max_error_rate

    @property
    def operating_point(self) -> str:
        """Name of the operating point that calls use."""
        return self._point.name

    @property
    def front(self) -> Front:
        """The operating points by rising cost; prints as a table that marks the one that calls use."""
        return self.config.front.marked(self.operating_point)

    @takes_budget(Budget)
    def set_budget(self, budget: Budget) -> OperatingPoint:
        """Set the operating point for all further calls, as `set_budget` of the full package does.

        Args:
            budget: one of the fields of `Budget`, as a keyword: `model.set_budget(gmacs=1.5)`.

        Raises:
            PertinenceError: no point meets the budget; the message names the nearest one.
        """
        self._point = budget.choose(self.config.front, self.config.reference_figures, self.config.promises)
        self._rate = budget.max_error_rate
        return self._point

    def __call__(
        self, images: Any, *, top_k: int = 1, operating_point: str | None = None, coverage: float | None = None
    ) -> Any:
        """Classify images.

        Args:
            images: one image, or a list of them: paths, bytes, open files, PIL images, NumPy arrays (see `decode`).
            top_k: how many labels each answer lists.
            operating_point: use this point in this call only.
            coverage: also give prediction sets that contain the right label so often, a share that was calibrated.

        Returns:
            An `Answer`, or a list of them for a list.

        Raises:
            PertinenceError: an image cannot be decoded, the operating point is unknown, or an expert fails.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise PertinenceError(f"top_k must be a whole number, at least 1, got {top_k!r}")
        routing = self.route(images, operating_point, coverage)
        shifted = np.exp(routing.logits - routing.logits.max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)
        answers = [self._answer(routing, row, probabilities[row], top_k) for row in range(len(probabilities))]
        return answers[0] if _is_single(images) else answers

    def route(self, images: Any, operating_point: str | None = None, coverage: float | None = None) -> Routing:
        """Route images, given as in a call; the results are arrays over all of them."""
        point = self._point if operating_point is None else self.config.front.find(operating_point)
        promises, threshold = self.config.promises, None
        if self._rate is not None:
            threshold = find_error_promise(promises, point.name, self._rate).threshold
        wanted = None if coverage is None else find_coverage_promise(promises, point.name, coverage)
        batch = _decoded(images)

        def run(index: int, rows: np.ndarray) -> Arrays:
            return self.experts[index].run([batch[row] for row in rows.tolist()])

        try:
            swept = sweep(
                point,
                self._heads[point.name],
                run,
                len(batch),
                self._costs,
                threshold=threshold,
                unlike=self.config.unlike_rule,
            )
        except UnfitImage as error:
            index = next(index for index, image in enumerate(batch) if image.shape[:2] == error.size)
            raise PertinenceError(f"image {index} of {len(batch)}: {error}") from error
        gmacs = swept.spent()[GMACS]
        logits, log_odds = np.asarray(swept.logits), swept.log_odds
        return Routing(
            logits,
            swept.last,
            swept.ran,
            gmacs,
            swept.scores,
            point.name,
            None if log_odds is None else probability(np.asarray(log_odds)),
            np.asarray(swept.abstained),
            None if wanted is None else wanted.sets(logits),
            swept.p_values,
        )

    def stream(
        self,
        interval: int | None = None,
        *,
        scene_change: float | None = None,
        operating_point: str | None = None,
    ) -> RuntimeStream:
        """Classify the frames of one stream, and route only some of them, as `StreamDispatcher` does.

        Args:
            interval: frames from one decision to the next; None: only a change of the scene causes one.
            scene_change: route again when 0.2 x pixel difference + 0.8 x histogram difference between this frame and
                the last routed one exceeds this, 0 to 1; None: scenes are not compared.
            operating_point: name of the operating point; default: the model's, at each decision.
        """
        return RuntimeStream(self, interval, scene_change=scene_change, operating_point=operating_point)

    def run_expert(self, index: int, image: np.ndarray) -> Routed:
        """Run one expert of the pool alone on one decoded image, uint8 (H, W, 3)."""
        logits, _ = self.experts[index].run([image])
        return Routed(logits[0], index, float(self._costs.alone(GMACS)[index]))

    def _answer(self, routing: Routing, row: int, probabilities: np.ndarray, top_k: int) -> Answer:
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        names = [entry.name for entry in self.config.experts]
        top = tuple((self._label(index), float(probabilities[index])) for index in best)
        ran = routing.experts_run[row].nonzero()[0]
        return Answer(
            *top[0],
            top=top,
            expert=names[routing.expert_indices[row]],
            experts_run=tuple(names[index] for index in ran),
            gmacs=float(routing.gmacs[row]),
            operating_point=routing.operating_point,
            logits=routing.logits[row],
            confidence=None if routing.confidence is None else float(routing.confidence[row]),
            abstained=bool(routing.abstained[row]),
            prediction_set=self._prediction_set(routing, row),
            ood_p_value=None if routing.p_values is None else float(routing.p_values[row]),
        )

    def _prediction_set(self, routing: Routing, row: int) -> tuple[str, ...] | None:
        if routing.prediction_sets is None:
            return None
        falling = np.argsort(-routing.logits[row], kind="stable")
        return tuple(self._label(index) for index in falling if routing.prediction_sets[row, index])

    def _label(self, index: int) -> str:
        return self.config.labels[index] if self.config.labels else f"LABEL_{index}"

    def __repr__(self) -> str:
        names = ", ".join(entry.name for entry in self.config.experts)
        return f"RuntimeModel({names}; {self.operating_point} of {len(self.config.front)} operating points)"


class RuntimeStream(Stream):
    """A stream of a `RuntimeModel`, see `RuntimeModel.stream`."""

    def __init__(
        self,
        model: RuntimeModel,
        interval: int | None = None,
        *,
        scene_change: float | None = None,
        operating_point: str | None = None,
    ):
        super().__init__(interval, scene_change)
        if operating_point is not None:
            model.front.find(operating_point)
        self.model, self.operating_point = model, operating_point

    def _decode(self, frame: Any) -> np.ndarray:
        return decode(frame)

    def _channels(self, image: np.ndarray) -> np.ndarray:
        return image.transpose(2, 0, 1)

    def _route(self, image: np.ndarray) -> Routed:
        routing = self.model.route([image], self.operating_point)
        confidence = None if routing.confidence is None else float(routing.confidence[0])
        answer = routing.logits[0], int(routing.expert_indices[0]), float(routing.gmacs[0])
        return Routed(*answer, confidence, bool(routing.abstained[0]))

    def _run(self, expert: int, image: np.ndarray) -> Routed:
        return self.model.run_expert(expert, image)


def load(
    model: str | os.PathLike[str],
    *,
    operating_point: str | None = None,
    provider: str = CPU,
    session_options: Any = None,
    threads: int | None = None,
    file_name: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    lazy: bool = True,
    ood_action: str | None = None,
    ood_false_alarms: float | None = None,
) -> RuntimeModel:
    """Load a saved model whose experts were exported (`pertinence export`).

    Args:
        model: folder or Hub id. From the Hub only config, heads and the exported files that run are downloaded.
        operating_point: name of the operating point; default: that of the model.
        provider: execution provider of ONNX Runtime.
        session_options: `onnxruntime.SessionOptions`, in place of `threads`.
        threads: threads of each graph; default: those of ONNX Runtime.
        file_name: name of the exported file to run of every expert, where it has several of its own precision.
        token, revision, cache_dir, local_files_only: as in `huggingface_hub.snapshot_download`.
        lazy: open each graph only when it first runs.
        ood_action, ood_false_alarms: what is done with images that are unlike the search images, and for which share
            of the others; default: those of the model (see `PertinenceConfig`).

    Raises:
        PertinenceError: it is no model, an expert that an operating point runs was not exported, or its preprocessing
            cannot be done without torch.
    """
    hub = {"token": token, "revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    files = open_model(model, hub)
    config = ModelConfig.read(files.config)
    rule = config.unlike_rule
    config = replace(
        config,
        unlike_rule=UnlikeRule(
            ood_action or rule.action,
            rule.false_alarms if ood_false_alarms is None else ood_false_alarms,
            rule.reference,
        ),
    )
    if not len(config.front):
        raise PertinenceError(f"{model} has no operating points: its config.json lists no `front`")
    heads = read_heads(files.weights, config)
    diverting = {config.reference} if config.unlike_rule.action == REFERENCE else set()
    wanted = sorted({index for point in config.front for index in point.order} | diverting)
    entries = {index: config.stem if index == STEM else config.experts[index] for index in wanted}
    missing = [entry.name for entry in entries.values() if entry is not None and not entry.exports]
    if missing:
        raise PertinenceError(
            f"{', '.join(map(repr, missing))} of {model} {'has' if len(missing) == 1 else 'have'} no exported files, "
            "which this runtime needs: make them with `pertinence export` where the full package is"
        )
    exports = {index: chosen_export(entry, file_name) for index, entry in entries.items() if entry is not None}
    for point in config.front:
        for index in point.reads_features_of:
            if not exports[index].has_features:
                raise PertinenceError(
                    f"operating point {point.name!r} reads features, which {exports[index].file} does not give: "
                    "export it again (pertinence export)"
                )
    folder = files.fetch([export.file for export in exports.values()])
    settings = SessionSettings(provider, session_options, threads)
    experts = {
        index: GraphExpert(
            entry,
            exports[index],
            folder,
            0 if index == STEM else len(config.labels),
            config.preprocessing,
            settings,
        )
        for index, entry in entries.items()
        if entry is not None
    }
    runtime = RuntimeModel(config, heads, experts, operating_point)
    if not lazy:
        for expert in experts.values():
            expert.open()
    return runtime


def _is_single(images: Any) -> bool:
    """Whether this is one image, rather than several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, io.IOBase)) or (
        hasattr(images, "read")
    )


def _decoded(images: Any) -> list[np.ndarray]:
    listed: Sequence[Any] = [images] if _is_single(images) else images
    if not isinstance(listed, (list, tuple, np.ndarray)):
        raise PertinenceError(f"expected an image or a list of images, got {type(images).__name__}")
    if not len(listed):
        raise PertinenceError("got an empty batch: expected at least one image")
    decoded = []
    for index, image in enumerate(listed):
        try:
            decoded.append(decode(image))
        except PertinenceError as error:
            if len(listed) == 1:
                raise
            raise PertinenceError(f"image {index} of {len(listed)}: {error}") from error
    return decoded
