"""Requests of many kinds, from many threads at once, to one saved model; every answer is compared with that of one
image alone on one thread."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pertinence import PertinenceError, PertinenceForImageClassification, PertinenceImageProcessor, StreamDispatcher


BFLOAT16 = 0.15
"""How far a logit of bfloat16 may lie from that of the image alone."""
LEAST_MARGIN = {"whole": 1e-4, "lazy": 1e-4, "bfloat16": 0.01}
"""Where two actions are closer than this, rounding may decide: such an image is not asked about at that point."""
INVALID: dict[str, Callable[[torch.Tensor], dict[str, Any]]] = {
    "no images": lambda batch: {"images": []},
    "nothing": lambda batch: {},
    "twice": lambda batch: {"images": batch, "pixel_values": batch},
    "whole numbers": lambda batch: {"images": batch.long()},
    "normalised": lambda batch: {"images": batch.float() / 64 - 2},
    "NaN": lambda batch: {"images": batch.float() * torch.nan},
    "grey": lambda batch: {"images": batch[:, :1]},
    "not decoded": lambda batch: {"images": [batch[0].numpy()]},
    "unknown point": lambda batch: {"images": batch, "operating_point": "free"},
}


@dataclass
class Expected:
    """What one image alone is answered with: logits (C,), who answered last, what was run, and by how much the
    closest decision was taken."""

    logits: torch.Tensor
    expert: int
    gmacs: float
    margin: float


@dataclass
class Counts:
    """What became of the requests; `worst` is the largest difference of a logit that was not refused, by form."""

    kinds: Counter[str] = field(default_factory=Counter)
    images: int = 0
    wrong: list[str] = field(default_factory=list)
    worst: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return self.kinds.total()


class MixedLoad:
    """A saved model in three forms (whole, lazy under a cap that makes experts leave, bfloat16), each shared by all
    threads, and one more whose budget changes all the time.

    Args:
        folder: of the model.
        images: uint8 tensors (3, H, W) of several sizes, some of each size.
        points: names of the operating points that are asked for.
        seed: of the requests.
        tolerance: how far a logit of float32 may lie from that of the image alone.
    """

    def __init__(
        self,
        folder: Path | str,
        images: Sequence[torch.Tensor],
        points: Sequence[str],
        seed: int = 0,
        tolerance: float = 1e-4,
    ):
        def load(**options: Any) -> PertinenceForImageClassification:
            return PertinenceForImageClassification.from_pretrained(folder, trust_remote_code=True, **options)

        self.images, self.points, self.seed = list(images), list(points), seed
        alone = load()
        entries, default = alone.config.experts, alone.front.find(alone.config.operating_point)
        cap = 4 * (max(e["parameters"] for e in entries) + entries[default.members[0]]["parameters"])
        lazy = load(lazy=True, max_memory=cap)
        self.forms = {"whole": load(), "lazy": lazy, "bfloat16": load(dtype="bfloat16")}
        self._tolerance = {"whole": tolerance, "lazy": tolerance, "bfloat16": BFLOAT16}
        self.default = default.name
        self._other, self._other_lock = load(), threading.Lock()
        self._processor = PertinenceImageProcessor()
        self._expected = {"whole": self._answers(alone), "bfloat16": self._answers(load(dtype="bfloat16"))}
        self._expected["lazy"] = self._expected["whole"]
        self._by_expert = [[expert(image[None])[0][0] for image in images] for expert in alone.experts]
        self.asked = {
            (form, point): [i for i, answer in enumerate(answers) if answer.margin > LEAST_MARGIN[form]]
            for form, by_point in self._expected.items()
            for point, answers in by_point.items()
        }
        self.counts = Counts()
        self._lock = threading.Lock()

    def run(self, threads: int, seconds: float, every: float) -> Iterator[Counts]:
        """Ask from so many threads for so many seconds; yields the counts so far every so many seconds, and at the end
        once more."""
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(self._ask_until, end, self.seed + thread) for thread in range(threads)]
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(every, left))
                yield self.counts
            for thread in running:
                thread.result()
        yield self.counts

    def _ask_until(self, end: float, seed: int) -> None:
        rng = random.Random(seed)
        kinds = {self._plain: 10, self._decoded: 2, self._invalid: 3, self._stream: 2, self._budget: 2}
        while time.monotonic() < end:
            (ask,) = rng.choices(list(kinds), kinds.values())
            try:
                wrong = ask(rng)
            except Exception as error:  # whatever it is, it is no answer
                wrong = f"{type(error).__name__}: {error}"
            with self._lock:
                self.counts.kinds[ask.__name__.strip("_")] += 1
                if wrong:
                    self.counts.wrong.append(f"{ask.__name__}: {wrong}")

    # Kinds of requests: each returns what is wrong with the answer, if anything

    def _plain(self, rng: random.Random) -> str | None:
        """A batch of one size, or a list of mixed sizes; at a point named in the call, or at the model's own."""
        (form,) = rng.choices(list(self.forms), [6, 4, 1])
        point = rng.choice([None, *self.points])
        rows = self._choose(rng, form, point or self.default)
        batch: Any = [self.images[row] for row in rows]
        if len({image.shape for image in batch}) == 1:
            batch = torch.stack(batch)
            if rng.random() < 0.3:
                batch = batch / 255
        return self._compare(form, point, rows, self.forms[form](batch, operating_point=point))

    def _decoded(self, rng: random.Random) -> str | None:
        """PIL images, through the processor."""
        rows = self._choose(rng, "whole", self.default)
        pictures = [Image.fromarray(self.images[row].permute(1, 2, 0).numpy()) for row in rows]
        return self._compare("whole", None, rows, self.forms["whole"](**self._processor(pictures)))

    def _invalid(self, rng: random.Random) -> str | None:
        """What must be refused with our own error."""
        kind = rng.choice(list(INVALID))
        batch = self.images[rng.randrange(len(self.images))].repeat(rng.randint(1, 4), 1, 1, 1)
        with suppress(PertinenceError):
            self.forms[rng.choice(list(self.forms))](**INVALID[kind](batch))
            return f"{kind} was answered"
        return None

    def _stream(self, rng: random.Random) -> str | None:
        """A stream of its own over the shared model."""
        point = rng.choice(self.points)
        stream = StreamDispatcher(self.forms["whole"], interval=3, operating_point=point)
        rows = self._choose(rng, "whole", point)[:8]
        decided = 0
        for row, answer in zip(rows, stream([self.images[row] for row in rows]), strict=True):
            expected = self._expected["whole"][point][row]
            decided = expected.expert if answer.dispatched else decided
            logits = expected.logits if answer.dispatched else self._by_expert[decided][row]
            if answer.expert_index != decided or not self._near("whole", answer.logits, logits):
                return f"frame {row} at {point}"
        return None

    def _budget(self, rng: random.Random) -> str | None:
        """Another model, whose budget is changed for good: those that are shared must not notice."""
        point = rng.choice(self.points)
        rows = self._choose(rng, "whole", point)
        with self._other_lock:
            self._other.set_budget(operating_point=point)
            out = self._other([self.images[row] for row in rows])
        return self._compare("whole", point, rows, out)

    def _choose(self, rng: random.Random, form: str, point: str) -> list[int]:
        """Up to 32 images in any order, half of the time of one size."""
        rows = self.asked[form, point]
        if rng.random() < 0.5:
            shape = self.images[rng.choice(rows)].shape
            rows = [row for row in rows if self.images[row].shape == shape]
        return rng.choices(rows, k=rng.choice([1, 1, 2, 3, 4, 8, 16, 32]))

    def _compare(self, form: str, point: str | None, rows: Sequence[int], out: Any) -> str | None:
        expected = [self._expected[form][point or self.default][row] for row in rows]
        with self._lock:
            self.counts.images += len(rows)
        where = f"{form} at {point}, {len(rows)} images"
        if out.expert_indices.tolist() != [answer.expert for answer in expected]:
            return f"{where}: others answered"
        if not torch.allclose(out.gmacs, torch.tensor([answer.gmacs for answer in expected]), rtol=1e-5):
            return f"{where}: others ran"
        if not self._near(form, out.logits, torch.stack([answer.logits for answer in expected])):
            return f"{where}: other logits"
        return None

    def _near(self, form: str, logits: torch.Tensor, expected: torch.Tensor) -> bool:
        difference = (logits - expected).abs().max().item()
        with self._lock:
            self.counts.worst[form] = max(self.counts.worst[form], difference)
        return difference <= self._tolerance[form]

    def _answers(self, model: PertinenceForImageClassification) -> dict[str, list[Expected]]:
        return {
            point: [_alone(model, image, point) for image in self.images] for point in {self.default, *self.points}
        }


def _alone(model: PertinenceForImageClassification, image: torch.Tensor, point: str) -> Expected:
    out = model(image[None], operating_point=point)
    reached = [row[~row.isnan()].sort(descending=True).values for row in out.dispatcher_logits[0]]
    margins = [(scores[0] - scores[1]).item() for scores in reached if len(scores) > 1]
    return Expected(out.logits[0], out.expert_indices.item(), out.gmacs.item(), min(margins, default=1.0))
