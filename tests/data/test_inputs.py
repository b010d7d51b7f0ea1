"""Images that are named in any way: their order, their rows from any place, and what tells them from others."""

import os
import pickle
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pertinence import InputArguments, PertinenceError
from pertinence.data.inputs import InputImages, open_inputs


@pytest.fixture
def folder(images, tmp_path) -> Path:
    for index, pixels in enumerate(images(6, 8)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    contents = [(tmp_path / f"{index}.png").read_bytes() for index in range(6)]
    pq.write_table(pa.table({"image": contents * 20}), tmp_path / "rows.parquet", row_group_size=50)
    return tmp_path


def read(images: InputImages, rows: range) -> list[torch.Tensor]:
    return [image for _, image in images.__getitems__(rows)]


def test_rows_are_the_same_from_any_place(folder, images):
    """Within a row group, across two, forwards, backwards, and across inputs."""
    found = open_inputs([folder / "rows.parquet", folder / "3.png", folder / "rows.parquet"])
    assert len(found) == 241
    known = [*(index % 6 for index in range(120)), 3, *(index % 6 for index in range(120))]
    originals = images(6, 8)
    for start, stop in ((0, 5), (5, 9), (47, 53), (90, 100), (10, 12), (3, 6), (118, 124), (239, 241), (0, 241)):
        for row, image in zip(range(start, stop), read(found, range(start, stop)), strict=True):
            assert torch.equal(image, originals[known[row]])
    name, image = found[120]
    assert name == str(folder / "3.png")
    assert torch.equal(image, originals[3])


def test_images_that_are_open_can_be_sent_to_other_processes(folder):
    found = open_inputs(folder / "rows.parquet")
    read(found, range(3))
    assert len(read(pickle.loads(pickle.dumps(found)), range(3))) == 3


def test_a_fingerprint_tells_what_changed_and_reads_nothing(folder):
    first = open_inputs(folder).fingerprint()
    assert open_inputs(folder).fingerprint() == first
    assert open_inputs(folder, InputArguments(limit=5)).fingerprint() != first
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[::-1])
    os.utime(folder / "2.png", (1, 1))
    assert open_inputs(folder).fingerprint() != first
    second = open_inputs(folder).fingerprint()
    (folder / "2.png").write_bytes(content)
    os.utime(folder / "2.png", (1, 1))
    assert open_inputs(folder).fingerprint() == second, "same size and time: taken as the same"


def test_a_data_set_has_its_own_fingerprint(folder):
    rows = datasets.Dataset.from_dict({"image": [str(folder / f"{index}.png") for index in range(6)]})
    rows = rows.cast_column("image", datasets.Image())
    prints = [open_inputs(one).fingerprint() for one in (rows, rows, rows.select(range(3)), rows.select([1, 0]))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_links_are_followed_once(folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "again").symlink_to(folder)
    (folder / "sub" / "7.png").symlink_to(folder / "1.png")
    assert [Path(path).name for path in open_inputs(folder).parts[0].paths] == [
        *(f"{i}.png" for i in range(6)),
        "7.png",
    ]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "no images were named"),
        (3, "expected paths, Hub ids or a datasets.Dataset"),
        ([b"x"], "expected paths, Hub ids or a datasets.Dataset of one split, got bytes"),
        (datasets.DatasetDict(), "expected paths, Hub ids or a datasets.Dataset of one split, got DatasetDict"),
        (datasets.Dataset.from_dict({"n": [1]}), "the data set has no image column"),
    ],
    ids=str,
)
def test_what_is_no_input_is_refused(inputs, sentence):
    with pytest.raises(PertinenceError, match=sentence):
        open_inputs(inputs)
