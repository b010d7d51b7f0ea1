"""Which classes routing harms, and what it costs to let none lose much: balanced re-splits of the cached pools.

    uv run python tests/benchmarks/by_class.py --pools c10 c100 p7

Everything is fitted and chosen on the search images of a re-split and measured on its report images (see `pools.py`).
First for the default point: how many classes lose more than chance allows against the reference expert (exact sign
tests, false discovery rate 5 %), and which. Then for each limit of the loss of a class: the point that three rules
choose by the search images. "Seen": the cheapest at which no class shows a larger loss. "Expected": none is expected
to lose more, after shrinkage. "Bound": the rule of `max_class_loss`, see `class_loss_bounds`.

Of the chosen points are printed: operations saved and difference of accuracy against the reference; "worst": what the
class loses on the report images that seemed to lose most on the search images; "spread": standard deviation of the
true losses of classes, as the report images show it beyond chance, over all re-splits; and "over": the share of the
classes that lose more than the limit if their losses are normal with this spread.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from pools import POOLS, balanced_splits, load_benchmark_pool
from scipy.stats import norm
from transformers.utils import logging

from pertinence import SearchArguments
from pertinence.evaluation.class_loss import class_loss_bounds
from pertinence.evaluation.outcomes import evaluate_experts, evaluate_point
from pertinence.predictions.predictions import Predictions
from pertinence.search.front_search import FoundFront, search_front


LIMITS = (0.02, 0.05)
RULES = ("seen", "expected", "bound")


def losses(
    correct: np.ndarray, expected: np.ndarray, classes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each of `count` classes, NaN without images, and its variance by chance."""
    loss = expected.astype(float) - correct
    images = np.bincount(classes, minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(classes, loss, count) / images, loss.var() / images


def choose(found: FoundFront, search: Predictions) -> dict[str, list[float]]:
    """For each rule what it says that the worst class of each point loses; and which class seems to be the worst."""
    reference = found.evaluation.reference
    expected, classes = search.correct()[:, reference].numpy(), search.targets.numpy()
    said: dict[str, list[float]] = {rule: [] for rule in (*RULES, "class")}
    for point in found.evaluation.front:
        right = evaluate_point(point, found.heads[point.name], search).correct.numpy()
        mean = found.select_experts[reference].accuracy - point.select.accuracy
        seen, _ = losses(right, expected, classes, search.num_labels)
        said["seen"].append(float(np.nanmax(seen)))
        said["class"].append(int(np.nanargmax(seen)))
        said["expected"].append(float(class_loss_bounds(right, expected, classes, mean, 0.5).max()))
        said["bound"].append(point.select.class_loss)
    return said


def measure(names: list[str], search: Predictions, report: Predictions, seed: int) -> dict:
    """What one re-split shows."""
    found = search_front(names, search, report, SearchArguments(seed=seed, baselines=False), Accelerator(cpu=True))
    evaluation, by_class = found.evaluation, found.evaluation.by_class
    said, reference = choose(found, search), evaluate_experts(report)[evaluation.reference]
    losing = by_class.losing
    rows = {
        "default": {
            "classes": [[group.name, group.difference] for group in losing],
            "tested": by_class.num_tested,
            "first": by_class.first_share,
            "first_of_losing": [group.first_share for group in losing],
        }
    }
    chosen = {("default", None): evaluation.series.default}
    for limit in LIMITS:
        for rule in RULES:
            fit = [index for index, loss in enumerate(said[rule]) if loss <= limit]
            chosen[rule, limit] = fit[0] if fit else None
    for (rule, limit), index in chosen.items():
        key = rule if limit is None else f"{rule} {limit:g}"
        if index is None:  # then the reference expert answers
            rows[key] = {**rows.get(key, {}), "saved": 0.0, "difference": 0.0, "worst": 0.0, "deviations": None}
            continue
        point = evaluation.series.points[index]
        outcome = evaluate_point(point, found.heads[point.name], report)
        loss, noise = losses(
            outcome.correct.numpy(), reference.correct.numpy(), report.targets.numpy(), report.num_labels
        )
        has = ~np.isnan(loss)
        squares = (loss[has] - loss[has].mean()) ** 2 - noise[has] * (1 - 1 / has.sum())
        rows[key] = {
            **rows.get(key, {}),
            "saved": 1 - outcome.figures.cost / reference.figures.cost,
            "difference": evaluation.series.versus_reference[index].mean,
            "worst": float(np.nan_to_num(loss[said["class"][index]])),
            "deviations": [float(loss[has].mean()), float(squares.sum() / (has.sum() - 1))],
        }
    return rows


def print_rows(pool: str, kept: list[dict]) -> None:
    """The table of a pool, means over its re-splits."""
    default = [one["default"] for one in kept]
    names = Counter(name for one in default for name, _ in one["classes"])
    found, tested = (
        np.mean([f(one) for one in default]) for f in (lambda o: len(o["classes"]), lambda o: o["tested"])
    )
    lost = [difference for one in default for _, difference in one["classes"]]
    share = [share for one in default for share in one["first_of_losing"]]
    first = 100 * np.mean([one["first"] for one in default])
    print(f"\n{pool}, {len(kept)} re-splits, default point: {found:.2f} of {tested:.0f} tested classes lose")
    print(dict(names))
    if lost:
        print(
            f"they lose {-100 * np.mean(lost):.1f} points; the first member answers {100 * np.mean(share):.0f} % of "
            f"their images, and {first:.0f} % of all."
        )
    print("\n| rule, limit | saved | against the reference | worst | spread | over |\n" + "|---" * 6 + "|")
    for key in kept[0]:
        rows = [one[key] for one in kept]
        saved, difference, worst = (
            np.array([100 * row[name] for row in rows]) for name in ("saved", "difference", "worst")
        )
        known = np.array([row["deviations"] or (0.0, 0.0) for row in rows])
        mean, spread = known[:, 0].mean(), np.sqrt(max(known[:, 1].mean(), 0.0))
        limit = float(key.split()[1]) if " " in key else None
        over = "" if limit is None else f"{100 * norm.sf((limit - mean) / max(spread, 1e-9)):.1f} %"
        error = len(rows) ** 0.5
        print(
            f"| {key} | {saved.mean():.1f} ± {saved.std(ddof=1) / error:.1f} % | {difference.mean():+.2f} ± "
            f"{difference.std(ddof=1) / error:.2f} | {worst.mean():+.1f} ± {worst.std(ddof=1) / error:.1f} | "
            f"{100 * spread:.2f} | {over} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=["c10", "c100", "p7"], choices=POOLS)
    parser.add_argument("--resplits", type=int, help="default: 8 for CIFAR, 16 for ImageNet")
    parser.add_argument("--kept", type=Path, default=Path("runs/by-class"), help="folder of what was measured before")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options.kept.mkdir(parents=True, exist_ok=True)
    for pool in options.pools:
        names, everything = load_benchmark_pool(pool)
        kept = []
        resplits = options.resplits or (16 if POOLS[pool][0] == "imagenet" else 8)
        for index, parts in enumerate(balanced_splits(pool, len(everything), resplits)):
            path = options.kept / f"{pool}-{index}.json"
            if not path.is_file():
                path.write_text(json.dumps(measure(names, *map(everything.subset, parts), index)))
            kept.append(json.loads(path.read_text()))
        print_rows(pool, kept)


if __name__ == "__main__":
    main()
