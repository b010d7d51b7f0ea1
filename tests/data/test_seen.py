"""Images that a search has seen: known again in any order and company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pertinence import PertinenceError
from pertinence.data.dataset import LabelledImages
from pertinence.data.seen import SEEN, SeenImages


@pytest.fixture(scope="module")
def splits(digits) -> dict[str, LabelledImages]:
    whole = digits[1]
    parts = {"search": range(100), "report": range(100, 150), "fresh": range(150, 250)}
    return {name: LabelledImages(whole.select(rows)) for name, rows in parts.items()} | {
        "mixed": LabelledImages(whole.select([*range(10), *range(150, 240)])),
        "reported": LabelledImages(whole.select([*range(149, 100, -1), *range(150, 201)])),
    }


def test_seen_images_are_known_in_any_order_and_company(splits, tmp_path):
    seen = SeenImages.of(search=splits["search"], report=splits["report"])
    seen.save(tmp_path)
    for known in (seen, SeenImages.load(tmp_path)):
        assert known.shared(splits["search"]) == known.shared(splits["report"]) == 1.0
        assert known.shared(splits["fresh"]) == 0.0
        assert known.shared(splits["mixed"]) == pytest.approx(0.1)
        assert known.shared(splits["reported"]) == pytest.approx(0.49)
        assert known.unseen(splits["mixed"]).tolist() == list(range(10, 100))
    (tmp_path / "empty").mkdir()
    assert SeenImages.load(tmp_path / "empty") is None


def test_of_large_splits_the_share_is_estimated(digits, monkeypatch):
    monkeypatch.setattr("pertinence.data.dataset.HASHED_IMAGES", 100)
    large = LabelledImages(digits[1].select(range(400)))
    assert len(large.digests) == 100
    rows = np.random.default_rng(0).permutation(400)[:90].tolist()
    some = LabelledImages(digits[1].select(rows))
    assert SeenImages.of(search=large).shared(some) == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize("counts", [None, {}, {"search": "5", "report": "5"}, {"search": "4"}, {"search": "many"}])
def test_damaged_record_of_seen_images_is_refused(tmp_path, counts):
    if counts is None:
        (tmp_path / SEEN).write_bytes(b"nonsense")
    else:
        save_file({"search": torch.arange(5)}, tmp_path / SEEN, counts)
    with pytest.raises(PertinenceError, match="is damaged"):
        SeenImages.load(tmp_path)
