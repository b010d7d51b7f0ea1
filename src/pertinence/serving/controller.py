"""The load controller: which operating point answers while requests arrive faster or slower.

It knows no clock, no queue and no model: it is told what happened and when, in seconds, so that a simulation drives it
as the server does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


EARLY, LATE = 0.5, 0.8
"""Shares of the target: an expected wait above the first, or an observed p95 above the second, asks for a cheaper
point."""
CALM = 0.25
"""Share of the target below which the time for what waits must lie before a more accurate point is tried."""
BATCH = 0.3
"""Share of the target that one batch may take."""
LEAST_BATCH = 8
"""Images that a batch may hold anyway: single ones are slow, and would never show what a larger batch could do."""
HOLD, LONGEST_HOLD = 1.0, 30.0
"""Seconds of calm before a more accurate point is tried: at first, and after it was tried in vain several times."""
SETTLE = 0.25
"""Seconds after a change in which observed latencies, which are those of the former point, count nothing."""
WINDOW, RECENT, ENOUGH = 400, 2.0, 20
"""Latest answers whose latency counts: how many at most, of the last so many seconds, and how many are needed."""
MEMORY = 0.2
"""Weight of the latest batch in the mean of seconds an image."""
LOOK = 0.05
"""Seconds between two looks at observed latencies, which a look has to sort."""
LEAST_STEP = 0.04
"""Points whose costs differ by less are one step."""
LEAST_ROOM = 0.2
"""Share of the target that may always be promised to a request: not everything is refused after a bad moment."""


def ladder(costs: Sequence[float]) -> list[int]:
    """The points that are steps of their own.

    Args:
        costs: falling costs of points; the first and the last are steps.

    Returns:
        Their positions.
    """
    kept = [0]
    for position in range(1, len(costs)):
        is_last = position == len(costs) - 1
        if costs[position] <= costs[kept[-1]] * (1 - LEAST_STEP) or is_last:
            kept.append(position)
    return kept


class LoadController:
    """Chooses a position on a ladder of operating points, and says whether a request can be answered in time.

    Under load it moves at once as far down as the queue demands. It comes back step by step: after a time of calm,
    which becomes longer when a step back was taken in vain (hysteresis).

    Args:
        costs: mean costs of an image at each step, falling: the first is the point without load.
        target: seconds within which 95 % of the requests are to be answered.
        max_batch: largest number of images of a batch.
    """

    def __init__(self, costs: Sequence[float], target: float, max_batch: int):
        self.costs, self.target, self.max_batch = list(costs), target, max_batch
        self.position = 0
        self.room = 1.0
        """Share of the target that the queue may use: what is lost elsewhere is found out by what is observed."""
        self._rate: float | None = None  # seconds an image, for each unit of cost
        self._is_busy, self._busy_until = False, 0.0
        self._latencies: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._changed = self._calm_since = 0.0
        self._hold = HOLD
        self._rose: float | None = None
        self._adjusted = self._looked = 0.0
        self._observed: float | None = None

    def seconds(self, position: int) -> float:
        """Expected seconds of an expert's time for an image at a step; 0 before any was seen."""
        return (self._rate or 0.0) * self.costs[position]

    def batch_limit(self) -> int:
        """How many images the next batch may hold, so that those that arrive meanwhile do not wait too long."""
        each = self.seconds(self.position)
        return self.max_batch if not each else min(self.max_batch, max(LEAST_BATCH, int(BATCH * self.target / each)))

    def started(self, now: float, images: int, cost: float) -> None:
        """A batch has started whose images cost so much each, on average."""
        self._is_busy, self._busy_until = True, now + images * cost * (self._rate or 0.0)

    def finished(self, now: float, images: int, cost: float, seconds: float) -> None:
        """A batch is finished, which took so many seconds; one of no known cost teaches nothing."""
        self._is_busy, self._busy_until = False, now
        if cost > 0:
            new = seconds / (images * cost)
            # A single image takes longer than one of many: it says little of what a full queue would take.
            weight = MEMORY * min(1.0, images / 8)
            self._rate = new if self._rate is None else (1 - weight) * self._rate + weight * new

    def answered(self, now: float, latency: float) -> None:
        """A request has been answered, so many seconds after it was there."""
        self._latencies.append((now, latency))

    def wait(self, now: float, waiting: int, position: int) -> float:
        """Expected seconds until a request is answered before which so many images wait."""
        return self._backlog(now, waiting, position) + self.seconds(position)

    def _backlog(self, now: float, waiting: int, position: int) -> float:
        """Expected seconds until the last of so many waiting images is answered; 0 if there are none."""
        return max(0.0, self._busy_until - now) + waiting * self.seconds(position)

    def admits(self, now: float, waiting: int) -> bool:
        """Whether a request can be answered in time at the cheapest step; without others it is answered anyway."""
        if not waiting and not self._is_busy:
            return True
        return self.wait(now, waiting, len(self.costs) - 1) <= self.room * self.target

    def retry_after(self, now: float, waiting: int) -> float:
        """Seconds until half of what waits is answered."""
        return self.wait(now, waiting, len(self.costs) - 1) / 2

    def decide(self, now: float, waiting: int) -> int:
        """Choose the step for an image, with so many images waiting before it."""
        self._look(now)
        observed = self._observed
        self._adjust(now, observed)
        backlog, last = self._backlog(now, waiting, self.position), len(self.costs) - 1
        # Where nothing waits, what is expected of one image is no reason: the time of images of others said it.
        is_late = backlog > 0 and backlog + self.seconds(self.position) > EARLY * self.target
        if is_late and self.position < last:
            fitting = (
                step for step in range(self.position + 1, last) if self.wait(now, waiting, step) <= EARLY * self.target
            )
            self._move(now, next(fitting, last))
        elif observed is not None and observed > LATE * self.target and self.position < last:
            self._move(now, self.position + 1)
        elif backlog > CALM * self.target or (observed is not None and observed > EARLY * self.target):
            self._calm_since = now
        elif self.position > 0 and now - max(self._calm_since, self._changed) >= self._hold:
            self._move(now, self.position - 1)
        return self.position

    def _move(self, now: float, position: int) -> None:
        if position > self.position:
            in_vain = self._rose is not None and now - self._rose < 2 * self._hold
            self._hold = min(LONGEST_HOLD, 2 * self._hold) if in_vain else HOLD
            self._rose = None
        else:
            self._rose = now
        self.position, self._changed, self._calm_since = position, now, now
        self._latencies.clear()
        self._observed = None

    def _look(self, now: float) -> None:
        """Find the p95 of the recent latencies since the last change; None if there are too few."""
        if now - self._looked < LOOK:
            return
        self._looked = now
        start = max(self._changed + SETTLE, now - RECENT)
        values = sorted(latency for when, latency in self._latencies if when >= start)
        self._observed = values[int(0.95 * (len(values) - 1))] if len(values) >= ENOUGH else None

    def _adjust(self, now: float, observed: float | None) -> None:
        """Promise less while answers are late at the cheapest step, and more again when they are not."""
        if now - self._adjusted < SETTLE:
            return
        self._adjusted = now
        if observed is not None and observed > LATE * self.target and self.position == len(self.costs) - 1:
            self.room = max(LEAST_ROOM, 0.9 * self.room)
        else:
            self.room = min(1.0, self.room + 0.02)
