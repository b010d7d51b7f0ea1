"""What is multiplied is counted, whatever runs it; what is not counted, or only by one of two counters, is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pertinence import PertinenceError
from pertinence.experts.operations import count_operations


SIDE, DIM, TOKENS = 8, 16, 64
PATCHES = TOKENS * 3 * DIM
"""Multiply-adds of the layer that makes tokens of pixels."""


class Tokens(nn.Module):
    """A classifier that makes a token of every pixel, float32 (1, 64, 16), and calls one function with them."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], layer: nn.Module | None = None):
        super().__init__()
        self.patch, self.function, self.layer = nn.Conv2d(3, DIM, 1, bias=False), function, layer

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.function(self.patch(pixel_values).flatten(2).transpose(1, 2)))


def count(function: Callable[[torch.Tensor], torch.Tensor], layer: nn.Module | None = None) -> tuple[int, str | None]:
    """Multiply-adds of a function of tokens, and what is said of them."""
    network = Tokens(function, layer).eval().requires_grad_(False)
    found = count_operations(network, (SIDE, SIDE))
    return round(found.gmacs * 1e9) - PATCHES, found.note


def heads(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.unflatten(2, (2, DIM // 2)).transpose(1, 2)


def as_image(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))


ENCODER = nn.TransformerEncoderLayer(DIM, 2, 4 * DIM, batch_first=True)
ATTENTION = nn.MultiheadAttention(DIM, 2, batch_first=True)
SAME = nn.Conv2d(DIM, 8, 3, padding="same", groups=2)
LSTM = nn.LSTM(DIM, DIM, num_layers=2, batch_first=True, bidirectional=True)
GRU = nn.GRU(DIM, 8, batch_first=True)
OF_ATTENTION = TOKENS * 4 * DIM**2 + 2 * TOKENS**2 * DIM
OF_NORMALISATION = 2 * 5 * TOKENS * DIM
"""As fvcore counts it: five operations for each number."""


@pytest.mark.parametrize(
    ("function", "layer", "macs"),
    [
        (ENCODER, ENCODER, OF_ATTENTION + TOKENS * 8 * DIM**2 + OF_NORMALISATION),
        (lambda tokens: ATTENTION(tokens, tokens, tokens)[0], ATTENTION, OF_ATTENTION),
        (lambda tokens: F.scaled_dot_product_attention(*[heads(tokens)] * 3), None, 2 * TOKENS**2 * DIM),
        (
            lambda tokens: F.scaled_dot_product_attention(torch.ones(1, 2, 5, 8), *[heads(tokens)] * 2),
            None,
            2 * 5 * TOKENS * DIM,
        ),
        (lambda tokens: SAME(as_image(tokens)), SAME, TOKENS * 8 * 9 * DIM // 2),
        (lambda tokens: torch.ones(5, TOKENS) @ tokens.expand(3, -1, -1), None, 3 * 5 * TOKENS * DIM),
        (lambda tokens: tokens @ torch.ones(DIM), None, TOKENS * DIM),
        (lambda tokens: torch.baddbmm(torch.zeros(1), tokens, tokens.mT), None, TOKENS**2 * DIM),
    ],
    ids=["encoder", "attention", "kernel", "few-queries", "padding-by-name", "broadcast", "vector", "baddbmm"],
)
def test_both_counters_know_it(function, layer, macs):
    assert count(function, layer) == (macs, None)


class Gram(torch.autograd.Function):
    """A product that a trace does not look into."""

    @staticmethod
    def forward(ctx, tokens):
        return tokens @ tokens.mT


@pytest.mark.parametrize(
    ("function", "layer", "macs", "name"),
    [
        (lambda tokens: LSTM(tokens)[0], LSTM, TOKENS * (2 * 8 * DIM**2 + 2 * 12 * DIM**2), "aten::lstm"),
        (lambda tokens: GRU(tokens)[0], GRU, TOKENS * 24 * (DIM + 8), "aten::gru"),
        (lambda tokens: torch.inner(tokens, torch.ones(5, DIM)), None, 5 * TOKENS * DIM, "aten::inner"),
        (Gram.apply, None, TOKENS**2 * DIM, "prim::PythonOp.Gram"),
        (lambda tokens: torch.cdist(tokens, torch.ones(1, 5, DIM)), None, 5 * TOKENS * DIM, "aten::cdist"),
        (lambda tokens: torch.fft.fft(tokens, dim=1).real, None, 2.5 / 2 * DIM * TOKENS * 6, "aten::fft_fft"),
    ],
    ids=["lstm", "gru", "inner", "function", "distance", "transform"],
)
def test_what_one_counter_leaves_out_is_counted_and_named(function, layer, macs, name):
    found, note = count(function, layer)
    assert found == macs
    assert f"they differ in {name}; the larger is used" in note


@torch.library.custom_op("pertinence_tests::gram", mutates_args=())
def gram(tokens: torch.Tensor) -> torch.Tensor:
    return tokens @ tokens.mT


@pytest.mark.parametrize(
    ("function", "name"),
    [(gram, "pertinence_tests::gram"), (lambda tokens: torch.linalg.svdvals(tokens), "aten::_linalg_svd")],
    ids=["own-kernel", "decomposition"],
)
def test_what_neither_counts_is_named(function, name):
    assert count(function) == (0, f"the operation {name} is not counted")


def test_what_cannot_be_traced_is_counted_by_torch():
    macs, note = count(torch.compile(partial(F.linear, weight=torch.ones(5, DIM)), backend="eager"))
    assert macs == 5 * TOKENS * DIM
    assert "only torch counts its operations (fvcore cannot trace it" in note


def test_layers_are_fused_again_afterwards():
    count(ENCODER, ENCODER)
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(PertinenceError, match=r"operations of Tokens cannot be counted on a 8x8 image.*mismatch"):
        count_operations(Tokens(lambda tokens: tokens @ torch.ones(3)), (SIDE, SIDE))
    assert torch.backends.mha.get_fastpath_enabled()
