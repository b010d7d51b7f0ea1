"""Servers as processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from served import KEY, MODEL
from servers import free_port, serving


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A context: a server with these flags, whose address it gives."""

    @contextmanager
    def started(*flags: str, model: Path = MODEL) -> Iterator[str]:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = tmp_path_factory.mktemp("log") / "server.log"
        words = [sys.executable, "-m", "pertinence", "serve", model, "--port", str(port), "--device", "cpu", *flags]
        with serving(words, f"{url}/ready", log):
            yield url
        text = log.read_text()
        assert "Traceback" not in text, text

    return started


@pytest.fixture(scope="session")
def server(start: Callable[..., Any]) -> Iterator[str]:
    """Address of a server as it is by default."""
    with start() as url:
        yield url


@pytest.fixture(scope="session")
def strict(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that demands a key, and takes little."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# of the tests\n\nanother-key-of-the-tests\n{KEY}\n")
    flags = ["--api-key-file", str(keys), "--max-body-mib", "1", "--max-megapixels", "0.1", "--formats", "PNG", "JPEG"]
    with start(*flags, "--request-seconds", "1", "--max-requests", "4") as url:
        yield url


@pytest.fixture(scope="session")
def pictures(images: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """Images of two sizes."""
    return [image for size in (20, 48) for image in images(6, size, seed=5)]
