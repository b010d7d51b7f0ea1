"""`PertinenceForImageClassification`: experts, dispatcher and front as one transformers model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, hf_hub_download
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .checkpoint_checks import FLOATS, Tensors, find_weights
from .checkpoints import LoadOptions, hash_folder
from .configuration_pertinence import EMBEDDED, PertinenceConfig
from .dispatcher import Answer, Dispatcher, Head, Routing, route, threshold_head
from .downloads import checked_downloads, explain_hub, fetch, may_pass, patiently
from .errors import PertinenceError
from .experts import Expert, load_pool, pool_labels
from .files import CONFIG, WEIGHTS, beside, hash_tensors, put, share
from .front import STEM, Figures, Front, OperatingPoint, Stage
from .hub import push_folder
from .image_processing_pertinence import PertinenceImageProcessor, as_images
from .lazy import ExpertStore, LazyExpert, SavedPool, parse_memory
from .preprocessing import UnfitImage, stacked, take
from .references import as_copy, save_components


COUNTED = "dispatcher.answers"
"""The one tensor that a model may lack: where nothing was counted there is nothing to save."""


@dataclass
class PertinenceOutput(ModelOutput):
    """Output of [`PertinenceForImageClassification`]; everything but `loss` is batch-first.

    Attributes:
        loss: float32 scalar, cross-entropy, where `labels` were given.
        logits: float32 (B, C).
        expert_indices: int64 (B,), the expert of the pool that ran last.
        experts_run: bool (B, N), every expert that was run for the image.
        gmacs: float32 (B,), stem, experts and heads; preprocessing is not counted.
        dispatcher_logits: float32 (B, stages, N), the scores of the actions; NaN where a stage was not reached or an
            action is not allowed.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    expert_indices: torch.Tensor | None = None
    experts_run: torch.Tensor | None = None
    gmacs: torch.Tensor | None = None
    dispatcher_logits: torch.Tensor | None = None


class PertinenceForImageClassification(PreTrainedModel):
    r"""Image classifiers that exist already, and a dispatcher that runs for each image the cheapest that will do.

    Make one with [`DispatcherSearch`], with [`~PertinenceForImageClassification.from_experts`] (a confidence cascade,
    no search), or load one with [`~PertinenceForImageClassification.from_pretrained`].
    """

    config_class = PertinenceConfig
    base_model_prefix = ""
    main_input_name = "images"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["dispatcher"]
    _keys_to_ignore_on_load_missing = [COUNTED]

    def __init__(self, config: PertinenceConfig):
        super().__init__(config)
        if config.experts:
            config.check()  # again: options of from_pretrained replace what the file says
        self._front = config.build_front()
        self.dispatcher = Dispatcher(self._front, len(config.experts or []), config.feature_sizes)
        # Experts are references: attached after the dispatcher's weights are loaded, and never saved with them.
        self.experts = nn.ModuleList()
        self.stem: Expert | LazyExpert | None = None
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
        heads: dict[str, Sequence[Head]],
        operating_point: str,
        stem: Expert | None = None,
        answers: Sequence[torch.Tensor] = (),
    ) -> PertinenceForImageClassification:
        """A model from loaded experts (by rising cost), operating points, and the heads of each point by its name;
        where they were measured also how many answers each expert gave, point by point (see `count_answers`)."""
        labels = pool_labels(experts)
        config = PertinenceConfig(
            experts=[expert.entry for expert in experts],
            stem=stem.entry if stem is not None else None,
            front=front.to_list(),
            operating_point=operating_point,
            preprocessing=experts[0].preprocess.mode,
            problem_type="single_label_classification",
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            dtype=str(experts[0].model.dtype).removeprefix("torch."),
        )
        model = cls(config)
        for point in front:
            model.dispatcher.set_heads(point, heads.get(point.name, ()))
        for point, counts in zip(front, answers, strict=False):
            model.dispatcher.set_answers(point, counts)
        model.experts.extend(experts)
        model.stem = stem
        return model.eval()

    @classmethod
    def from_experts(
        cls,
        experts: Sequence[Any],
        thresholds: Sequence[float] | float,
        *,
        preprocessing: str = "exact",
        **load_options: Any,
    ) -> PertinenceForImageClassification:
        """A confidence cascade at once, without any search: go on to the next expert while the largest softmax
        probability is below the threshold.

        Args:
            experts: references (Hub id, `id@revision`, folder, mapping, or loaded model); ordered by rising cost.
            thresholds: one for each expert but the last in that order, or one for all; in [0, 1].
            preprocessing: "exact" or "fast".
            load_options: dtype, device_map, token, cache_dir, local_files_only, force_download, trust_remote_code.
        """
        pool = load_pool(experts, LoadOptions.parse(load_options), preprocessing)
        count = len(pool) - 1
        values = [thresholds] * count if isinstance(thresholds, (int, float)) else list(thresholds or ())
        if len(values) != count or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in values):
            raise PertinenceError(
                f"{len(pool)} experts take {count} thresholds between 0 and 1, one for each but the last, got "
                f"{thresholds}"
            )
        point = OperatingPoint("cascade", "thresholds", tuple(range(len(pool))), tuple(Stage(i) for i in range(count)))
        heads = [
            threshold_head(point, stage, value, len(pool)) for stage, value in zip(point.stages, values, strict=True)
        ]
        front = Front([point], [expert.entry["name"] for expert in pool])
        return cls.compose(pool, front, {point.name: heads}, point.name)

    # Running it

    @property
    def front(self) -> Front:
        """The operating points by rising cost; prints as a table."""
        return self._front

    @property
    def dtype(self) -> torch.dtype:
        """That of the experts; the dispatcher is always float32."""
        return self.experts[0].dtype if len(self.experts) else self.config.dtype or torch.float32

    @property
    def device(self) -> torch.device:
        return self.experts[0].device if len(self.experts) else super().device

    def set_budget(
        self,
        *,
        gmacs: float | None = None,
        latency_ms: float | None = None,
        accuracy: float | None = None,
        max_accuracy_loss: float | None = None,
        operating_point: str | None = None,
        device: str | None = None,
        batch_size: int | None = None,
    ) -> OperatingPoint:
        """Choose the operating point for the calls to come, by the figures on the search images; saving keeps it.

        Args:
            gmacs: the most accurate point whose mean cost is at most this.
            latency_ms: the same for milliseconds of an image, as `pertinence benchmark` or the search measured them.
            accuracy: the cheapest point whose accuracy (0 to 1) is at least this.
            max_accuracy_loss: the cheapest point whose accuracy is at most this much (0 to 1) below the largest
                expert's.
            operating_point: the point of that name.
            device, batch_size: which milliseconds, where several were measured (`point.latency`).

        Returns:
            The chosen point.

        Raises:
            PertinenceError: no point meets the budget; the message says what the nearest is.
        """
        if max_accuracy_loss is not None and accuracy is None:
            largest = (self.config.experts or [{}])[-1].get("select")
            if not largest:
                raise PertinenceError("the largest expert was not measured: search, or choose with `operating_point=`")
            accuracy = Figures.from_dict(largest).accuracy - max_accuracy_loss
        elif max_accuracy_loss is not None:
            raise PertinenceError("give either `accuracy` or `max_accuracy_loss`")
        budget = {"gmacs": gmacs, "latency_ms": latency_ms, "accuracy": accuracy, "operating_point": operating_point}
        point = self._front.choose(**budget, device=device, batch_size=batch_size)
        self.config.operating_point = point.name
        return point

    def compile_experts(self, **options: Any) -> None:
        """Compile every expert's network with `torch.compile`, lazy ones when they are loaded; decisions stay eager.

        Args:
            options: of `torch.compile`; `dynamic=True` unless said otherwise, as every batch is divided anew.
        """
        for expert in filter(None, [*self.experts, self.stem]):
            expert.compile_network({"dynamic": True, **options})

    def forward(
        self,
        images: Any = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        operating_point: str | None = None,
        return_dict: bool | None = None,
    ) -> PertinenceOutput | tuple:
        """Classify images, each by the experts that the dispatcher runs for it.

        Args:
            images: what [`PertinenceImageProcessor`] gives (a list of uint8 tensors (3, H, W) of any sizes), or a
                batch (B, 3, H, W), uint8 or float in [0, 1]; not normalised.
            pixel_values: the same, under the name that data collators use.
            labels: int64 (B,); adds the cross-entropy as `loss`.
            operating_point: use this point in this call only.
            return_dict: False for a plain tuple.

        Raises:
            PertinenceError: no image, images of another form, unknown operating point, or NaN from an expert.
        """
        if not len(self.experts):
            raise PertinenceError(
                "this model has no experts yet: load it with from_pretrained, or make it with from_experts"
            )
        if (images is None) == (pixel_values is None):
            raise PertinenceError("give the images once, as `images` or as `pixel_values`")
        batch = as_images(pixel_values if images is None else images)
        if not len(self._front):
            raise PertinenceError("this model has no operating points: its config.json lists no `front`")
        point = self._front.find(operating_point or self.config.operating_point or self._front[-1].name)
        try:
            routing = self._route(point, batch)
        except UnfitImage as error:
            index = next(index for index, image in enumerate(batch) if tuple(image.shape[-2:]) == error.size)
            raise PertinenceError(f"image {index} of {len(batch)}: {error}") from error
        loss = None
        if labels is not None:
            loss = self.loss_function(labels.to(routing.logits.device), routing.logits, self.config)
        output = PertinenceOutput(
            loss=loss,
            logits=routing.logits,
            expert_indices=routing.expert_indices,
            experts_run=routing.experts_run,
            gmacs=routing.gmacs.to(routing.logits.device, torch.float32),
            dispatcher_logits=routing.scores,
        )
        return output.to_tuple() if return_dict is False else output

    def _route(self, point: OperatingPoint, batch: torch.Tensor | list[torch.Tensor]) -> Routing:
        answered: list[tuple[Expert, torch.Tensor]] = []
        batch = stacked(batch)

        def run(index: int, rows: torch.Tensor) -> Answer:
            expert = self.stem if index == STEM else self.experts[index]
            logits, features, total = expert.answer(take(batch, rows))
            answered.append((expert, total))
            return logits, features

        gmacs = [entry["gmacs"] for entry in self.config.experts]
        stem_gmacs = self.config.stem["gmacs"] if self.config.stem else 0.0
        with torch.inference_mode():
            heads = self.dispatcher.heads(point)
            routing = route(point, heads, run, len(batch), gmacs, self.device, stem_gmacs=stem_gmacs)
        for expert, total in answered:
            expert.check(total)
        # Ordinary tensors again, which may go into a computation that is differentiated.
        return Routing(*(value.clone() for value in vars(routing).values()))

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        expert_paths: dict[str, str | os.PathLike] | None = None,
        lazy: bool = False,
        max_memory: int | str | dict | None = None,
        **kwargs: Any,
    ) -> PertinenceForImageClassification:
        """Load a model and its experts, each at its pinned revision.

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            expert_paths: where local experts have moved to, folder by expert name.
            lazy: load each expert only when it is first chosen.
            max_memory: with `lazy`, bytes of experts' parameters, or a size like "2GiB": the least recently used leave
                for others; the one that runs first, and a stem, stay. Without `lazy` as in transformers.
            kwargs: as in transformers; `dtype`, `device_map`, `token`, `cache_dir`, `local_files_only`,
                `force_download` and `trust_remote_code` reach every expert. `operating_point` and `preprocessing`
                replace those of the config.

        Raises:
            PertinenceError: an expert cannot be found or loaded; the message names it.
        """
        options = {
            field.name: kwargs[field.name] for field in fields(LoadOptions) if kwargs.get(field.name) is not None
        }
        if not lazy and isinstance(max_memory, (int, str)):
            raise PertinenceError("max_memory as one size needs lazy=True: else every expert is loaded at once")
        if not lazy and max_memory is not None:
            kwargs["max_memory"] = max_memory
        # Experts alone need it; the parent would warn that it has no effect.
        kwargs.pop("trust_remote_code", None)
        wants_info, source = kwargs.pop("output_loading_info", False), str(pretrained_model_name_or_path)
        kwargs["use_safetensors"] = True  # never a pickle
        is_folder, parent = Path(source).is_dir(), super()
        if is_folder and not {"config", "subfolder"} & set(kwargs) and not (Path(source) / CONFIG).is_file():
            raise PertinenceError(f"{source} holds no model: it has no {CONFIG}, which comes last when one is saved")

        def load() -> tuple[PertinenceForImageClassification, dict[str, Any]]:
            with checked_downloads(source, options.get("cache_dir")):
                cls._check_files(source, kwargs)
                return parent.from_pretrained(source, *args, output_loading_info=True, **kwargs)

        try:
            model, info = load() if is_folder else patiently(load)
        except RuntimeError as error:
            raise PertinenceError(f"the heads of {source} do not fit its front") from error
        except Exception as error:  # of transformers an OSError; of the Hub's client also its HTTP library's
            if is_folder or isinstance(error, PertinenceError) or not may_pass(error):
                raise
            raise PertinenceError(explain_hub(source, kwargs.get("revision"), error)) from error
        if not model.config.experts:
            raise PertinenceError(f"{source} is not a pertinence model: its config.json lists no experts")
        if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
            raise PertinenceError(f"the heads of {source} do not fit its front")
        model.dispatcher.check(source)
        if options.get("dtype") == "auto":
            del options["dtype"]  # each expert's own, as the config notes it
        expected = model.config.heads_hash
        if expected is not None and kwargs.get("state_dict") is None and expected != hash_tensors(model._own()):
            raise PertinenceError(
                f"config.json and the weights of {source} do not belong together: it was read while another model was "
                "saved there, or copied in part; load it again, or save or copy it anew"
            )
        revision = getattr(model.config, "_commit_hash", None) or kwargs.get("revision")
        pool = SavedPool(model.config, source, revision, LoadOptions.parse(options))
        pool.move(expert_paths or {})
        experts = ExpertStore(pool, parse_memory(max_memory)).experts() if lazy else pool.load_all()
        model.stem = experts.pop(STEM, None)
        model.experts.extend(experts.values())
        model.dispatcher.requires_grad_(False)
        model.eval()
        return (model, info) if wants_info else model

    @classmethod
    def _check_files(cls, source: str, kwargs: dict[str, Any]) -> None:
        """Refuse a config, or weights that are not those of its front, before transformers takes memory for them.

        On the Hub all that follows is pinned to one commit.

        Args:
            source: Hub id or folder.
            kwargs: of `from_pretrained`.
        """
        if (Path(source) / "adapter_config.json").exists():
            raise PertinenceError(
                f"{source} has an adapter_config.json, by which another model would be loaded: remove it"
            )
        hub = {
            key: kwargs[key]
            for key in ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
            if kwargs.get(key) is not None
        }
        config = kwargs.get("config")
        if not isinstance(config, PertinenceConfig):
            config = PertinenceConfig.from_pretrained(config or source, **hub)
        if not config.experts:
            raise PertinenceError(f"{source} is not a pertinence model: its config.json lists no experts")
        if kwargs.get("state_dict") is not None:
            return
        subfolder, folder = kwargs.get("subfolder") or "", Path(source)
        if not folder.is_dir():
            hub.pop("force_download", None)  # what was loaded anew a moment ago
            known = Path(hf_hub_download(source, CONFIG, **hub))
            hub.pop("subfolder", None)
            revision = hub.pop("revision", None)
            if not subfolder:
                revision = kwargs["revision"] = known.parent.name
            folder = fetch(source, revision, [f"{subfolder}/{one}" if subfolder else one for one in WEIGHTS], **hub)
        variant = kwargs.get("variant")
        single = folder / subfolder / f"model.{variant}.safetensors"
        paths = [single] if variant and single.is_file() else find_weights(folder / subfolder)
        if not paths:
            raise PertinenceError(f"{source} has no model.safetensors; pickles (pytorch_model.bin) are never opened")
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}
        found = Tensors.of(*paths)
        if COUNTED not in found.shapes:
            expected.pop(COUNTED)
        if found.shapes != expected or not set(found.dtypes.values()) <= FLOATS:
            raise PertinenceError(f"the heads of {source} do not fit its front")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        save_experts: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save config, dispatcher and image processor; of the experts only the references.

        Args:
            save_directory: folder to write to. What it holds of another model stays whole until all is written.
            save_experts: also copy each expert's own files to `experts/<i>/` and refer to them there.
            kwargs: as in transformers.

        Raises:
            PertinenceError: an expert was passed as a loaded model, is in no file yet, and `save_experts` is not set;
                or the folder cannot be written to.
        """
        if not kwargs.get("is_main_process", True):
            return
        if not self.config.experts or len(self.experts) != len(self.config.experts):
            raise PertinenceError("this model has no experts, so there is nothing to save: load or make it first")
        entries = self.config.entries
        components = {str(index): expert for index, expert in enumerate(self.experts)}
        if self.stem is not None:
            components["stem"] = self.stem
        unsaved = [entry["name"] for entry in entries if entry["repo_id"] is None]
        if unsaved and not save_experts:
            raise PertinenceError(
                f"expert {unsaved[0]!r} was given as a loaded model, so there is nothing to refer to: save with "
                "save_experts=True, or save that model first and give its folder"
            )
        folder = Path(save_directory)
        own = self._own(state_dict)
        # Experts that share their weights share a folder: that of the first of them.
        homes: dict[Any, str] = {}
        names = [homes.setdefault(expert.weights_key, name) for name, expert in components.items()]
        here = all(
            expert.folder == (folder / "experts" / name).resolve()
            for name, expert in zip(names, components.values(), strict=True)
        )
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", folder.resolve().name)
        config = self.config
        with beside(folder / "model") as staged:
            staged.mkdir()
            if save_experts and not here:
                save_components({name: components[name] for name in names}, staged / "experts")
            saved = []
            for entry, name, expert in zip(entries, names, components.values(), strict=True):
                if save_experts or here:
                    copy = as_copy(entry, name)
                    entry = {**copy, "revision": hash_folder((folder if here else staged) / copy["repo_id"])}
                elif EMBEDDED.fullmatch(entry["repo_id"]):
                    entry = {**entry, "repo_id": str(expert.folder)}
                saved.append(entry)
            before = config.experts, config.stem, config.heads_hash
            try:
                config.experts, config.stem = saved[: len(config.experts)], saved[-1] if config.stem else None
                config.heads_hash = hash_tensors(own)
                super().save_pretrained(staged, state_dict=own, **kwargs)
            finally:
                config.experts, config.stem, config.heads_hash = before
            for path in staged.glob("model*.safetensors"):
                share(path)
            PertinenceImageProcessor().save_pretrained(staged)
            put(staged, folder, (CONFIG,), () if kwargs.get("variant") else WEIGHTS)

    def _own(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """What is saved of a state: the dispatcher."""
        return {
            key: value
            for key, value in (state_dict or self.state_dict()).items()
            if not key.startswith(("experts.", "stem.")) and (key != COUNTED or value.any())
        }

    def push_to_hub(self, repo_id: str, *, save_experts: bool = False, **options: Any) -> CommitInfo:
        """Push model, image processor and a model card, in one commit.

        Args:
            repo_id: of the model repository, which is created where there is none.
            save_experts: also push a copy of each expert's own files; copies that the model has go along anyway.
            options: `private`, `revision`, `create_pr`, `replace_card`, `token`, ... of `pertinence.hub.push_folder`.

        Raises:
            PertinenceError: an expert is a local folder, which nobody else could load, or must not be copied.
        """
        save_experts |= any(EMBEDDED.fullmatch(entry["repo_id"] or "") for entry in self.config.entries)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, save_experts=save_experts)
            return push_folder(folder, repo_id, **options)
