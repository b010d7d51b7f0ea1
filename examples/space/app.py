"""A Space that shows which experts of a searched model ran for an image, why, and what that saved.

    uv run --no-dev --group examples python examples/space/app.py --model runs/cifar10

As a Space it shows the model that the variable `PERTINENCE_MODEL` names; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import gradio as gr
import torch
from matplotlib.figure import Figure
from PIL import Image

from pertinence import OperatingPoint, PertinenceError, PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.evaluation.figures import name_points
from pertinence.hub.layout import EXAMPLES_FIGURE, FRONT_FIGURE, SHARES_FIGURE
from pertinence.routing.front import STEM
from pertinence.utils.downloads import find_file


MODEL = "user/pertinence-cifar10"
WHY = (
    "### Which experts ran, and why\nAfter each expert it runs the one with the highest score above 0, or answers.\n\n"
)
PICTURES = {
    FRONT_FIGURE: "Accuracy against cost of every operating point, the experts and the baselines",
    SHARES_FIGURE: "Share of the images that each expert answers, by operating point",
    EXAMPLES_FIGURE: "Report images that each expert answers, the most and the least confident",
}
"""Pictures of a result, with their captions on its card."""
BLUE, ORANGE, RED = "#1f77b4", "#ff7f0e", "#d62728"


class Explainer:
    """What the page shows of a model.

    Args:
        model: a searched model, whose front was measured.

    Raises:
        PertinenceError: the model was not searched, so there is no front to show.
    """

    def __init__(self, model: PertinenceForImageClassification):
        self.model, self.processor = model, PertinenceImageProcessor()
        self.names, self.labels = model.config.expert_names, model.config.id2label
        self.largest = model.config.experts[-1]
        if any(point.select is None for point in model.front):
            raise PertinenceError("this page shows the front of a searched model, and this one was not searched")
        costs = [point.select.gmacs for point in model.front]
        self.least, self.most = min(costs), max(costs)
        self.default = model.front.find(model.config.operating_point or model.front[-1].name).select.gmacs
        self.digits = 3 - math.floor(math.log10(self.most))  # four digits of the most expensive point

    def rounded(self, gmacs: float, how: Callable[[float], int]) -> float:
        """A cost as the slider shows it, rounded by `math.floor` or `math.ceil`."""
        return round(how(gmacs * 10**self.digits) / 10**self.digits, self.digits)

    def __call__(self, image: Image.Image | None, budget: float) -> tuple[dict | None, str, str, Figure]:
        """Labels with their probabilities, a summary, the steps, and the front.

        Args:
            image: the image to classify; None to show only the front.
            budget: GMACs that an image may cost on average.
        """
        # The slider begins a little below the cheapest point.
        point = self.model.front.choose(gmacs=max(budget, self.least))
        if image is None:
            summary = f"{self._describe(point)}\n\nDrop an image to see which experts run for it."
            return None, summary, "", self.plot(point)
        images = self.processor(image)["images"]
        out = self.model(images, operating_point=point.name)
        scores = {self.labels[i]: value for i, value in enumerate(out.logits[0].softmax(0).tolist())}
        ran = [index for index, did_run in enumerate(out.experts_run[0].tolist()) if did_run]
        gmacs = out.gmacs[0].item()
        saved = 1 - gmacs / self.largest["gmacs"]
        comparison = "less" if saved >= 0 else "more"
        summary = (
            f"### Ran {' → '.join(self.names[index] for index in ran)}\n"
            f"**{gmacs:.3g} GMACs for this image, {100 * abs(saved):.0f} % {comparison}** than {self.largest['name']} "
            f"alone ({self.largest['gmacs']:.3g}).\n\n{self._describe(point)}"
        )
        steps = self._steps(point, images, ran, out.dispatcher_logits[0])
        return scores, summary, WHY + "\n".join(steps), self.plot(point)

    def _describe(self, point: OperatingPoint) -> str:
        figures = point.report or point.select
        low, high = figures.interval
        return (
            f"Operating point `{point.name}`: {100 * figures.accuracy:.2f} % {figures.measure} (95 % interval "
            f"{100 * low:.2f} to {100 * high:.2f}) at {figures.gmacs:.3g} GMACs on average, on {figures.samples:,} "
            "images."
        )

    def _steps(self, point: OperatingPoint, images: list, ran: list[int], scores: torch.Tensor) -> list[str]:
        """An item of a list for each decision: the answer so far, the scores of deferring, and what was decided."""
        stages = {stage.after: stage for stage in point.stages}
        decided = {stage.after: row for stage, row in zip(point.decisions, scores.tolist(), strict=True)}
        logits = {index: self.model.experts[index](images)[0][0] for index in ran}
        following = dict(zip([STEM, *ran], ran, strict=False))
        rows = []
        for after in [STEM, *ran]:
            if after == STEM and STEM not in decided:
                continue
            known = ""  # a stem gives no answer
            if after != STEM:
                answer, mixing = logits[after], stages[after].mixing if after in stages else None
                if mixing is not None:
                    weights = dict(zip(point.members, mixing, strict=False))
                    answer = sum(weights[i] * logits[i].log_softmax(0) for i in ran if i <= after)
                best = answer.softmax(0).max(0)
                known = f"`{self.labels[best.indices.item()]}` with {100 * best.values:.1f} %; "
            row = decided.get(after, [])
            answering = 0.0 if after == STEM or not row else row[after]
            going_on = {j: score - answering for j, score in enumerate(row) if j > after and not math.isnan(score)}
            scored = ", ".join(f"`{self.names[j]}` {score:+.2g}" for j, score in going_on.items())
            decision = f"run {self.names[following[after]]}" if after in following else "answer"
            scored = f"scores: {scored}" if scored else "nothing is left to decide"
            rows.append(f"1. `{self._name(after)}`: {known}{scored}. **{decision}**")
        return rows

    def _name(self, index: int) -> str:
        return self.model.config.stem["name"] if index == STEM else self.names[index]

    def plot(self, chosen: OperatingPoint) -> Figure:
        """The front beside the experts alone, with a ring around the chosen point."""
        figure = Figure(
            figsize=(5, 3.4), dpi=160, layout="constrained"
        )  # small, so that a telephone shows its letters
        axes = figure.subplots()
        front = [point.report or point.select for point in self.model.front]
        axes.plot([f.gmacs for f in front], [100 * f.accuracy for f in front], "o-", ms=3, color=BLUE, label="front")
        alone = [entry.get("report") or entry.get("select") for entry in self.model.config.experts]
        points = [(figures["gmacs"], 100 * figures[front[0].measure]) for figures in alone]
        axes.plot(*zip(*points, strict=True), "s", ms=7, color=ORANGE, label="an expert alone")
        here = chosen.report or chosen.select
        axes.plot(here.gmacs, 100 * here.accuracy, "o", ms=14, mew=2, mfc="none", mec=RED, label=chosen.name)
        axes.set_xlabel("GMACs per image, on average")
        axes.set_ylabel(f"{here.measure}, %")
        axes.margins(0.08, 0.12)
        axes.grid(alpha=0.25)
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
        name_points(axes, self.names, points, others=[(here.gmacs, 100 * here.accuracy)])
        return figure


def find_pictures(model: str) -> list[Path]:
    """The pictures of a result in the folder or repository of a model."""
    found = []
    for name in PICTURES:
        with suppress(PertinenceError):  # without a connection the page is shown without them
            found.append(find_file(model, name))
    return [path for path in found if path is not None]


def build(model: PertinenceForImageClassification, pictures: Sequence[Path] = ()) -> gr.Blocks:
    """The page, with the API endpoint `/explain`.

    Args:
        pictures: files of `PICTURES`.
    """
    explain = Explainer(model)
    with gr.Blocks(title="pertinence") as page:
        gr.Markdown(
            "# For each image the cheapest expert that is expected to be right\n"
            f"{len(explain.names)} classifiers, of which a learned dispatcher runs as few as an image needs. The "
            "budget limits the average cost of an image, not the cost of this one."
        )
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(type="pil", image_mode="RGB", label="Image", height=280)
                budget = gr.Slider(
                    explain.rounded(explain.least, math.floor),
                    explain.rounded(explain.most, math.ceil),
                    explain.rounded(explain.default, math.ceil),
                    step=10**-explain.digits,
                    label="Budget, GMACs per image",
                )
                labels = gr.Label(num_top_classes=3, label="Answer")
            with gr.Column(scale=3):
                summary = gr.Markdown()
                front = gr.Plot(show_label=False)
        steps = gr.Markdown()
        if pictures:
            gr.Markdown("### The result of the search")
        for path in pictures:
            gr.Markdown(PICTURES[path.name])
            gr.Image(str(path), show_label=False, interactive=False, buttons=["fullscreen", "download"])
        shown = {"inputs": [image, budget], "outputs": [labels, summary, steps, front], "show_progress": "hidden"}
        image.change(explain, **shown, api_name="explain")
        budget.release(explain, **shown, api_visibility="private")
        page.load(explain, **shown, api_visibility="private")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("PERTINENCE_MODEL", MODEL), help="Default: %(default)s.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run the code that experts bring with them.")
    options = parser.parse_args()
    trusts = options.trust_remote_code or os.environ.get("PERTINENCE_TRUST_REMOTE_CODE") == "1"
    model = PertinenceForImageClassification.from_pretrained(options.model, trust_remote_code=trusts)
    build(model, find_pictures(options.model)).launch()


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
