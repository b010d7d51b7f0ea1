"""Candidates: what is kept of them, and what a file gives back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pertinence import Figures, OperatingPoint, Stage
from pertinence.evaluation.candidates import Archive, Candidate, load_candidates, save_candidates
from pertinence.routing.evidence import MIX
from pertinence.routing.heads import Head


SHARES = (1 / 3, 1 / 7, 1 - 1 / 3 - 1 / 7)


def measured(accuracy: float, cost: float, latency: float | None = None, **more) -> Figures:
    timed = {} if latency is None else {"latency": latency}
    more |= {"objective": "latency"} if timed else {}
    return Figures(accuracy, (accuracy - 0.1, accuracy + 0.1), {"gmacs": cost, **timed}, SHARES, 700, **more)


def single(accuracy: float, cost: float) -> Candidate:
    return Candidate(OperatingPoint("", "static", (2,), select=measured(accuracy, cost)), (), (0.0, 0.0))


def random_head(evidence: int, has_knots: bool, seed: int) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(3, evidence, generator=generator), torch.randn(3, generator=generator)
    return Head(weight, bias, torch.randn(MIX.num_statistics, generator=generator) if has_knots else None)


STAGES = (Stage(0, "mix", (1 / 3,)), Stage(1, "features"), Stage(2, "mix", (0.1, 0.2, 0.1 + 0.2)))
GROUPS = {
    "archive": [
        single(0.8, 1.0),
        Candidate(
            OperatingPoint("chain", "cascade", (0, 1, 2), STAGES, measured(0.9, 0.1 + 0.2, estimate=True)),
            (random_head(30, True, 0), random_head(7, False, 1)),
            (1 / 3, 1e-17),
        ),
        Candidate(
            OperatingPoint(
                "",
                "paper",
                (0, 1, 2),
                (Stage(-1, "features"),),
                measured(2 / 3, 5e-324, approximate=True, latency=np.pi, measure="agreement"),
            ),
            (random_head(5, False, 2),),
            (-0.1, 0.05),
        ),
    ],
    "nothing": [],
    "baseline": [single(0.7, 2.0)],
}
STATE = {"generation": 3, "genomes": [[0.1, 1 / 3], [2.0, -0.0]], "default": None}


def bits(tensor: torch.Tensor | None) -> list | None:
    return None if tensor is None else tensor.contiguous().view(torch.int32).tolist()


def test_a_file_gives_back_every_bit(tmp_path):
    save_candidates(tmp_path / "file", GROUPS, STATE)
    groups, state = load_candidates(tmp_path / "file")
    assert state == STATE
    assert list(groups) == list(GROUPS)
    for name, expected in GROUPS.items():
        assert [candidate.point for candidate in groups[name]] == [candidate.point for candidate in expected]
        assert [c.versus_reference for c in groups[name]] == [c.versus_reference for c in expected]
        for found, saved in zip(groups[name], expected, strict=True):
            assert len(found.heads) == len(saved.heads)
            for head, original in zip(found.heads, saved.heads, strict=True):
                assert head.weight.shape == original.weight.shape
                for field in ("weight", "bias", "statistics"):
                    assert bits(getattr(head, field)) == bits(getattr(original, field))


def test_candidates_without_heads_and_no_candidates_can_be_saved(tmp_path):
    save_candidates(tmp_path / "file", {"baseline": GROUPS["baseline"]})
    assert load_candidates(tmp_path / "file") == ({"baseline": GROUPS["baseline"]}, None)
    save_candidates(tmp_path / "file", {})
    assert load_candidates(tmp_path / "file") == ({}, None)


def test_a_file_is_safetensors_and_json(tmp_path):
    save_candidates(tmp_path / "file", GROUPS, STATE)
    content = (tmp_path / "file").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert {name: tensor["dtype"] for name, tensor in header.items()} == {"heads": "F32", "json": "U8"}
    start, end = header["json"]["data_offsets"]
    assert json.loads(content[8 + size :][start:end])["state"] == STATE


def test_a_state_may_be_larger_than_a_header(tmp_path):
    state = ["é" * 1000] * 25_000  # 150 MB, escaped; a header has at most 100
    save_candidates(tmp_path / "file", GROUPS, state)
    assert load_candidates(tmp_path / "file")[1] == state


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    save_candidates(path, GROUPS, STATE)
    with pytest.raises(TypeError):
        save_candidates(path, GROUPS, {"generator": object()})
    assert load_candidates(path)[1] == STATE
    assert list(tmp_path.iterdir()) == [path]


def test_cost_is_what_the_search_minimises():
    fast = Candidate(OperatingPoint("", "static", (0,), select=measured(0.5, 3.0, latency=0.2)), (), (0.0, 0.0))
    assert (fast.accuracy, fast.cost) == (0.5, 0.2)
    assert single(0.5, 3.0).cost == 3.0


# The archive


def random_candidates(count: int, seed: int) -> list[Candidate]:
    """On a coarse grid, so that many have a cost, an accuracy or both in common."""
    rng = np.random.default_rng(seed)
    return [single(*values) for values in zip(rng.integers(0, 9, count) / 8, rng.integers(0, 9, count), strict=True)]


def dominates(ours: Candidate, theirs: Candidate) -> bool:
    as_good = ours.cost <= theirs.cost and ours.accuracy >= theirs.accuracy
    return as_good and (ours.cost, ours.accuracy) != (theirs.cost, theirs.accuracy)


def equal(ours: Candidate, theirs: Candidate) -> bool:
    return (ours.cost, ours.accuracy) == (theirs.cost, theirs.accuracy)


def archive_by_hand(candidates: list[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in candidates:
        if not any(dominates(other, candidate) or equal(other, candidate) for other in kept):
            kept = [*(other for other in kept if not dominates(candidate, other)), candidate]
    return sorted(kept, key=lambda candidate: candidate.cost)


@pytest.mark.parametrize("seed", range(10))
def test_the_archive_keeps_what_nothing_dominates_and_of_equals_the_first(seed):
    candidates = random_candidates(40, seed)
    archive = Archive(candidates[:7])
    for start in range(7, 40, 11):
        archive.add(candidates[start : start + 11])
    assert list(map(id, archive.candidates)) == list(map(id, archive_by_hand(candidates)))


@pytest.mark.parametrize("known", [0, 1, 12])
@pytest.mark.parametrize("seed", range(5))
def test_an_improvement_is_what_would_enter(seed, known):
    candidates = random_candidates(known + 30, seed)
    archive, new = Archive(candidates[:known]), candidates[known:]
    for one in new:
        worse = any(dominates(other, one) or equal(other, one) for other in archive.candidates)
        assert archive.is_improved_by(one) is not worse
        before = archive.candidates
        archive.add([one])
        assert (archive.candidates != before) is not worse
    assert list(map(id, archive.candidates)) == list(map(id, Archive(candidates).candidates))
