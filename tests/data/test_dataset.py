"""Which images and which columns."""

from io import BytesIO
from zipfile import ZipFile

import datasets
import pytest
import torch
from pets import make_dataset
from PIL import Image

from pertinence import PertinenceError
from pertinence.data.dataset import LabelledImages


def test_only_image_and_only_label_column_are_found():
    dataset = make_dataset().rename_columns({"image": "img", "label": "fine_label"})
    images = LabelledImages(dataset)
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert images[3].shape == (3, 8, 11)
    assert images[3].dtype == torch.uint8
    assert images.label_names == {0: "cat", 1: "dog"}


def test_ambiguous_label_column_lists_the_columns_and_names_the_flag():
    coarse = (datasets.ClassLabel(names=["animal"]), [0] * 6)
    dataset = make_dataset(coarse_label=coarse)
    with pytest.raises(PertinenceError, match=r"label, coarse_label.*--label-column"):
        LabelledImages(dataset)
    assert LabelledImages(dataset, label_column="label").labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_unknown_column_lists_the_columns():
    with pytest.raises(PertinenceError, match=r"no column 'picture'; the columns are image, label"):
        LabelledImages(make_dataset(), image_column="picture")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (make_dataset().remove_columns("label"), "no label column"),
        (make_dataset().remove_columns("image"), "no image column"),
        (make_dataset().select([]), "empty"),
        (make_dataset(hidden=(datasets.Value("int64"), [-1] * 6)), "holds no labels"),
        (datasets.DatasetDict(train=make_dataset(), test=make_dataset()), "splits train, test: choose one"),
    ],
)
def test_data_sets_that_cannot_be_searched_are_refused(dataset, message):
    label_column = "hidden" if isinstance(dataset, datasets.Dataset) and "hidden" in dataset.column_names else None
    with pytest.raises(PertinenceError, match=message):
        LabelledImages(dataset, label_column=label_column)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n truncated"])
def test_corrupt_image_is_named(content, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    good = tmp_path / "good.png"
    Image.new("RGB", (8, 8)).save(good)
    records = [{"bytes": good.read_bytes(), "path": None}, {"bytes": content, "path": None}]
    images = LabelledImages(datasets.Dataset.from_dict({"image": records, "label": [0, 1]}, features=features))
    assert images[0].shape == (3, 8, 8)
    assert isinstance(images[1], PertinenceError)
    assert "image 1 of column 'image' cannot be decoded" in str(images[1])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16", "LA"])
def test_every_mode_becomes_rgb(mode):
    data = make_dataset(2).cast_column("image", datasets.Image())
    dataset = datasets.Dataset.from_dict(
        {"image": [Image.new(mode, (9, 7))] * 2, "label": [0, 1]}, features=data.features
    )
    assert LabelledImages(dataset)[0].shape == (3, 7, 9)


def test_labels_that_the_experts_do_not_know_are_refused():
    images = LabelledImages(make_dataset(names=("cat", "dog", "cow")))
    with pytest.raises(PertinenceError, match="label 2, but the experts know only 2 labels"):
        images.match_labels({0: "cat", 1: "dog"})


def test_data_set_with_its_labels_in_another_order_is_refused():
    with pytest.raises(PertinenceError, match="another order: label 0 is 'cat' here and 'dog' there"):
        LabelledImages(make_dataset()).match_labels({0: "dog", 1: "cat"})


@pytest.mark.parametrize(
    ("feature", "pool", "words"),
    [
        (datasets.ClassLabel(num_classes=2), ["cat", "dog"], "label 0 is '0' here and 'cat' there"),
        (datasets.ClassLabel(names=["Katze", "Hund"]), ["cat", "dog"], "label 0 is 'Katze' here and 'cat' there"),
        (datasets.ClassLabel(names=["cat", "dog"]), ["LABEL_0", "LABEL_1"], "those of the experts are generic"),
        (datasets.Value("int64"), ["cat", "dog"], "cannot be told, as they have no names"),
        (datasets.ClassLabel(names=["CAT", "dog"]), ["cat", "dog"], ""),
    ],
    ids=["numbers", "other-language", "generic-pool", "no-names", "known"],
)
def test_an_order_that_names_do_not_tell_is_said(caplog, feature, pool, words):
    dataset = make_dataset(own=(feature, [0, 1] * 3))
    LabelledImages(dataset, label_column="own").match_labels(dict(enumerate(pool)))
    assert words in caplog.text
    assert bool(caplog.text) is bool(words)


def test_a_repeated_name_of_the_pool_does_not_hide_another_order():
    images = LabelledImages(make_dataset(names=("cat", "dog", "crane", "cow")))
    with pytest.raises(PertinenceError, match="another order: label 0 is 'cat' here and 'dog' there"):
        images.match_labels(dict(enumerate(["dog", "cat", "crane", "crane"])))


POOL = {0: "Dog", 1: "tabby_cat", 2: "cow"}


def with_names(dataset: datasets.Dataset) -> datasets.Dataset:
    """Labels as text, as a metadata.csv has them."""
    names = dataset.features["label"].names
    text = [names[label] for label in dataset["label"]]
    return dataset.remove_columns("label").add_column("label", text)


@pytest.mark.parametrize("change", [lambda dataset: dataset, with_names])
def test_labels_are_found_by_their_names_where_asked(change):
    """Alphabetical, fewer than those of the experts, and written in another way."""
    dataset = change(make_dataset(names=("dog", "Tabby cat")))
    images = LabelledImages(dataset, label_column="label", label_map="by_name")
    for _ in range(2):
        images.match_labels(POOL)
        assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert images.label_names == POOL
    backwards = LabelledImages(dataset, label_column="label", label_map="by_name")
    backwards.match_labels({0: "tabby cat", 1: "dog"})
    assert backwards.labels.tolist() == [1, 0, 1, 0, 1, 0]
    unused = LabelledImages(make_dataset(names=("dog", "Tabby cat", "sofa")).select([0, 1]), label_map="by_name")
    unused.match_labels(POOL)
    assert unused.labels.tolist() == [0, 1]
    with pytest.raises(PertinenceError, match="cannot place 1 labels, the first of them 'Tabby cat'"):
        LabelledImages(dataset, label_column="label", label_map="by_name").match_labels({0: "dog", 1: "cat"})


def test_names_are_a_part_of_what_images_are_where_labels_are_found_by_them():
    """Else a search would be taken for one of the same images whose names were mended."""
    named = (with_names(make_dataset(names=names)) for names in (("cat", "dog"), ("dog", "cat")))
    images = [LabelledImages(dataset, label_column="label", label_map="by_name") for dataset in named]
    assert images[0].labels.tolist() == images[1].labels.tolist()
    assert images[0].fingerprint != images[1].fingerprint


@pytest.mark.parametrize(
    ("column", "feature", "values", "message"),
    [
        ("text", datasets.Value("string"), ["cat"] * 6, "holds text, not indices .*--label-map by_name"),
        ("flag", datasets.Value("bool"), [True] * 6, "holds no labels, but bool"),
        ("several", datasets.Sequence(datasets.Value("int64")), [[0, 1]] * 6, "holds no labels, but"),
        ("image", None, None, "holds no labels, but PIL"),
    ],
)
def test_columns_that_are_no_labels_are_told_from_others(column, feature, values, message):
    dataset = make_dataset() if feature is None else make_dataset(**{column: (feature, values)})
    with pytest.raises(PertinenceError, match=f"column '{column}' {message}"):
        LabelledImages(dataset, label_column=column)


def test_a_column_without_images_is_refused():
    with pytest.raises(PertinenceError, match="column 'label' holds no images, but int64"):
        LabelledImages(make_dataset(), image_column="label")


@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: dataset.with_transform(lambda batch: {"pixel_values": [0] * len(batch["label"])}),
        lambda dataset: dataset.with_format("torch", columns=["label"]),
    ],
)
def test_formats_and_transforms_of_a_data_set_do_not_matter(change):
    images = LabelledImages(change(make_dataset()))
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert images[3].shape == (3, 8, 11)


def test_an_image_within_an_archive_is_read(tmp_path):
    picture = BytesIO()
    Image.new("RGB", (8, 8), (7, 0, 0)).save(picture, "PNG")
    with ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.writestr("cat/0.png", picture.getvalue())
    stored = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    row = {"bytes": None, "path": f"zip://cat/0.png::{tmp_path / 'test.zip'}"}
    rows = datasets.Dataset.from_dict({"image": [row]}, features=stored).cast_column("image", datasets.Image())
    assert LabelledImages(rows, needs_labels=False)[0][:, 0, 0].tolist() == [7, 0, 0]


@pytest.mark.parametrize("kept_as", ["bytes", "files"])
def test_large_splits_are_told_apart_by_images_that_are_not_hashed(tmp_path, monkeypatch, kept_as):
    monkeypatch.setattr("pertinence.data.dataset.HASHED_IMAGES", 5)

    def fingerprint(second: Image.Image) -> str:
        pictures = [Image.new("RGB", (8 + index, 8)) for index in range(12)]
        pictures[1] = second
        if kept_as == "files":
            for index, picture in enumerate(pictures):
                picture.save(tmp_path / f"{index}.png")
            pictures = [str(tmp_path / f"{index}.png") for index in range(12)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
        images = LabelledImages(datasets.Dataset.from_dict({"image": pictures, "label": [0] * 12}, features=features))
        assert len(images.digests) == 4
        return images.fingerprint

    same, other = Image.new("RGB", (9, 8)), Image.effect_noise((9, 8), 50).convert("RGB")
    assert fingerprint(same) == fingerprint(same) != fingerprint(other)
