"""Which division of the images."""

from functools import partial

import pytest
import torch

from pertinence import PertinenceError
from pertinence.data.splits import assign_folds, stratified_split


def test_division_is_disjoint_complete_seeded_and_stratified():
    labels = torch.arange(1000) % 10
    first, second = stratified_split(labels, 0.4, seed=3)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(1000))
    assert torch.equal(torch.bincount(labels[second]), torch.full((10,), 40))
    again, other = stratified_split(labels, 0.4, seed=3)[1], stratified_split(labels, 0.4, seed=4)[1]
    assert torch.equal(second, again)
    assert not torch.equal(second, other)


def test_division_of_labels_with_one_image_each_has_the_right_size():
    first, second = stratified_split(torch.arange(400), 0.2, seed=0)
    assert (len(first), len(second)) == (320, 80)
    assert second.float().std() > 50  # not all from one end


def test_copies_of_an_image_stay_together():
    digests = torch.arange(300) % 100
    labels = torch.arange(300) % 10
    labels[200:] = 3  # labelled differently, as copies may be
    for parts in (stratified_split(labels, 0.4, 3, digests), assign_folds(labels, 5, 3, digests)):
        rows = [part[part >= 0] for part in parts]
        assert torch.equal(torch.cat(rows).sort().values, torch.arange(300))
        images = torch.cat([digests[part].unique() for part in rows])
        assert torch.equal(images.sort().values, torch.arange(100))
    for divide in (
        lambda *options: stratified_split(labels, 0.4, 3, *options)[1],
        partial(assign_folds, labels, 5, 3),
    ):
        assert torch.equal(divide(), divide(torch.randperm(300)))


def test_too_few_images_to_divide():
    with pytest.raises(PertinenceError, match="too few"):
        stratified_split(torch.zeros(1, dtype=torch.int64), 0.5, seed=0)
