"""Loading, saving and pushing a model: experts are references, and heads are checked before they take memory."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import CommitInfo, hf_hub_download
from torch import nn
from transformers import PreTrainedModel

from ..experts.base import ExpertLike
from ..experts.checkpoint_files import FLOATS, Tensors, find_weights, hash_folder
from ..experts.expert import Expert
from ..experts.loading import Checkpoint
from ..experts.reference import LoadOptions
from ..experts.remote_code import commits_of
from ..hub.configuration import PertinenceConfig
from ..hub.expert_files import check_unchanged, save_components
from ..hub.exported_files import ExportedFiles
from ..hub.layout import WEIGHT_PATTERNS, check_same_search, update_config
from ..hub.reference import (
    Reference,
    former_counts,
    load_reference,
    parse_counts,
    reference_shape,
    save_reference,
)
from ..routing.costs import STEM
from ..routing.dispatcher import Dispatcher
from ..routing.heads import FORMER
from ..runtime.entry import CONFIG, ExpertEntry
from ..utils.downloads import checked_downloads, fetch, with_retries
from ..utils.errors import PertinenceError
from ..utils.hub_errors import check_place, explain_place, is_offline, may_pass
from ..utils.io import beside, give_usual_mode, move_into
from ..utils.tensors import hash_tensors
from .expert_store import Experts, ExpertStore, parse_memory
from .image_processing_pertinence import PertinenceImageProcessor
from .saved_pool import SavedPool


OF_GRAPHS = ("backend", "provider", "session_options", "file_name")
"""Options of experts that run exported graphs."""


@dataclass(frozen=True)
class _ModelFiles:
    """The folder of a model, downloaded if necessary, and the files of its weights."""

    folder: Path
    weights: list[Path]


def commit_of(model: PreTrainedModel, revision: str | None) -> str | None:
    """The commit that a model was loaded from, which has the files of its search, too; `revision` for a folder."""
    return getattr(model.config, "_commit_hash", None) or revision


class PertinencePreTrainedModel(PreTrainedModel):
    """The part of the model that loads, saves and pushes its files."""

    config_class = PertinenceConfig
    config: PertinenceConfig
    dispatcher: Dispatcher
    experts: nn.ModuleList
    stem: ExpertLike | None
    routing_reference: Reference
    exported_files: ExportedFiles | None
    calibrated_scores: bool

    @property
    def pool(self) -> list[ExpertLike]:
        """`experts` with the interface of `ExpertLike`."""
        return cast(list[ExpertLike], list(self.experts))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # a model without a name or folder has no experts
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        expert_paths: Mapping[str, str | os.PathLike[str]] | None = None,
        lazy: bool = False,
        max_memory: int | str | dict[Any, Any] | None = None,
        calibrated_scores: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a model and its experts, each at its pinned revision.

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            expert_paths: new folders of local experts that have moved, by expert name.
            lazy: load each expert only when it is first used.
            max_memory: with `lazy`, the limit for the parameters of the experts, in bytes or as a size like "2GiB":
                the least recently used experts are evicted, except the one that runs first and a separate stem.
                Without `lazy`, as in transformers.
            calibrated_scores: give each image's logits the temperature at which the softmax probability of its label
                is its confidence, for users of `pipeline`, which shows softmax scores.
            kwargs: as in transformers; `dtype`, `device_map`, `disable_mmap`, `attn_implementation` (experts that do
                not support it keep their own), `token`, `cache_dir`, `local_files_only`, `force_download` and
                `trust_remote_code` apply to every expert. `operating_point`, `preprocessing`, `ood_action` and
                `ood_false_alarms` replace those of the config. `backend="onnx"` or `"openvino"` runs the exported
                graphs of the experts that have them, whose checkpoints and code are not loaded; `provider`,
                `session_options` and `file_name` are those of optimum. `fold_batch_norms=True` folds batch norms into
                the layers before them in copies of the networks, which changes the last bits of answers; saving stores
                the experts as they are.

        Raises:
            PertinenceError: an expert cannot be found or loaded; the message names it.
        """
        options = LoadOptions.parse(_expert_options(kwargs, lazy, max_memory))
        wants_info, source = kwargs.pop("output_loading_info", False), str(pretrained_model_name_or_path)
        model, info, files = cls._load_dispatcher(source, args, kwargs, options.cache_dir)
        if not model.config.experts:
            raise PertinenceError(f"{source} is not a pertinence model: its config.json lists no experts")
        if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
            raise PertinenceError(f"the heads of {source} do not fit its front")
        model.dispatcher.check(source)
        model._set_calibrated_scores(calibrated_scores, source)
        if files is not None:
            model._load_reference(source, files)
        revision, subfolder = commit_of(model, kwargs.get("revision")), kwargs.get("subfolder") or ""
        pool = SavedPool(model.config, source, revision, options, subfolder)
        model.exported_files = pool.exported_files
        pool.move(expert_paths or {})
        experts: Experts = ExpertStore(pool, parse_memory(max_memory)).experts() if lazy else pool.load_all()
        model.stem = experts.pop(STEM, None)
        model.experts.extend(experts.values())
        model.dispatcher.requires_grad_(False)
        model.eval()
        return (model, info) if wants_info else model  # type: ignore[return-value]  # a pair only where it is asked for

    @classmethod
    def _load_dispatcher(
        cls, source: str, args: Sequence[Any], kwargs: dict[str, Any], cache_dir: str | None
    ) -> tuple[Self, dict[str, Any], _ModelFiles | None]:
        """Load the model without its experts.

        Args:
            source: Hub id or folder.
            args, kwargs: arguments of `from_pretrained`; `kwargs` are changed to those that were used.
            cache_dir: cache folder of the Hub's client.

        Returns:
            The model, the loading info of transformers, and the files of the weights.
        """
        is_folder, read = Path(source).is_dir(), cast(Any, super().from_pretrained)
        if is_folder and not {"config", "subfolder"} & set(kwargs) and not (Path(source) / CONFIG).is_file():
            raise PertinenceError(f"{source} holds no model: it has no {CONFIG}, which comes last when one is saved")
        kwargs["use_safetensors"] = True  # never a pickle

        def load() -> tuple[Self, dict[str, Any], _ModelFiles | None]:
            with checked_downloads(source, cache_dir):
                files = cls._check_files(source, kwargs)
                return *read(source, *args, output_loading_info=True, **kwargs), files

        check_place(source)
        try:
            return load() if is_folder else with_retries(load)
        except Exception as error:  # from transformers, the Hub's client, or the network
            reason = None if is_folder else explain_place(source, kwargs.get("revision"), error)
            if reason is None or isinstance(error, PertinenceError):
                raise
            if may_pass(error) or is_offline(error) or not isinstance(error, OSError):
                raise PertinenceError(reason) from error
            raise OSError(reason) from error  # as transformers raises it, for those who catch that

    @classmethod
    def _check_files(cls, source: str, kwargs: dict[str, Any]) -> _ModelFiles | None:
        """Refuse a bad config, or weights that do not fit its front, before transformers allocates memory for them.

        For a model on the Hub, everything that follows is pinned to one commit.

        Args:
            source: Hub id or folder.
            kwargs: keyword arguments of `from_pretrained`.

        Returns:
            The files; None if the weights were passed as an argument.
        """
        if (Path(source) / (kwargs.get("subfolder") or "") / "adapter_config.json").exists():
            raise PertinenceError(
                f"{source} has an adapter_config.json, which makes transformers load another model: remove it"
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
            return None
        files = _find_files(source, kwargs, hub)
        found = Tensors.of(*files.weights)
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}
        if FORMER in found.shapes:
            expected[FORMER] = reference_shape(config.build_front())
        if found.shapes != expected or not set(found.dtypes.values()) <= FLOATS:
            raise PertinenceError(f"the heads of {source} do not fit its front")
        return files

    def _load_reference(self, source: str, files: _ModelFiles) -> None:
        """Load the routing reference; refuse weights, or a reference, that belong to another model."""
        own, expected, front = self.own_state(), self.config.heads_hash, self.config.build_front()
        counts = former_counts(files.weights)
        if counts is not None and counts.any():
            own[FORMER] = counts
        if expected is not None and expected != hash_tensors(own):
            raise PertinenceError(
                f"config.json and the weights of {source} do not belong together: it was read while another model was "
                "saved there, or copied in part; load it again, or save or copy it anew"
            )
        if counts is None:
            self.routing_reference = load_reference(files.folder, front, expected, source)
        else:
            self.routing_reference = parse_counts(counts, front, FORMER, source)

    def _set_calibrated_scores(self, wanted: bool, source: str) -> None:
        if wanted and any(point.certainty is None for point in self.config.build_front()):
            raise PertinenceError(
                f"calibrated_scores needs a model that knows how certain it is, and {source} was not searched, or by "
                "an older version: search again, or load it without"
            )
        self.calibrated_scores = wanted

    def save_pretrained(  # type: ignore[override]  # all but the folder goes by name
        self,
        save_directory: str | os.PathLike[str],
        *,
        save_experts: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save config, dispatcher and image processor, with references to the experts.

        Args:
            save_directory: folder to write to; a model that is already there stays intact until everything is written.
            save_experts: also copy each expert's own files to `experts/<i>/` and refer to them there.
            kwargs: as in transformers; with `push_to_hub=True` also the arguments of `push_to_hub`.

        Raises:
            PertinenceError: an expert was passed as a loaded model, has not been saved, and `save_experts` is not set;
                or the folder cannot be written to, or contains the record of the search of another model.
        """
        if not kwargs.get("is_main_process", True):
            return
        if not self.config.experts or len(self.experts) != len(self.config.experts):
            raise PertinenceError("this model has no experts, so there is nothing to save: load or make it first")
        unsaved = [entry.name for entry in self.config.entries if entry.repo_id is None]
        if unsaved and not save_experts:
            raise PertinenceError(
                f"expert {unsaved[0]!r} was given as a loaded model, so there is nothing to refer to: save with "
                "save_experts=True, or save that model first and give its folder"
            )
        folder = Path(save_directory)
        check_same_search(folder, self.config.front)
        own = self.own_state(state_dict)
        heads_hash = hash_tensors(own)  # before transformers empties the state
        pushes = kwargs.pop("push_to_hub", False)
        hub = {key: kwargs.pop(key) for key in _push_options() & set(kwargs)} if pushes else {}
        if pushes and "max_shard_size" in kwargs:
            hub["max_shard_size"] = kwargs["max_shard_size"]
        with beside(folder / "model") as staged:
            staged.mkdir()
            entries = self._save_components(folder, staged, save_experts)
            super().save_pretrained(staged, state_dict=own, **kwargs)
            values = [entry.to_dict() for entry in entries]
            experts, stem = values[: len(self.experts)], values[-1] if self.config.stem else None
            update_config(staged / CONFIG, {"experts": experts, "stem": stem, "heads_hash": heads_hash})
            for path in staged.glob("model*.safetensors"):
                give_usual_mode(path)
            save_reference(self.routing_reference, self.config.build_front(), heads_hash, staged)
            PertinenceImageProcessor().save_pretrained(staged)
            # A folder of experts that is not copied anew keeps its copies beside the graphs.
            merged = () if (staged / "experts").is_dir() else ("experts",)
            if self.exported_files is not None:
                self.exported_files.copy(entries, staged)
            move_into(staged, folder, (CONFIG,), () if kwargs.get("variant") else WEIGHT_PATTERNS, merged)
        if pushes:
            self.push_to_hub(**{"repo_id": folder.resolve().name, "save_experts": save_experts, **hub})

    def _save_components(self, folder: Path, staged: Path, save_experts: bool) -> list[ExpertEntry]:
        """Copy the files of experts and of a separate stem, if necessary.

        Args:
            folder: folder that the model is saved to.
            staged: folder for the copies until everything is written.
            save_experts: whether to copy the files of experts; those that are already in `folder` always stay there.

        Returns:
            Their entries for the saved config, that of the stem last.
        """
        entries = self.config.entries
        components = {str(index): expert for index, expert in enumerate(self.pool)}
        if self.stem is not None:
            components["stem"] = self.stem
        # Experts that share weights share the folder of the first one.
        homes: dict[Any, str] = {}
        names = [homes.setdefault(expert.weights_key, name) for name, expert in components.items()]
        here = all(
            _is_at(entry, expert, (folder / "experts" / name).resolve())
            for entry, name, expert in zip(entries, names, components.values(), strict=True)
        )
        if save_experts and not here:
            save_components({name: components[name] for name in names}, staged / "experts")
        saved = []
        for entry, name, expert in zip(entries, names, components.values(), strict=True):
            if save_experts or here:
                copy = entry.copied_to(name)
                revision = hash_folder((folder if here else staged) / cast(str, copy.repo_id))
                if not _is_checked(expert):
                    # The copy itself may differ: it has all code beside it.
                    source = cast(Path, expert.find_folder())
                    check_unchanged(entry, hash_folder(source), source)
                entry = copy.with_content(revision)
            elif entry.is_embedded:
                entry = entry.replace(repo_id=str(expert.find_folder()))
            if isinstance(expert, Expert) and _is_checked(expert) and (code := commits_of(expert.find_code())):
                entry = entry.replace(code=code)
            saved.append(entry)
        return saved

    def own_state(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The part of a state that is saved: the dispatcher."""
        return {
            key: value
            for key, value in (state_dict or self.state_dict()).items()
            if not key.startswith(("experts.", "stem.")) and key != FORMER
        }

    def push_to_hub(  # type: ignore[override]  # all but the repository goes by name
        self,
        repo_id: str,
        *,
        save_experts: bool = False,
        max_shard_size: int | str | None = None,
        tags: Sequence[str] | str | None = None,
        **options: Any,
    ) -> CommitInfo:
        """Push model, image processor and a model card, in one commit.

        Args:
            repo_id: id of the model repository; it is created if it does not exist.
            save_experts: also push a copy of each expert's own files; copies in the model are always pushed.
            max_shard_size: largest size of a weights file, as in transformers.
            tags: further tags of the card, in addition to those of `add_model_tags`.
            options: `private`, `revision`, `create_pr`, `replace_card`, `token`, ... of
                `pertinence.hub.push.push_folder`.

        Raises:
            PertinenceError: an expert is a local folder, which others could not load, or must not be copied.
        """
        from ..hub.push import push_folder

        save_experts |= any(entry.is_embedded for entry in self.config.entries)
        tags = [*(self.model_tags or ()), *([tags] if isinstance(tags, str) else tags or ())]
        shards: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, save_experts=save_experts, **shards)
            return push_folder(folder, repo_id, tags=tags, **options)


def _is_at(entry: ExpertEntry, expert: ExpertLike, place: Path) -> bool:
    """Whether the files of an expert are in a folder; one that has vanished is not needed to tell."""
    if entry.is_on_hub:
        return False
    return Path(cast(str, entry.repo_id)) == place if entry.is_local else expert.find_folder() == place


def _is_checked(expert: ExpertLike) -> bool:
    """Whether the files of an expert were checked when they were loaded, as those of a graph's checkpoint are not."""
    return isinstance(expert, Expert) and isinstance(expert.origin, Checkpoint)


def _find_files(source: str, kwargs: dict[str, Any], hub: dict[str, Any]) -> _ModelFiles:
    """Find the weights of a model; those on the Hub are downloaded, and `kwargs` are pinned to their commit."""
    subfolder, folder, variant = kwargs.get("subfolder") or "", Path(source), kwargs.get("variant")
    if not folder.is_dir():
        hub = {
            key: value for key, value in hub.items() if key != "force_download"
        }  # it was downloaded anew a moment ago
        known = Path(hf_hub_download(source, CONFIG, **hub))
        revision = kwargs["revision"] = known.parents[len(Path(subfolder).parts)].name
        patterns = [*WEIGHT_PATTERNS, *([f"model.{variant}*.safetensors", f"*.{variant}.json"] if variant else [])]
        patterns = [f"{subfolder}/{one}" if subfolder else one for one in patterns]
        options = {key: value for key, value in hub.items() if key not in ("subfolder", "revision")}
        folder = fetch(source, revision, patterns, **options)
    folder = folder / subfolder
    weights = (variant and find_weights(folder, variant)) or find_weights(folder)
    if not weights:
        raise PertinenceError(f"{source} has no model.safetensors; pickles (pytorch_model.bin) are never opened")
    return _ModelFiles(folder, weights)


def _push_options() -> set[str]:
    """Names of the arguments that `save_pretrained(push_to_hub=True, ...)` passes on."""
    from ..hub.push import push_folder

    return set(inspect.signature(push_folder).parameters) - {"folder", "save_experts"}


def _expert_options(kwargs: dict[str, Any], lazy: bool, max_memory: Any) -> dict[str, Any]:
    """The arguments of `from_pretrained` for experts, by field of `LoadOptions`; those only for experts are removed
    from `kwargs`."""
    if (former := kwargs.pop("torch_dtype", None)) is not None:  # which transformers still accepts
        kwargs.setdefault("dtype", former)
    options = {field.name: kwargs[field.name] for field in fields(LoadOptions) if kwargs.get(field.name) is not None}
    if options.get("dtype") == "auto":
        del options["dtype"]  # each expert has its own, recorded in the config
    if not lazy and isinstance(max_memory, (int, str)):
        raise PertinenceError("max_memory as one size needs lazy=True: else every expert is loaded at once")
    if lazy and max_memory is not None:
        # An expert may be loaded thousands of times, and safetensors 0.8 leaks 56 bytes for every tensor that it
        # reads from a mapped file.
        options.setdefault("disable_mmap", True)
    elif max_memory is not None:
        kwargs["max_memory"] = max_memory
    for alone in ("trust_remote_code", "attn_implementation", "fold_batch_norms", *OF_GRAPHS):
        kwargs.pop(alone, None)
    return options
