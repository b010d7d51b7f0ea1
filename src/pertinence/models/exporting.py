"""Exports of whole models: every expert as an ONNX file, beside the model's own files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

from ..data.batches import Images
from ..data.decoding import as_images
from ..experts.base import ExpertLike
from ..experts.export_agreement import export_expert
from ..experts.host_pixels import measure_host_pixels
from ..hub.expert_files import check_unchanged
from ..hub.exported_files import ExportedFiles
from ..routing.costs import STEM
from ..runtime.entry import GRAPH_BACKENDS, ONNX_INT8, TORCH
from ..utils.errors import PertinenceError
from ..utils.io import beside
from ..utils.progress import progress_bar


if TYPE_CHECKING:
    from .modeling_pertinence import PertinenceForImageClassification

logger = logging.get_logger(__name__)


def export_model(model: PertinenceForImageClassification, folder: Path, images: Images | None) -> None:
    """Export the experts of a model, and save it with them; see `PertinenceForImageClassification.export_onnx`."""
    if images is None:
        raise PertinenceError(
            "every exported expert is compared with torch on real images: give at least 256 of them, "
            "export_onnx(folder, images) (--dataset)"
        )
    batch = as_images(images)
    experts: dict[int, ExpertLike] = dict(enumerate(model.pool)) | ({STEM: model.stem} if model.stem else {})
    if any(expert.folds_batch_norms for expert in experts.values()):
        raise PertinenceError(
            "this model was loaded with fold_batch_norms, but networks are exported as they are, and folded when "
            "their graphs are opened: load it without"
        )
    read = {index for point in model.front for index in point.reads_features_of}
    kept = [expert.entry.name for expert in experts.values() if not _has_network(expert)]
    if len(kept) == len(experts):
        raise PertinenceError(
            f"there is nothing to export, as no expert has its checkpoint loaded ({', '.join(kept)}): load the model "
            "with backend='torch'"
        )
    if kept:
        logger.warning(f"Not exported, as they are no networks in torch: {', '.join(kept)}.")
    with beside(folder / "exports") as staged, progress_bar(len(experts), "Exporting", "expert") as bar:
        if model.exported_files is not None:
            model.exported_files.copy(model.config.entries, staged)
        entries = []
        for (index, expert), entry in zip(experts.items(), model.config.entries, strict=True):
            with expert.loaded() as loaded:
                home = "stem" if index == STEM else str(index)
                if _has_network(expert):
                    if (source := loaded.find_folder()) is not None:
                        check_unchanged(entry, loaded.find_revision(), source)
                    export = export_expert(loaded, home, staged, batch, index in read)
                    export = replace(export, revision=entry.revision)
                    others = (one for one in entry.exports if one.file != export.file)
                    entry = entry.replace(exports=(export, *others))
                elif entry.backend == ONNX_INT8:
                    pixels = measure_host_pixels(loaded, batch)
                    entry = entry.replace(exports=tuple(replace(one, host_pixels=pixels) for one in entry.exports))
            entries.append(entry)
            bar.update(1)
        before = model.config.entries, model.exported_files
        model.config.set_entries(entries)
        model.exported_files = ExportedFiles(str(staged))
        try:
            model.save_pretrained(folder)
        except BaseException:
            model.config.set_entries(before[0])
            model.exported_files = before[1]
            raise
    model.exported_files = ExportedFiles(str(folder.resolve()))


def _has_network(expert: ExpertLike) -> bool:
    """Whether an expert's checkpoint is loaded, or will be, to be run in torch or as a graph made of it."""
    is_graph = expert.entry.backend in GRAPH_BACKENDS
    return expert.entry.backend == TORCH or (is_graph and not expert.entry.exports)
