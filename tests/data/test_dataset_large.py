"""Columns of more than 2 GiB, which Arrow does not join. The rows share their bytes, so they take little memory."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets
from PIL import Image as Pictures

from pertinence import LabelledImages
from pertinence.data import dataset as module


ROWS = 1100


def png(side: int) -> dict:
    file = io.BytesIO()
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Pictures.fromarray(noise).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("change", [lambda dataset: dataset, lambda dataset: dataset.shuffle(seed=0)])
def test_images_of_more_than_2_gib_are_read(change, monkeypatch):
    monkeypatch.setattr(module, "HASHED_IMAGES", 11)  # hashing them all would take seconds
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    parts = [Dataset.from_dict({"image": [png(830 + n)], "label": [n]}, features=features) for n in range(2)]
    dataset = change(concatenate_datasets(parts * (ROWS // 2)))
    images = LabelledImages(dataset)
    sizes = images._image_sizes()
    assert sizes.sum() > 2**31
    assert len(images) == ROWS
    assert images.labels.tolist() == [int(size == sizes.max()) for size in sizes]  # of the same rows
    assert images[ROWS - 1].shape[1] == 830 + images.labels[-1]


def test_text_labels_of_more_than_2_gib_are_read():
    names = [f"{letter}{'x' * 2_000_000}" for letter in "ab"]
    columns = {"image": [png(8)] * 2, "label": names}
    part = Dataset.from_dict(columns, features=Features({"image": Image(), "label": Value("string")}))
    images = LabelledImages(concatenate_datasets([part] * (ROWS // 2)), label_column="label", label_map="by_name")
    assert images.labels.tolist() == [0, 1] * (ROWS // 2)
    assert images.label_names == dict(enumerate(names))
