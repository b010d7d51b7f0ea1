"""Classifying any number of images to a file, in parts, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from transformers.utils import logging

from ..data.arguments import InputArguments
from ..data.batches import decoded_batches
from ..data.inputs import Decoded, Input, InputImages, open_inputs, unreadable
from ..hub.configuration import PertinenceConfig
from ..models.modeling_pertinence import PertinenceForImageClassification
from ..routing.budgets import Budget
from ..routing.costs import STEM
from ..routing.front import OperatingPoint
from ..routing.promises import find_error_promise
from ..runtime.entry import TORCH, ExpertEntry
from ..utils.distributed import by_main, device_of, make_accelerator
from ..utils.errors import PertinenceError
from ..utils.io import hash_file
from ..utils.progress import progress_bar
from ..utils.tensors import hash_tensors
from .answers import answer_rows, check_output, to_table
from .arguments import ClassificationArguments
from .evaluate import ModelSource, config_of, open_model
from .parts import Parts, Run


logger = logging.get_logger(__name__)

TOP_K = 5
PAUSE = 0.5
"""Seconds between two looks at whether other processes have written their parts."""


@dataclass(frozen=True)
class Classification:
    """What a run has written.

    Attributes:
        output: the file.
        operating_point: name of the point that answered.
        images: number of rows.
        errors: number of images that could not be read, which have a reason instead of a label.
        gmacs: mean over the answered images; NaN if there are none.
        saving: share of the operations of the reference expert that was saved; NaN likewise.
        reference: name of the reference expert.
        expert_shares: share of the answered images that each expert answered, by name.
        classified: number of images that this call classified, in all processes: the others were finished before.
        images_per_second: of the main process; None if it classified none.
        is_old: whether a former call had finished the output, so that nothing was left to do.
    """

    output: str
    operating_point: str
    images: int
    errors: int
    gmacs: float | None
    saving: float | None
    reference: str
    expert_shares: dict[str, float]
    classified: int = 0
    images_per_second: float | None = None
    is_old: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.images:,} images in {self.output}, by the operating point {self.operating_point}"]
        if self.errors:
            lines.append(f"{self.errors:,} of them could not be read: see the column `error`")
        if self.gmacs is not None and self.saving is not None:
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.expert_shares.items())
            lines.append(
                f"{self.gmacs:.4g} GMACs an image, {100 * self.saving:.1f} % less than {self.reference} alone"
            )
            lines.append(f"Answered by {shares}")
        if self.images_per_second is not None:
            lines.append(f"{self.classified:,} images were classified now, at {self.images_per_second:,.1f} a second")
        return "\n".join(lines)


def classify(
    model: ModelSource,
    inputs: Input | Iterable[Input],
    output: str | os.PathLike[str],
    args: ClassificationArguments | None = None,
    budget: Budget | None = None,
    data: InputArguments | None = None,
    expert_paths: dict[str, str] | None = None,
    revision: str | None = None,
) -> Classification | None:
    """Classify images to a file, one row for each, in their order; see `SCHEMA` in `evaluation/answers.py`.

    The rows are written in parts of fixed rows, beside the output (`<output>.parts`). A run that was killed keeps the
    parts that are finished, and several processes (torchrun) share them; the result is the same, bit for bit. A small
    file beside the output (`<output>.run.json`) says what made it.

    Args:
        model: folder or Hub id, or a loaded model, which is used where it is.
        inputs: one or several files, folders, patterns, parquet or tar shards, Hub ids of data sets; "-" for a list of
            paths on standard input; or a `datasets.Dataset`.
        output: file to write: .parquet, .csv or .jsonl.
        args: how experts run, and what is written.
        budget: which operating point answers; default: the model's own.
        data: split and column of data sets, and the number of images.
        expert_paths: new folders of local experts that have moved, by expert name.
        revision: branch, tag or commit on the Hub.

    Returns:
        What was written; None in all processes but the main one.

    Raises:
        PertinenceError: there is no model or no image, the output is another one's, or an image cannot be read and
            `on_bad_image` is "stop".
    """
    args, budget = args or ClassificationArguments(), budget or Budget()
    accelerator = make_accelerator(args.device)
    path = Path(output)
    with ExitStack() as until_the_end:

        def prepare() -> _Work:
            check_output(path)
            images = open_inputs(inputs, data, args.token, path)
            config = config_of(model, args.token, revision)
            point, rate = _choose(config, budget)
            run = _describe_run(model, config, point, rate, images, args)
            size = max(1, args.part_size // args.batch_size) * args.batch_size
            parts = Parts(path, len(images), size)
            result = parts.finished(run)
            if result is not None and args.resume:
                parts.remove()
                return _Work(images, parts, run, point, [], Classification(**result, is_old=True))
            until_the_end.enter_context(parts.opened(run, args.resume))
            return _Work(images, parts, run, point, parts.unfinished())

        work = by_main(accelerator, prepare)
        if work.finished is not None:
            return work.finished if accelerator.is_main_process else None
        work.say_where()
        loaded = open_model(model, args, expert_paths, revision)
        if loaded is not model:
            device: Any = device_of(accelerator)  # transformers types `to` for a model alone
            loaded = loaded.to(device)
        seconds, count = _Runner(loaded, work, args, accelerator).run()
        if not accelerator.is_main_process:
            return None
        while work.parts.unfinished():
            time.sleep(PAUSE)  # a launcher ends all processes if one fails
        summary = _Summary(loaded.config, work)
        work.parts.join(work.run, summary.add, summary.result)
        work.parts.clear()
        classified = sum(len(work.parts.rows(part)) for part in work.unfinished)
        speed = count / seconds if count else None
        return Classification(**summary.result(), classified=classified, images_per_second=speed)


@dataclass(frozen=True)
class _Work:
    """What is to be done.

    Attributes:
        images, parts, run, point: the images, the parts of the output, what makes it, and what answers.
        unfinished: the parts that are to be made.
        finished: what a former run has written, if there is nothing to do.
    """

    images: InputImages
    parts: Parts
    run: Run
    point: OperatingPoint
    unfinished: list[int]
    finished: Classification | None = None

    def say_where(self) -> None:
        """Say where a run continues."""
        done = len(self.parts) - len(self.unfinished)
        if done and self.unfinished:
            logger.warning(
                f"{self.parts.output} continues at image {self.parts.rows(self.unfinished[0]).start + 1:,} of "
                f"{len(self.images):,}: {done} of {len(self.parts)} parts are finished."
            )
        elif done:
            logger.warning(f"All {len(self.parts)} parts of {self.parts.output} are finished: they are joined.")


def _choose(config: PertinenceConfig, budget: Budget) -> tuple[OperatingPoint, float | None]:
    """The operating point, and the promised error rate that it answers at."""
    front = config.build_front()
    if not budget.given:
        return front.find(config.operating_point), config.max_error_rate
    return budget.choose(front, config.reference_figures, config.build_promises()), budget.max_error_rate


def _describe_run(
    model: ModelSource,
    config: PertinenceConfig,
    point: OperatingPoint,
    rate: float | None,
    images: InputImages,
    args: ClassificationArguments,
) -> Run:
    """What decides the rows of the output."""
    labels = len(_labels_of(config))
    dtype = model.dtype if isinstance(model, PertinenceForImageClassification) else args.dtype or config.dtype
    if args.top_k is not None and args.top_k > labels:
        raise PertinenceError(f"top_k={args.top_k} is too many: the model has {labels} labels")
    return {
        "model": _identify(model, config, args),
        "operating_point": point.name,
        "certainty": point.certainty and point.certainty.to_dict(),
        "max_error_rate": rate,
        "threshold": None if rate is None else find_error_promise(config.build_promises(), point.name, rate).threshold,
        "images": images.fingerprint(),
        "top_k": args.top_k or min(TOP_K, labels),
        "batch_size": args.batch_size,
        "part_size": args.part_size,
        "dtype": str(dtype).removeprefix("torch."),
        "backend": args.backend,
        "provider": args.provider,
    }


def _identify(model: ModelSource, config: PertinenceConfig, args: ClassificationArguments) -> str:
    """A hash of what decides the answers of a model at any point, wherever the model lies."""
    runs_exports = args.backend not in (None, TORCH)
    values: dict[str, Any] = {
        "experts": [
            [one.name, one.revision, one.backend, one.label_map, one.gmacs, asdict(one.transform)]
            for one in config.entries
        ],
        "exports": [[export.sha256 for export in one.exports] for one in config.entries] if runs_exports else None,
        "labels": _labels_of(config),
    }
    if isinstance(model, PertinenceForImageClassification):
        values["heads"] = hash_tensors(model.own_state())
    else:
        values["heads"] = config.heads_hash or _hash_heads(model)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _labels_of(config: PertinenceConfig) -> list[str]:
    return list((config.id2label or {}).values())


def _hash_heads(model: str | os.PathLike[str]) -> str | None:
    """The hash of the heads of a model whose config has none, as older versions saved it."""
    path = Path(model) / "model.safetensors"
    return hash_file(path) if path.is_file() else None


@dataclass(frozen=True)
class _Runner:
    """Classifies the parts of one process."""

    model: PertinenceForImageClassification
    work: _Work
    args: ClassificationArguments
    accelerator: Accelerator

    def run(self) -> tuple[float, int]:
        """Write the parts of this process; returns the seconds that this took, and the number of images."""
        parts = self.work.parts
        mine = self.work.unfinished[self.accelerator.process_index :: self.accelerator.num_processes]
        batches = [(part, rows) for part in mine for rows in _batches(parts.rows(part), self.args.batch_size)]
        loader = decoded_batches(self.work.images, [rows for _, rows in batches], self.args.num_workers)
        total, rows, spent, answered = sum(len(batch) for _, batch in batches), [], 0.0, 0
        start, title = time.perf_counter(), f"Classification ({self.work.point.name})"
        with progress_bar(total, title, "image", self.accelerator.is_local_main_process) as bar:
            for (part, batch), decoded in zip(batches, loader, strict=True):
                found = self._answer(decoded)
                rows += found
                spent += sum(row.get("gmacs", 0.0) for row in found)
                answered += sum("gmacs" in row for row in found)
                bar.set_postfix({"GMACs": f"{spent / max(answered, 1):.4g}"}, refresh=False)
                bar.update(len(batch))
                if batch.stop == parts.rows(part).stop:
                    parts.write(part, to_table(rows))
                    rows = []
        return time.perf_counter() - start, total

    def _answer(self, batch: list[Decoded]) -> list[dict[str, Any]]:
        """The rows of a batch; images that cannot be read are left out of what the model gets."""
        checked = [(name, self._checked(name, image)) for name, image in batch]
        usable = [image for _, image in checked if isinstance(image, torch.Tensor)]
        answers: Iterator[dict[str, Any]] = iter(())
        if usable:
            rate = 1.0 if self.work.run["max_error_rate"] is None else self.work.run["max_error_rate"]
            out = self.model(usable, operating_point=self.work.point.name, max_error_rate=rate)
            answers = iter(answer_rows(self.model, self.work.point.name, out, self.work.run["top_k"]))
        return [
            {"input": name, **(next(answers) if isinstance(image, torch.Tensor) else {"error": str(image)})}
            for name, image in checked
        ]

    def _checked(self, name: str, image: torch.Tensor | PertinenceError) -> torch.Tensor | PertinenceError:
        """An image, or why it cannot be used; raises the error if bad images stop the run."""
        if isinstance(image, torch.Tensor):
            try:
                for entry in self._entries():
                    entry.transform.check_image(*image.shape[-2:])
                return image
            except PertinenceError as error:
                image = unreadable(name, str(error))
        if self.args.on_bad_image == "stop":
            raise PertinenceError(f"{image}: remove it, or skip such images with --on-bad-image skip") from image
        return image

    def _entries(self) -> Iterator[ExpertEntry]:
        """The entries of the experts that may run for an image."""
        for index in self.work.point.order:
            expert = self.model.stem if index == STEM else self.model.pool[index]
            assert expert is not None  # see `PertinenceConfig.check`
            yield expert.entry


def _batches(rows: range, size: int) -> Iterator[range]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@dataclass
class _Summary:
    """Counts the rows of an output."""

    config: PertinenceConfig
    work: _Work
    errors: int = 0
    spent: float = 0.0
    experts: Counter[str] = field(default_factory=Counter)

    def add(self, table: pa.Table) -> None:
        self.errors += len(table) - table.column("error").null_count
        self.spent += pc.sum(table.column("gmacs").cast(pa.float64())).as_py() or 0.0
        counts = pc.value_counts(table.column("expert").drop_null())
        self.experts.update({one["values"]: one["counts"] for one in counts.to_pylist()})

    def result(self) -> dict[str, Any]:
        answered = sum(self.experts.values())
        reference = self.config.expert_entries[self.config.reference_index]
        gmacs = self.spent / answered if answered else None
        return {
            "output": str(self.work.parts.output),
            "operating_point": self.work.point.name,
            "images": len(self.work.images),
            "errors": self.errors,
            "gmacs": gmacs,
            "saving": None if gmacs is None else 1 - gmacs / reference.gmacs,
            "reference": reference.name,
            "expert_shares": {
                name: self.experts[name] / answered for name in self.config.expert_names if self.experts[name]
            },
        }
