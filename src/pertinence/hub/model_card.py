"""The model card, rendered from a model's config and the record of its search, without any requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from .._version import INSTALL
from ..routing.front import Front, OperatingPoint
from ..routing.metrics import ACCURACY, Figures, figure_cells, figure_header, saved_share
from ..runtime.entry import ExpertEntry, is_embedded
from ..utils.errors import first_line
from ..utils.tables import evenly_spaced
from ..utils.validation import split_revision
from .configuration import PertinenceConfig
from .layout import CERTAINTY_FIGURE, EXAMPLES_FIGURE, FRONT_FIGURE, SHARES_FIGURE
from .licences import most_restrictive


TEMPLATE = "model_card.md.jinja"
TAGS = ("pertinence", "timm", "dynamic-routing", "image-classification")
HUB = "https://huggingface.co"
SHOWN = 10
"""How many operating points the card's table shows; the model contains all."""


@dataclass(frozen=True)
class Card:
    """The input of a model card.

    Attributes:
        repo_id: repository that the model is pushed to.
        config: config of the model.
        record: record of its search, as in `search_result.json`; None if there was no search.
        settings: settings of its search, as in `search.yaml`; None if it was started from Python, or not at all.
        folders: names in `settings` that stand for local folders, by setting.
        figures: file names of the plots that are pushed.
        guarded: "gated" or "private" by expert name, for experts that are either.
        needs_code: names of experts that come with code of their own.
        tags: further tags.
    """

    repo_id: str
    config: PertinenceConfig
    record: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    folders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    figures: Sequence[str] = ()
    guarded: Mapping[str, str] = field(default_factory=dict)
    needs_code: Sequence[str] = ()
    tags: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.repo_id.rpartition("/")[2]

    @cached_property
    def front(self) -> Front:
        return self.config.build_front()

    @property
    def default(self) -> OperatingPoint:
        return self.front.find(self.config.operating_point)

    @cached_property
    def experts(self) -> list[Figures | None]:
        """Figures of each expert alone on the report images."""
        return [Figures.from_dict(entry.report) if entry.report else None for entry in self.config.expert_entries]

    @property
    def reference(self) -> Figures | None:
        """Figures of the expert that savings refer to."""
        return self.experts[self.config.reference_index]

    @property
    def copied(self) -> list[ExpertEntry]:
        """The entries of experts whose files are in the repository itself."""
        return [entry for entry in self.config.entries if entry.is_embedded]

    @property
    def dataset(self) -> dict[str, Any]:
        """The report images, as described in a model index."""
        settings = self.settings or {}
        setting = "report_dataset" if settings.get("report_dataset") else "dataset"
        kind, name, revision = "custom", settings.get(setting), None
        if name is not None and setting not in self.folders:
            name, revision = split_revision(name)
            kind = name
        split = settings.get("report_split") or settings.get("split")
        if split and not settings.get("report_split") and not settings.get("report_dataset"):
            split = f"{split} (a part held out)"
        return {
            "dataset_type": kind,
            "dataset_name": name or "report images",
            "dataset_config": settings.get("dataset_config"),
            "dataset_revision": revision,
            "dataset_split": split,
        }


def render_card(card: Card) -> str:
    """Render a model card, metadata first; raises `ValueError` if the record has another structure."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"plain": plain, "code": code, "fenced": fenced}
    template = environment.from_string(_template().read_text(encoding="utf-8"))
    try:
        return template.render(
            card=card,
            config=card.config,
            default=card.default,
            reference=card.config.expert_entries[card.config.reference_index],
            alone=card.reference,
            saved=_saved(card.default.report, card.reference) if card.default.report and card.reference else None,
            metadata=metadata(card).to_yaml(),
            licence=most_restrictive(entry.licence for entry in card.copied),
            front_table=front_table(card),
            expert_table=expert_table(card),
            baseline_table=baseline_table(card),
            losing=losing_table(card),
            settings=settings_text(card),
            compared=card.record["report"].get("by_class") if card.record else None,
            install=INSTALL,
            budget=f"{1.05 * card.default.select.gmacs:.3g}" if card.default.select else None,
            guarantee=card.config.build_guarantee(),
            exported=[entry for entry in card.config.entries if entry.exports],
            has_front_figure=FRONT_FIGURE in card.figures,
            certainty_table=certainty_table(card),
            promises=card.config.build_promises(),
            has_certainty_figure=CERTAINTY_FIGURE in card.figures,
            has_shares_figure=SHARES_FIGURE in card.figures,
            has_examples_figure=EXAMPLES_FIGURE in card.figures,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the record is of another shape: {first_line(error)}") from error


def metadata(card: Card) -> ModelCardData:
    """The metadata of a card, which the Hub uses for filters and links."""
    origins = [entry.origin or entry.repo_id for entry in card.config.entries]
    bases = list(dict.fromkeys(origin for origin in origins if origin is not None and not is_embedded(origin)))
    settings = card.settings or {}
    named = [settings.get(name) for name in ("dataset", "report_dataset") if name not in card.folders]
    datasets = list(dict.fromkeys(split_revision(name)[0] for name in named if name))
    licence: dict[str, Any] = most_restrictive(entry.licence for entry in card.copied)
    figures = card.default.report
    results = None
    if figures is not None:
        at = f"operating point {card.default.name}"
        values = {
            figures.measure: (
                figures.accuracy,
                f"{figures.measure.capitalize()}, {at}",
            ),
            "gmacs": (figures.gmacs, f"Average GMACs per image, {at}"),
        }
        results = [
            EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                metric_type=kind,
                metric_value=round(value, 6),
                metric_name=name,
                **card.dataset,
            )
            for kind, (value, name) in values.items()
        ]
    return ModelCardData(
        model_name=card.name,
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=bases or None,
        base_model_relation="merge" if bases else None,
        datasets=datasets or None,
        metrics=[figures.measure if figures else ACCURACY],
        eval_results=results,
        tags=list(dict.fromkeys([*TAGS, *card.tags])),
        **licence,
    )


def front_table(card: Card) -> str | None:
    """Table of operating points, evenly spaced along the front, with the default one; None if none was measured."""
    measured = [(point, point.report) for point in card.front if point.report is not None]
    if not measured:
        return None
    default = [index for index, (point, _) in enumerate(measured) if point is card.default]
    rows = evenly_spaced(len(measured), SHOWN, default)
    reference = card.reference
    names = map(plain, card.config.expert_names)
    header = ["operating point", *figure_header(measured[0][1]), *names, "saved"]
    cells = []
    for point, figures in (measured[index] for index in rows):
        name = f"**{code(point.name)}**" if point is card.default else code(point.name)
        cells.append([name, *figure_cells(figures), _saved(figures, reference)])
    return markdown_table(header, cells)


def expert_table(card: Card) -> str:
    """Table of the experts: source, revision, licence, cost, size, and accuracy alone."""
    measure = next((figures.measure for figures in card.experts if figures), ACCURACY)
    header = ["expert", "from", "revision", "licence", "GMACs", "parameters", f"{measure} alone"]
    rows = []
    figures = [*card.experts, *([None] if card.config.stem else [])]
    for index, (entry, one) in enumerate(zip(card.config.entries, figures, strict=True)):
        name = code(entry.name) + (" (stem)" if index == len(card.experts) else "")
        rows.append(
            [
                f"{name}, {card.guarded[entry.name]}" if entry.name in card.guarded else name,
                _link(entry),
                f"`{entry.revision.removeprefix('sha256:')[:12]}`",
                plain(entry.licence or "not stated"),
                f"{entry.gmacs:.4g}",
                f"{entry.parameters:,}",
                f"{100 * one.accuracy:.2f} %" if one else "",
            ]
        )
    return markdown_table(header, rows)


def baseline_table(card: Card) -> str | None:
    """Table of the baselines with the same experts on the same images; None if they were not measured."""
    if card.record is None:
        return None
    report, reference = card.record["report"], card.reference
    names = map(plain, card.config.expert_names)
    against = f"against {code(card.config.expert_names[card.config.reference_index])}"
    header = ["", *figure_header(reference), *names, "saved", against]

    def row(name: str, values: Mapping[str, Any]) -> list[str]:
        # Older records compare with the largest expert, which is the reference of their models.
        figures, versus = Figures.from_dict(values), values.get("versus_reference", values.get("versus_largest"))
        difference = f"{100 * versus['mean']:+.2f} ± {100 * versus['standard_error']:.2f}" if versus else ""
        return [name, *figure_cells(figures), _saved(figures, reference), difference]

    default = next((point for point in report["front"] if point["name"] == card.default.name), None)
    rows = [] if default is None else [row(f"**{code(card.default.name)}**", default)]
    rows += [
        row(plain(name), series["points"][series["default"]]) for name, series in card.record["baselines"].items()
    ]
    rows += [row(f"{code(values['name'])} alone", values) for values in report["experts"]]
    return markdown_table(header, [*rows, row("oracle, its own cost not counted", report["oracle"])])


def losing_table(card: Card) -> str | None:
    """Table of the classes that lose more than chance allows against the reference expert; None if none does, or if
    they were not compared."""
    compared = card.record["report"].get("by_class") if card.record is not None else None
    losing = [group for group in compared["groups"] if group["loses"]] if compared else []
    if not compared or not losing:
        return None
    header = ["class", "images", code(compared["operating_point"]), code(compared["reference"]), "difference"]
    header += ["95 % interval", f"{code(compared['first'])} alone answers"]
    rows = []
    for group in losing[:SHOWN]:
        low, high = group["interval"]
        rows.append(
            [
                plain(group["name"]),
                f"{group['images']}",
                f"{100 * group['accuracy']:.1f} %",
                f"{100 * group['reference_accuracy']:.1f} %",
                f"{100 * group['difference']:+.1f}",
                f"{100 * low:+.1f} .. {100 * high:+.1f}",
                f"{100 * group['first_share']:.0f} %",
            ]
        )
    return markdown_table(header, rows)


def certainty_table(card: Card) -> str | None:
    """Table of how far the confidence can be believed, beside the reference expert; None if it was not measured."""
    measured = () if card.record is None else card.record["report"].get("certainty", ())
    if not measured:
        return None
    header = ["confidence of", "ECE", "Brier score", "AUROC", "AURC"]

    def cell(values: Mapping[str, Any] | None) -> str:
        if values is None:
            return ""
        low, high = values["interval"]
        return f"{values['value']:.4f} ({low:.4f} .. {high:.4f})"

    rows = [[code(one["name"]), *(cell(one[key]) for key in ("ece", "brier", "auroc", "aurc"))] for one in measured]
    return markdown_table(header, rows)


def settings_text(card: Card) -> str | None:
    """The settings that repeat the search, as YAML; None if there was no search."""
    settings = card.settings
    if settings is None and card.record is not None:
        private = ("experts", "stem", "images")
        settings = {name: value for name, value in card.record["settings"].items() if name not in private}
    return None if settings is None else yaml.safe_dump(dict(settings), sort_keys=False).strip()


def plain(text: Any) -> str:
    """Untrusted text as Markdown without markup."""
    return re.sub(r"[\\`*_~\[\]<>#$&]|^[-+]", r"\\\g<0>", " ".join(str(text).split()))


def code(text: str) -> str:
    """A name as a code span, which it cannot close."""
    return f"`{text.replace('`', chr(39))}`"


def fenced(text: str, language: str = "") -> str:
    """Text as a code block, which it cannot close."""
    fence = "`" * max([3, *(1 + len(run) for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned. Cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    rule = "| --- |" + " ---: |" * (len(header) - 1)
    return "\n".join([line(header), rule, *map(line, rows)])


def _link(entry: ExpertEntry) -> str:
    """Link to an expert: in the repository itself, or on the Hub at its pinned revision."""
    origin, commit = entry.origin, entry.origin_revision or entry.revision
    if entry.is_embedded:
        assert entry.repo_id is not None
        home = entry.repo_id.removeprefix("./")
        source = "" if origin is None else f", from [{origin}]({HUB}/{origin}/tree/{commit})"
        return f"[{home}]({home}){source}"
    return f"[{entry.repo_id}]({HUB}/{entry.repo_id}/tree/{entry.revision})"


def _saved(figures: Figures, reference: Figures | None) -> str:
    return "" if reference is None else f"{100 * saved_share(figures, reference):.1f} %"


def _template() -> Any:
    """The template: beside this module if the package is installed, else in the root of its source tree."""
    installed = resources.files("pertinence") / "hub_cards" / TEMPLATE
    return installed if installed.is_file() else Path(__file__).parents[3] / "hub_cards" / TEMPLATE
