"""`PertinenceForImageClassification`: experts, dispatcher and front as one transformers model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from ..data.batches import Images, stacked, take
from ..data.decoding import as_images
from ..experts.backends.base import backend_of
from ..experts.base import ExpertLike
from ..experts.expert import Expert
from ..experts.pool import load_pool, pool_labels, warn_of_costs
from ..experts.reference import LoadOptions
from ..hub.configuration import PertinenceConfig
from ..hub.exported_files import ExportedFiles
from ..hub.reference import Reference
from ..routing.budgets import Budget, takes_budget
from ..routing.certainty import with_top_probability
from ..routing.costs import STEM
from ..routing.dispatcher import Dispatcher
from ..routing.front import Front, OperatingPoint, Stage
from ..routing.heads import FORMER, Head, threshold_head
from ..routing.policy import Outputs, Routing, route
from ..routing.promises import Promises, find_coverage_promise, find_error_promise
from ..runtime.config import FORMAT_VERSION, pool_costs
from ..runtime.transform import UnfitImage
from ..utils.errors import PertinenceError, shown
from ..utils.graphs import outside_graphs, untraceable, without_gradient
from .pretrained import PertinencePreTrainedModel


@dataclass
class PertinenceOutput(ModelOutput):
    """Output of [`PertinenceForImageClassification`]; everything but `loss` is batch-first.

    Attributes:
        loss: float32 scalar, cross-entropy, if `labels` were given.
        logits: float32 (B, C).
        expert_indices: int64 (B,), the expert of the pool that ran last.
        experts_run: bool (B, N), the experts that ran for each image.
        gmacs: float32 (B,), of stem, experts and heads; preprocessing is not counted.
        dispatcher_logits: float32 (B, stages, N), the scores of the actions; NaN where a stage was not reached or an
            action is not allowed.
        confidence: float32 (B,), the calibrated probability that each answer is right; None if the model was not
            searched, or by an older version.
        abstained: bool (B,), images that are not answered, as `set_budget(max_error_rate=...)` says. Their logits are
            those of the answer that they stopped with.
        prediction_sets: bool (B, C), the labels in the prediction set of each image; None without `coverage`.
        ood_p_value: float32 (B,), how unlike the search images each image is: of images like them, at most a share a
            has a value of at most a; None if the search did not measure it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    expert_indices: torch.Tensor | None = None
    experts_run: torch.Tensor | None = None
    gmacs: torch.Tensor | None = None
    dispatcher_logits: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    abstained: torch.Tensor | None = None
    prediction_sets: torch.Tensor | None = None
    ood_p_value: torch.Tensor | None = None


class PertinenceForImageClassification(PertinencePreTrainedModel):
    r"""A pool of existing image classifiers, with a router that sends each image to the cheapest sufficient one.

    Make a model with [`DispatcherSearch`], or without a search with
    [`~PertinenceForImageClassification.from_experts`] (a confidence cascade), or load one with
    [`~PertinenceForImageClassification.from_pretrained`].

    Attributes:
        routing_reference: how the report images were routed, for comparison by [`RoutingMonitor`]: `count_answers`,
            int64 (N, 32), by name of the operating point; empty if nothing was measured.
        calibrated_scores: whether the softmax of the logits has the confidence as the probability of the answer.
    """

    base_model_prefix = ""
    main_input_name = "images"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in the models of transformers
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["dispatcher"]
    _keys_to_ignore_on_load_unexpected = [re.escape(FORMER)]

    def __init__(self, config: PertinenceConfig):
        super().__init__(config)
        if config.experts:
            config.check()  # again, as options of from_pretrained replace values of the file
        self._front = config.build_front()
        self.costs = pool_costs(config.expert_entries, config.stem_entry)
        self.dispatcher = Dispatcher(self._front, len(config.experts or []), config.feature_sizes)
        # Experts are only referenced: they are attached after the dispatcher's weights are loaded, and never saved.
        self.experts = nn.ModuleList()
        self.stem: ExpertLike | None = None
        self.routing_reference: Reference = {}
        self.calibrated_scores = False
        self._promises = config.build_promises()
        self.exported_files = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            init.zeros_(parameter)

    # Making one

    @classmethod
    def compose(
        cls,
        experts: Sequence[Expert],
        front: Front,
        heads: Mapping[str, Sequence[Head]],
        operating_point: str,
        stem: Expert | None = None,
        routing_reference: Mapping[str, torch.Tensor] | None = None,
        reference: int | None = None,
        reference_temperature: float | None = None,
    ) -> PertinenceForImageClassification:
        """Make a model from loaded experts.

        Args:
            experts: experts by rising cost.
            front: operating points.
            heads: heads of each point, by its name.
            operating_point: name of the default point.
            stem: a separate stem.
            routing_reference: see the attribute of this name.
            reference: pool index of the expert that losses and savings refer to; default: the last.
            reference_temperature: its temperature, fitted to the search images.
        """
        labels = pool_labels(experts)
        entries, exported_files = ExportedFiles.of_pool(experts, stem)
        values = [entry.to_dict() for entry in entries]
        config = PertinenceConfig(
            experts=values[: len(experts)],
            stem=values[-1] if stem is not None else None,
            front=front.to_list(),
            operating_point=operating_point,
            preprocessing=experts[0].preprocessing,
            problem_type="single_label_classification",
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            dtype=str(experts[0].dtype).removeprefix("torch."),
            reference=reference,
            reference_temperature=reference_temperature,
            format_version=1 if reference in (None, len(experts) - 1) else FORMAT_VERSION,
        )
        model = cls(config)
        for point in front:
            model.dispatcher.set_heads(point, heads.get(point.name, ()))
        model.routing_reference = dict(routing_reference or {})
        model.experts.extend(experts)
        model.stem = stem
        model.exported_files = exported_files
        return model.eval()

    @classmethod
    def from_experts(
        cls,
        experts: Sequence[Any],
        thresholds: Sequence[float] | float,
        *,
        preprocessing: str = "exact",
        label_map: str | None = None,
        **load_options: Any,
    ) -> PertinenceForImageClassification:
        """Make a confidence cascade without a search: it defers to the next expert while the largest softmax
        probability is below the threshold.

        Args:
            experts: references (Hub id, `id@revision`, folder, mapping, or loaded model); the model sorts them by
                rising cost.
            thresholds: in [0, 1], one for each expert but the last in order of cost, or one for all.
            preprocessing: "exact" or "fast".
            label_map: "by_name": the model has the labels that all experts share, found by their names; default: all
                experts have the same labels in the same order.
            load_options: dtype, device_map, attn_implementation, token, cache_dir, local_files_only, force_download,
                trust_remote_code, fold_batch_norms; with `backend="onnx"` or `"openvino"` experts are exported into
                the cache, and run there, with `provider` and `session_options`.
        """
        pool = load_pool(experts, LoadOptions.parse(load_options), preprocessing, label_map)
        warn_of_costs(pool)
        count = len(pool) - 1
        values = _as_thresholds(thresholds, count)
        if values is None:
            raise PertinenceError(
                f"{len(pool)} experts take {count} thresholds between 0 and 1, one for each but the last, got "
                f"{shown(thresholds)}"
            )
        point = OperatingPoint("cascade", "thresholds", tuple(range(len(pool))), tuple(Stage(i) for i in range(count)))
        heads = [
            threshold_head(point, stage, value, len(pool)) for stage, value in zip(point.stages, values, strict=True)
        ]
        front = Front([point], [expert.entry.name for expert in pool])
        return cls.compose(pool, front, {point.name: heads}, point.name)

    def export_onnx(self, folder: str | os.PathLike[str], images: Images | None = None) -> None:
        """Save the model with its experts as ONNX files, for `from_pretrained(..., backend="onnx")` and the runtime
        without torch.

        Args:
            folder: folder to save the model to; it may be the one that it was loaded from.
            images: at least 256 real images, see `Images`; every graph is compared with torch on them.

        Raises:
            PertinenceError: there are too few images, or an expert cannot be exported, or its graph gives other
                answers; nothing is written then.
        """
        from .exporting import export_model

        export_model(self, Path(folder), images)

    # Running it

    @property
    def front(self) -> Front:
        """The operating points by rising cost; prints as a table that marks the default."""
        if len(self._front):
            self._front = self._front.marked(self.config.operating_point)
        return self._front

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the experts; the dispatcher is always float32."""
        if len(self.experts):
            return self.pool[0].dtype
        # transformers makes a dtype of the text in the file
        return cast(torch.dtype | None, self.config.dtype) or torch.float32

    @property
    def device(self) -> torch.device:
        return self.pool[0].device if len(self.experts) else super().device

    @takes_budget(Budget)
    def set_budget(self, budget: Budget) -> OperatingPoint:
        """Set the operating point for all further calls, by the figures on the search images; saving stores it.

        Args:
            budget: one of the fields of [`Budget`], as a keyword: `model.set_budget(saving=0.5)`.

        Returns:
            The chosen point.

        Raises:
            PertinenceError: no point meets the budget; the message names the nearest one.
        """
        point = budget.choose(self._front, self.config.reference_figures, self._promises)
        self.config.operating_point, self.config.max_error_rate = point.name, budget.max_error_rate
        return point

    @property
    def promises(self) -> Promises | None:
        """What was promised of single answers, by `calibrate_answers`; setting it stores it in the config."""
        return self._promises

    @promises.setter
    def promises(self, promises: Promises | None) -> None:
        if promises is not None:
            promises.check(self._front)
        self._promises = promises
        self.config.promises = None if promises is None else promises.to_dict()
        self.config.max_error_rate = None

    def compile_experts(self, **options: Any) -> None:
        """Compile every expert's network with `torch.compile`, lazy ones when they are loaded; decisions stay eager.

        `torch.compile(model)` compiles nothing of the model, and warns.

        Args:
            options: options of `torch.compile`; the default is `dynamic=True`, as routing divides every batch anew.
        """
        experts = [expert for expert in filter(None, [*self.pool, self.stem]) if backend_of(expert.entry).compiles]
        if not experts and len(self.experts):
            raise PertinenceError(
                f"no expert of this model can be compiled, as they run in {self.pool[0].entry.backend}: load it "
                "without backend= for that"
            )
        for expert in experts:
            expert.compile_network({"dynamic": True, **options})

    def compile(self, *args: Any, **options: Any) -> None:
        """The same as `compile_experts`, under the name that every `torch.nn.Module` has for it."""
        self.compile_experts(*args, **options)

    def __prepare_scriptable__(self) -> Any:
        raise untraceable()  # to `torch.jit.script`

    def _replicate_for_data_parallel(self) -> Any:
        raise PertinenceError(
            "torch.nn.DataParallel would cut each image of a list into parts: run one process for each device "
            "(`torchrun`), or show this process one device (CUDA_VISIBLE_DEVICES)"
        )

    @outside_graphs
    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers gives it no types
    def forward(
        self,
        images: Any = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        operating_point: str | None = None,
        coverage: float | None = None,
        max_error_rate: float | None = None,
    ) -> PertinenceOutput | tuple[Any, ...]:
        """Classify images, each with the experts that the dispatcher runs for it.

        Args:
            images: output of [`PertinenceImageProcessor`] (a list of uint8 tensors (3, H, W) of any sizes), or a batch
                (B, 3, H, W), uint8 or float in [0, 1]; not normalised.
            pixel_values: the same, under the name that data collators use.
            labels: int64 (B,); adds the cross-entropy as `loss`.
            operating_point: use this point in this call only.
            coverage: also give `prediction_sets` that contain the right label so often, a share that `pertinence
                calibrate` stored.
            max_error_rate: use this promised error rate in this call only; 1 answers every image.
            return_dict: False for a plain tuple, as in transformers.

        Raises:
            PertinenceError: there are no images, they have another form, the operating point is unknown or cannot
                keep the error rate, `max_error_rate` or `coverage` was not calibrated, the scores of an expert are NaN
                or infinite, or the call is traced or exported. The `backward` of the loss raises it, too: experts are
                frozen, and a search fits the dispatcher.
        """
        if not len(self.experts):
            raise PertinenceError(
                "this model has no experts yet: load it with from_pretrained, or make it with from_experts"
            )
        if (images is None) == (pixel_values is None):
            raise PertinenceError("give the images once, as `images` or as `pixel_values`")
        given = pixel_values if images is None else images
        batch = as_images(given)
        if not len(self._front):
            raise PertinenceError("this model has no operating points: its config.json lists no `front`")
        point = self._front.find(operating_point or self.config.operating_point)
        threshold, rate = None, self.config.max_error_rate if max_error_rate is None else max_error_rate
        if rate is not None and rate != 1:
            threshold = find_error_promise(self._promises, point.name, rate).threshold
        wanted = None if coverage is None else find_coverage_promise(self._promises, point.name, coverage)
        try:
            routing = self._route(point, batch, threshold)
        except UnfitImage as error:
            index = next(index for index, image in enumerate(batch) if tuple(image.shape[-2:]) == error.size)
            raise PertinenceError(f"image {index} of {len(batch)}: {error}") from error
        logits, loss = routing.logits, None
        if isinstance(given, torch.Tensor) and given.requires_grad:
            logits = without_gradient(logits)
        sets = None if wanted is None else wanted.sets(logits)
        if labels is not None:
            loss = without_gradient(self.loss_function(labels.to(logits.device), logits, self.config))
        if self.calibrated_scores and routing.confidence is not None:
            logits = with_top_probability(logits, routing.confidence)
        return PertinenceOutput(
            loss=loss,
            logits=logits,
            expert_indices=routing.expert_indices,
            experts_run=routing.experts_run,
            gmacs=routing.gmacs.float().to(logits.device),
            dispatcher_logits=routing.scores,
            confidence=routing.confidence,
            abstained=routing.abstained,
            prediction_sets=sets,
            ood_p_value=routing.p_values,
        )

    def _route(self, point: OperatingPoint, images: Images, threshold: float | None = None) -> Routing:
        device, pool = self.device, self.pool
        if device.type == "meta":
            raise PertinenceError("this model is on the meta device, which holds no weights: load it again")
        batch, heads = stacked(images), self.dispatcher.heads(point)
        unchecked: list[tuple[ExpertLike, torch.Tensor]] = []

        def run(index: int, rows: torch.Tensor) -> Outputs:
            expert = self.stem if index == STEM else pool[index]
            assert expert is not None  # a front that starts at a stem has one: see `PertinenceConfig.check`
            with torch.inference_mode():
                logits, features = expert.run(take(batch, rows))
                total = logits.sum()
            if device.type == "cpu":
                expert.check(total)
            else:  # check later: reading the sum waits for all work queued on the device
                unchecked.append((expert, total))
            return logits, features

        routing = route(
            point,
            heads,
            run,
            len(batch),
            self.costs,
            device,
            threshold=threshold,
            unlike=self.config.unlike_rule,
        )
        for expert, total in unchecked:
            expert.check(total)
        return routing


def _as_thresholds(given: Any, count: int) -> list[float] | None:
    """The thresholds as a list, one for each stage; None if they are invalid."""
    try:
        values = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        return None
    if values.ndim == 0:
        values = np.full(count, values)
    return values.tolist() if values.shape == (count,) and ((values >= 0) & (values <= 1)).all() else None
