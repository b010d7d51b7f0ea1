"""Keys: which requests are let in."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from ..utils.errors import PertinenceError
from .refusals import Refusal


LEAST_LENGTH = 16


class Keys:
    """The keys of a file, of which only hashes are kept.

    Args:
        path: a file with one key a line; empty lines and those that begin with # are left out. None: no key is needed.

    Raises:
        PertinenceError: it cannot be read, has no key, or one that is too short.
    """

    def __init__(self, path: str | None):
        self._hashes: list[bytes] = []
        self.are_needed = path is not None
        if path is None:
            return
        try:
            lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise PertinenceError(f"the file of keys {path} cannot be read ({error})") from error
        for number, line in enumerate(lines, 1):
            if not line or line.startswith("#"):
                continue
            if len(line) < LEAST_LENGTH or not line.isascii() or " " in line:
                raise PertinenceError(
                    f"line {number} of {path} is no key: expected at least {LEAST_LENGTH} ASCII characters without "
                    "spaces, such as `openssl rand -hex 32` prints"
                )
            self._hashes.append(_hash(line))
        if not self._hashes:
            raise PertinenceError(f"the file of keys {path} has no key: write one on a line of its own")

    def check(self, header: str | None) -> None:
        """Raise `Refusal` unless `Authorization: Bearer KEY` holds one of the keys; the time that this takes says
        nothing of them."""
        if not self.are_needed:
            return
        scheme, _, key = (header or "").partition(" ")
        given = _hash(key.strip())
        known = [hmac.compare_digest(given, one) for one in self._hashes]
        if scheme.lower() != "bearer" or not any(known):
            what = "the key is not known" if header else "a key is needed"
            raise Refusal(
                401,
                "key",
                f"{what}: send it as `Authorization: Bearer KEY`",
                {"WWW-Authenticate": "Bearer"},
                closes=True,
            )


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
