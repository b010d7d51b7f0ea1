"""A saved model in transformers' own pipeline: every kind of input, and the answers of the model called directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image
from transformers import ImageClassificationPipeline, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from pertinence import (
    Front,
    OperatingPoint,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
)


SIZES = [(60, 60), (90, 40), (60, 60), (33, 120), (200, 150), (90, 40)]
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""
Answer = list[dict[str, Any]]
"""What a pipeline says about one image: labels and scores, best first."""


@pytest.fixture(scope="module")
def saved(tiny_experts, tmp_path_factory) -> Path:
    """A cascade of two experts, that can also be set to the larger alone."""
    folder = tmp_path_factory.mktemp("model")
    cascade = PertinenceForImageClassification.from_experts(tiny_experts, thresholds=0.5)
    points = [*cascade.front, OperatingPoint("larger", "static", (1,))]
    heads = {"cascade": cascade.dispatcher.heads(cascade.front[0])}
    front = Front(points, cascade.config.expert_names)
    PertinenceForImageClassification.compose(cascade.experts, front, heads, "cascade").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(saved)


@pytest.fixture(scope="module")
def classify(saved) -> ImageClassificationPipeline:
    return pipeline("image-classification", model=str(saved))


@pytest.fixture(scope="module")
def photos(images) -> list[Image.Image]:
    """Photographs of several sizes, which both experts answer some of."""
    squares = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images(len(SIZES), 128, seed=2)]
    return [square.resize(size) for square, size in zip(squares, SIZES, strict=True)]


@pytest.fixture(scope="module")
def paths(photos, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    files = [folder / f"{index}.png" for index in range(len(photos))]
    for photo, file in zip(photos, files, strict=True):
        photo.save(file)
    return list(map(str, files))


@pytest.fixture(scope="module")
def dataset(paths) -> Dataset:
    return Dataset.from_dict({"image": paths}).cast_column("image", ImageColumn())


@pytest.fixture(scope="module")
def directly(model) -> Callable[..., list[Answer]]:
    """A function: what model and processor say about each image by itself, without any pipeline."""

    def answer(photo: Image.Image, top_k: int, operating_point: str | None) -> Answer:
        inputs = PertinenceImageProcessor()(photo, return_tensors="pt")
        probabilities = model(**inputs, operating_point=operating_point).logits[0].softmax(-1)
        scores, labels = probabilities.topk(top_k)
        return [
            {"label": model.config.id2label[label], "score": score}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]

    return lambda photos, top_k=5, operating_point=None: [answer(photo, top_k, operating_point) for photo in photos]


def assert_same(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert [[item["label"] for item in answer] for answer in answers] == [
        [item["label"] for item in answer] for answer in expected
    ]
    scores = [torch.tensor([[item["score"] for item in answer] for answer in both]) for both in (answers, expected)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_these_photos_need_both_experts(model, photos):
    out = model(**PertinenceImageProcessor()(photos))
    assert set(out.expert_indices.tolist()) == {0, 1}


def test_it_finds_model_and_processor(classify):
    assert type(classify) is ImageClassificationPipeline
    assert type(classify.model) is PertinenceForImageClassification
    assert type(classify.image_processor) is PertinenceImageProcessor


# Every kind of input


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", ["images", "paths", "generator", "dataset"])
def test_every_kind_of_input_is_answered_as_the_model_answers(
    classify, directly, photos, paths, dataset, kind, batch_size
):
    def generate() -> Iterator[Image.Image]:
        yield from photos

    inputs = {"images": photos, "paths": paths, "generator": generate(), "dataset": KeyDataset(dataset, "image")}
    assert_same(list(classify(inputs[kind], batch_size=batch_size)), directly(photos))


@pytest.mark.parametrize("kind", ["image", "path"])
def test_a_single_image_gets_a_single_answer(classify, directly, photos, paths, kind):
    answer = classify({"image": photos[1], "path": paths[1]}[kind])
    assert_same([answer], directly(photos[1:2]))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # from Python 3.12 on, beside any thread
def test_workers_change_nothing(classify, directly, photos, dataset):
    answers = list(classify(KeyDataset(dataset, "image"), batch_size=4, num_workers=2))
    assert_same(answers, directly(photos))


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_says_how_many_labels(classify, directly, photos, top_k):
    assert_same(classify(photos, top_k=top_k), directly(photos, top_k))


def test_all_scores_sum_to_one(classify, photos):
    for answer in classify(photos, top_k=10, batch_size=4):
        assert sum(item["score"] for item in answer) == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_are_answered_as_their_rgb(classify, directly, photos, mode, batch_size):
    converted = [photo.convert(mode) for photo in photos]
    expected = directly([photo.convert("RGB") for photo in converted])
    assert_same(classify(converted, batch_size=batch_size), expected)


@pytest.mark.parametrize("kind", ["path", "image", "dataset"])
def test_a_rotated_photograph_is_answered_as_it_was_seen(classify, directly, photos, tmp_path, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = str(tmp_path / "rotated.png")
    photos[1].save(path, exif=exif)
    dataset = Dataset.from_dict({"image": [path]}).cast_column("image", ImageColumn())
    with Image.open(path) as opened:
        inputs = {"path": [path], "image": [opened], "dataset": KeyDataset(dataset, "image")}
        answers = list(classify(inputs[kind]))
    assert_same(answers, directly([photos[1].transpose(Image.Transpose.ROTATE_270)]))
    assert answers[0][0] != pytest.approx(directly([photos[1]])[0][0])


# Options of the model


@pytest.mark.parametrize("batch_size", [1, 4])
def test_in_bfloat16_it_answers_too(saved, directly, photos, batch_size):
    half = pipeline("image-classification", model=str(saved), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    answers = half(photos, batch_size=batch_size, top_k=10)
    for answer, expected in zip(answers, directly(photos, 10), strict=True):
        assert {item["label"] for item in answer} == {item["label"] for item in expected}
        assert sum(item["score"] for item in answer) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["cascade", "larger"])
def test_it_follows_the_budget_of_its_model(saved, directly, photos, name):
    model = PertinenceForImageClassification.from_pretrained(saved)
    classify = pipeline("image-classification", model=model, image_processor=PertinenceImageProcessor())
    model.set_budget(operating_point=name)
    assert_same(classify(photos), directly(photos, operating_point=name))


# What cannot be read


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_file_that_is_no_image_is_an_error(classify, paths, tmp_path, batch_size):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"broken\.png"):
        classify([*paths, str(tmp_path / "broken.png")], batch_size=batch_size)


def test_a_truncated_image_is_an_error(classify, paths, tmp_path):
    (tmp_path / "truncated.png").write_bytes(Path(paths[4]).read_bytes()[:1000])
    with Image.open(tmp_path / "truncated.png") as truncated, pytest.raises((OSError, PertinenceError)):
        classify(truncated)


def test_a_missing_file_is_an_error(classify, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.png"):
        classify(str(tmp_path / "missing.png"))
