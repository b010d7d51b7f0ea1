"""What is refused: a status, and one sentence."""

from __future__ import annotations


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: status of HTTP, 400 or above.
        reason: one word for the metrics.
        sentence: what is wrong, and what was expected.
        headers: further headers of the response.
        closes: whether the connection is closed, as the rest of the request is not read.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        sentence: str,
        headers: dict[str, str] | None = None,
        closes: bool = False,
    ):
        super().__init__(sentence)
        self.status, self.reason, self.sentence = status, reason, " ".join(sentence.split())
        self.headers = {**(headers or {}), **({"Connection": "close"} if closes else {})}
