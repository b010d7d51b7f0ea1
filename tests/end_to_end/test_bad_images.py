"""Images that nobody cleaned: through the processor, the pipeline and a search, each is read as transformers reads it,
or named and refused; a search skips it where it is told to."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from fuzzing import bounded
from PIL import Image
from transformers import ImageClassificationPipeline, pipeline
from transformers.image_utils import load_image
from transformers.pipelines.pt_utils import KeyDataset

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    SearchArguments,
    SearchResult,
)
from pertinence.commands.main import main
from pertinence.data.arguments import DataArguments
from pertinence.data.dataset import LabelledImages, raise_or
from pertinence.data.decoding import decode_image
from pertinence.evaluation.calibration import calibrate
from pertinence.evaluation.evaluate import evaluate_model
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions.arguments import RuntimeArguments
from pertinence.predictions.predict import predict
from pertinence.utils.distributed import make_accelerator


# transformers' pipeline leaves a file open that it cannot decode, which is noticed whenever it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of under a megabyte that says that it has 900 million pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side)) for _ in range(1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def photo(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def frames(kind: str) -> bytes:
    return encoded(photo(), kind, save_all=True, append_images=[photo(seed=1), photo(seed=2)], duration=50)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(photo(), "JPEG", exif=exif)


ODD: dict[str, Callable[[], bytes]] = {
    "gif of frames": lambda: frames("GIF"),
    "png of frames": lambda: frames("PNG"),
    "webp of frames": lambda: frames("WEBP"),
    "cmyk": lambda: encoded(photo().convert("CMYK"), "JPEG"),
    "16 bit": lambda: encoded(Image.fromarray(np.asarray(photo())[..., 0].astype(np.uint16) * 257), "PNG"),
    "32 bit float": lambda: encoded(Image.fromarray(np.asarray(photo())[..., 0].astype(np.float32)), "TIFF"),
    "palette with transparency": lambda: encoded(photo().quantize(16), "PNG", transparency=3),
    "grey with alpha": lambda: encoded(photo().convert("LA"), "PNG"),
    "1 bit": lambda: encoded(photo().convert("1"), "PNG"),
    "1 x 1": lambda: encoded(photo(1, 1), "PNG"),
    "1 x 500": lambda: encoded(photo(1, 500), "PNG"),
    "rotated by exif": rotated,
}
"""Files that can be read."""
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (bomb, "DecompressionBombError"),
    "truncated png": (lambda: encoded(photo(), "PNG")[:500], "truncated|broken"),
    "truncated jpeg": (lambda: encoded(photo(400, 600), "JPEG")[:2000], "truncated"),
    "truncated gif": (lambda: frames("GIF")[:200], "truncated|index out of range|EOFError"),
    "zero bytes": (lambda: b"", "cannot identify image file"),
    "no image": (lambda: b"<html>404 Not Found</html>", "cannot identify image file"),
    "bytes of another kind": (lambda: bytes(range(256)) * 4, "cannot identify image file"),
}
"""Files that cannot, and what is said of them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All of them, as files."""
    folder = tmp_path_factory.mktemp("odd")
    for name, make in (ODD | {name: make for name, (make, _) in BROKEN.items()}).items():
        (folder / name).write_bytes(make())
    (folder / "1 x 20000").write_bytes(encoded(photo(1, 20_000), "PNG"))
    return folder


@pytest.fixture(scope="module")
def saved(tiny_experts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    PertinenceForImageClassification.from_experts(tiny_experts, thresholds=0.5).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classify(saved) -> ImageClassificationPipeline:
    return pipeline("image-classification", model=str(saved))


def as_column(*contents: bytes) -> datasets.Dataset:
    """A data set of encoded images, as it comes from a parquet file."""
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": content, "path": None} for content in contents]},
        features=datasets.Features({"image": datasets.Image()}),
    )


# What can be read


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_read_as_transformers_reads_them(folder, classify, name):
    expected = torch.from_numpy(np.array(load_image(str(folder / name)))).permute(2, 0, 1)
    processor = PertinenceImageProcessor()
    (by_path,) = processor(str(folder / name))["images"]
    with Image.open(folder / name) as opened:
        (by_image,) = processor(opened)["images"]
    by_column = LabelledImages(as_column((folder / name).read_bytes()), needs_labels=False)[0]
    assert torch.equal(by_path, expected)
    assert torch.equal(by_image, expected)
    assert torch.equal(by_column, expected)
    best = classify(str(folder / name))[0]
    logits = classify.model(**processor(str(folder / name))).logits[0]
    assert classify.model.config.id2label[int(logits.argmax())] == best["label"]
    assert logits.softmax(0).max().item() == pytest.approx(best["score"], abs=1e-4)


def test_more_than_eight_bits_are_said(folder, caplog):
    from pertinence.utils.images import warn_of_depth

    warn_of_depth.cache_clear()
    PertinenceImageProcessor()(str(folder / "cmyk"))
    assert "more than 8 bits" not in caplog.text
    with Image.open(folder / "16 bit") as opened:
        PertinenceImageProcessor()(opened)
    assert "more than 8 bits a channel: what lies above 255 is cut off" in caplog.text


# What cannot be read


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_refused_by_their_name(folder, name):
    with bounded(), pytest.raises(PertinenceError, match=BROKEN[name][1]) as refused:
        PertinenceImageProcessor()(str(folder / name))
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", BROKEN)
def test_of_a_batch_the_broken_image_is_named(folder, name):
    paths = [str(folder / name) for name in ("cmyk", "1 x 1", name, "1 bit")]
    with pytest.raises(PertinenceError, match=f"^image 2 of 4: .*({BROKEN[name][1]})"):
        PertinenceImageProcessor()(paths)


@pytest.mark.parametrize("name", BROKEN)
def test_a_pipeline_says_what_is_wrong(folder, classify, name):
    """It reads files by itself, before our processor, and raises what Pillow does: not always with the file's name."""
    with bounded(), pytest.raises((OSError, Image.DecompressionBombError, IndexError, EOFError)) as refused:
        classify([str(folder / "cmyk"), str(folder / name)])
    assert str(refused.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_that_cannot_be_decoded_is_an_error_by_itself(folder, name):
    images = LabelledImages(
        as_column((folder / "cmyk").read_bytes(), (folder / name).read_bytes()), needs_labels=False
    )
    assert isinstance(images[0], torch.Tensor)
    with bounded():
        error = images[1]
    assert isinstance(error, PertinenceError)
    assert str(error).startswith("image 1 of column 'image' cannot be decoded")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "the row has none"),
        ({"bytes": None, "path": None}, "the row has none"),
        ({"bytes": None, "path": "/dev/zero"}, "'/dev/zero' is no file"),
        ({"bytes": None, "path": "FIFO"}, "is no file"),
        ({"bytes": None, "path": "/nowhere/x.png"}, "is no file"),
        ({"bytes": None, "path": "file:///dev/zero"}, "is no file"),
        ({"bytes": None, "path": "local://../../../../../../dev/zero"}, "is no file"),
        ({"bytes": None, "path": "simplecache::file:///dev/zero"}, "is no file"),
        ({"bytes": None, "path": "file:///dev/zero::https://127.0.0.1/x"}, "is no file"),
        ({"bytes": None, "path": "http://127.0.0.1:1/x.png"}, "refused"),
    ],
    ids=lambda value: str(value and value["path"]) if value is None or isinstance(value, dict) else "",
)
def test_a_row_without_an_image_is_one_that_cannot_be_decoded(folder, tmp_path, row, words):
    """Neither counted nor hashed does it take memory, or wait for what never comes."""
    if row and row["path"] == "FIFO":
        os.mkfifo(tmp_path / "fifo")
        row = row | {"path": str(tmp_path / "fifo")}
    good = {"bytes": (folder / "cmyk").read_bytes(), "path": None}
    stored = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    column = datasets.Dataset.from_dict({"image": [good, row]}, features=stored).cast_column("image", datasets.Image())
    with bounded():
        images = LabelledImages(column, needs_labels=False)
        assert isinstance(images[0], torch.Tensor)
        assert "image 1 of column 'image' cannot be decoded" in str(images[1])
        assert words in str(images[1])


def test_rows_without_an_image_are_measured_where_not_all_are_hashed(folder, monkeypatch):
    monkeypatch.setattr("pertinence.data.dataset.HASHED_IMAGES", 2)
    good = {"bytes": (folder / "cmyk").read_bytes(), "path": None}
    features = datasets.Features({"image": datasets.Image()})
    of = [
        LabelledImages(datasets.Dataset.from_dict({"image": rows}, features=features), needs_labels=False).fingerprint
        for rows in ([good, None, good, None], [good, None, good, good])
    ]
    assert of[0] != of[1]


@pytest.mark.parametrize("mode", [None, "L"])
def test_a_row_is_read_as_its_column_says(folder, mode):
    features = datasets.Features({"image": datasets.Image(mode=mode)})
    for name in ("cmyk", "rotated by exif"):
        rows = datasets.Dataset.from_dict({"image": [str(folder / name)]}, features=features)
        expected = np.asarray(rows[0]["image"].convert("RGB"))
        np.testing.assert_array_equal(LabelledImages(rows, needs_labels=False)[0].permute(1, 2, 0), expected)


@pytest.mark.parametrize("kind", ["path", "opened", "base64", "data", "row", "bytes", "grey"])
def test_postscript_is_not_run(tmp_path, monkeypatch, kind):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", str(tmp_path / "gs"))
    path = tmp_path / "x.png"
    photo().save(path, "EPS")
    row = {"bytes": None if kind == "row" else path.read_bytes(), "path": str(path)}
    features = datasets.Features({"image": datasets.Image(mode="L" if kind == "grey" else None)})
    column = datasets.Dataset.from_dict({"image": [row]}, features=features)
    text = base64.b64encode(path.read_bytes()).decode()
    given = {"path": str(path), "base64": text, "data": f"data:image/png;base64,{text}"}
    if kind in given or kind == "opened":
        decode = partial(decode_image, given[kind] if kind in given else Image.open(path))
    else:
        decode = partial(raise_or, [LabelledImages(column, needs_labels=False)[0]])
    with pytest.raises(PertinenceError, match="an EPS file is a program"):
        decode()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_an_image_as_base64_is_read(head):
    text = base64.encodebytes(encoded(photo(), "PNG")).decode()
    np.testing.assert_array_equal(decode_image(head + text).permute(1, 2, 0), photo())


# What would become too large


def test_a_very_narrow_image_is_refused_before_it_is_resized(folder, classify, images):
    (narrow,) = PertinenceImageProcessor()(str(folder / "1 x 20000"))["images"]
    assert narrow.shape == (3, 1, 20_000)
    words = "1 x 20000 pixels would be resized to about"
    with bounded(), pytest.raises(PertinenceError, match=f"^image 2 of 3: {words}"):
        classify.model([*images(2, 96), narrow])
    with bounded(), pytest.raises(PertinenceError, match=words):
        classify([str(folder / "cmyk"), str(folder / "1 x 20000")])


def test_a_narrow_image_is_fine_where_its_shape_is_not_kept(images):
    """Resized to a square, it is no larger than any other."""
    from pertinence.runtime.transform import Transform

    narrow = torch.zeros(3, 1, 20_000, dtype=torch.uint8)
    square = Transform("transformers", (64, 64), resize=(64, 64))
    square.check_image(*narrow.shape[-2:])
    with pytest.raises(PertinenceError):
        Transform("transformers", (64, 64), resize=256, crop=(64, 64)).check_image(*narrow.shape[-2:])
    with pytest.raises(PertinenceError):
        Transform("own", (224, 224)).check_image(*narrow.shape[-2:])


# In a search

BAD_ROWS = [3, 40, 41, 199]


@pytest.fixture(scope="module")
def contents(digits, folder) -> dict[str, datasets.Dataset]:
    """200 digits, and the same with some images broken (the last is too narrow for any expert here)."""
    clean = digits[1].select(range(200)).cast_column("image", datasets.Image(decode=False))
    images = list(clean["image"][:])
    for row, name in zip(BAD_ROWS, ("bomb", "truncated png", "zero bytes", "1 x 20000"), strict=True):
        images[row] = {"bytes": (folder / name).read_bytes(), "path": None}
    dirty = datasets.Dataset.from_dict({"image": images, "label": clean["label"][:]}, features=digits[1].features)
    good = [row for row in range(200) if row not in BAD_ROWS]
    return {"dirty": dirty, "clean": digits[1].select(good)}


@pytest.fixture(scope="module")
def search(digit_experts, digits, tmp_path_factory) -> Callable[..., SearchResult]:
    cache = str(tmp_path_factory.mktemp("cache"))

    def run(dataset: datasets.Dataset, **settings) -> SearchResult:
        args = {"population": 6, "generations": 2, "device": "cpu", "cache_dir": cache, "batch_size": 32, **settings}
        report = settings.pop("report", None)
        args.pop("report", None)
        return DispatcherSearch(digit_experts, dataset, SearchArguments(**args), report_dataset=report).run()

    return run


@pytest.fixture(scope="module")
def skipped(search, contents, digits) -> SearchResult:
    return search(contents["dirty"], on_bad_image="skip", report=digits[2].select(range(150)))


def test_a_search_stops_at_a_bad_image_unless_it_is_told_to_skip(search, contents):
    with (
        bounded(),
        pytest.raises(PertinenceError, match="^image 3 of column 'image' cannot be decoded.*bad-image skip"),
    ):
        search(contents["dirty"])
    with pytest.raises(PertinenceError, match="on_bad_image='ignore' is not one of stop, skip"):
        SearchArguments(on_bad_image="ignore")


def test_what_is_skipped_is_counted_and_named(skipped):
    sentence = "4 of 200 search images cannot be decoded and are skipped (rows 3, 40, 41, 199)."
    assert sentence in str(skipped.evaluation)
    assert skipped.record["images"]["skipped"] == {"search": BAD_ROWS}
    assert sentence in skipped.record["report"]["warnings"]
    assert {point.select.samples for point in skipped.front} == {196}


def test_a_search_that_skips_finds_what_it_finds_without_these_images(skipped, search, contents, digits):
    clean = search(contents["clean"], report=digits[2].select(range(150)))
    assert skipped.front.to_list() == clean.front.to_list()
    assert "skipped" not in clean.record["images"]


def test_the_same_images_are_skipped_of_a_split_that_is_divided(search, contents):
    result = search(contents["dirty"], on_bad_image="skip")
    assert result.record["images"]["skipped"] == {"search": BAD_ROWS}
    assert str(result.evaluation).count("cannot be decoded") == 1
    assert result.front[0].select.samples + result.front[0].report.samples == 196


@pytest.mark.nightly
def test_latency_is_measured_on_what_can_be_read(search, contents, digits, folder):
    dirty = contents["dirty"].cast_column("image", datasets.Image(decode=False))
    images = dirty["image"][:]
    images[0] = {"bytes": b"", "path": None}
    first = datasets.Dataset.from_dict({"image": images, "label": dirty["label"][:]}, features=digits[1].features)
    result = search(first, on_bad_image="skip", cost="latency")
    assert result.record["images"]["skipped"] == {"search": [0, *BAD_ROWS]}
    with pytest.raises(PertinenceError, match="^image 0 of column"):
        search(first, cost="latency")


def test_what_is_kept_knows_which_images_are_bad(digit_experts, contents, tmp_path, runs):
    pool, images = load_pool(digit_experts, LoadOptions()), LabelledImages(contents["dirty"])

    def run(how: str):
        return predict(pool, images, make_accelerator("cpu"), batch_size=32, cache_dir=tmp_path, on_bad_image=how)

    first = run("skip")
    assert first.skipped == tuple(BAD_ROWS)
    assert first.rows.tolist() == [row for row in range(200) if row not in BAD_ROWS]
    assert torch.equal(first.targets, images.labels[first.rows])
    runs.clear()
    assert run("skip").skipped == first.skipped
    with pytest.raises(PertinenceError, match="^image 3 of column"):
        run("stop")
    assert runs == []


def test_an_image_that_can_be_read_again_is_not_skipped_for_ever(digit_experts, digits, tmp_path):
    """As where a disk or a network was away."""
    paths = []
    for index, image in enumerate(digits[1].select(range(40))["image"][:]):
        paths.append(str(tmp_path / f"{index}.png"))
        image.save(paths[-1])
    dataset = datasets.Dataset.from_dict({"image": paths, "label": digits[1]["label"][:40]}).cast(digits[1].features)
    pool, images = load_pool(digit_experts, LoadOptions()), LabelledImages(dataset)
    content = Path(paths[7]).read_bytes()

    def skipped() -> tuple[int, ...]:
        cache = tmp_path / "cache"
        return predict(pool, images, make_accelerator("cpu"), cache_dir=cache, on_bad_image="skip").skipped

    Path(paths[7]).unlink()
    assert skipped() == (7,)
    Path(paths[7]).write_bytes(content)
    assert skipped() == ()


def test_where_no_image_can_be_read_there_is_nothing_to_skip(digit_experts):
    images = LabelledImages(as_column(b"", b"x"), needs_labels=False)
    with pytest.raises(PertinenceError, match="^image 0 of column 'image' cannot be decoded"):
        predict(load_pool(digit_experts, LoadOptions()), images, make_accelerator("cpu"), on_bad_image="skip")


@pytest.fixture(scope="module")
def parquet(contents, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    contents["dirty"].to_parquet(folder / "validation.parquet")
    return str(folder)


def test_other_commands_skip_them_too(skipped, digits, tmp_path, contents):
    skipped.save(tmp_path / "run")
    other = digits[2].select(range(150, 350)).cast_column("image", datasets.Image(decode=False))
    images = other["image"][:]
    images[5] = {"bytes": b"", "path": None}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"image": images, "label": other["label"][:]}, features=digits[1].features).to_parquet(
        tmp_path / "data" / "test.parquet"
    )
    data = DataArguments(dataset=str(tmp_path / "data"), split="test")
    options = {"device": "cpu", "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(PertinenceError, match="^image 5 of column"):
        evaluate_model(tmp_path / "run", data, RuntimeArguments(**options))
    args = RuntimeArguments(on_bad_image="skip", **options)
    evaluation = evaluate_model(tmp_path / "run", data, args)
    assert "1 of 200 images cannot be decoded and are skipped (rows 5)." in str(evaluation)
    assert evaluation.experts[0].samples == 199
    guarantee = calibrate(tmp_path / "run", data, args, max_accuracy_loss=0.2)
    assert guarantee.samples == 199
    assert any("1 were left out" in assumption for assumption in guarantee.assumptions)


@pytest.mark.nightly
def test_two_processes_skip_the_same_images(parquet, digit_experts, tmp_path):
    def command(name: str) -> list[str]:
        return [
            "search", "--experts", *map(str, digit_experts[1:]), "--dataset", parquet, "--split", "validation",
            "--on-bad-image", "skip", "--population", "6", "--generations", "1", "--batch-size", "16", "--device",
            "cpu", "--output-dir", str(tmp_path / name), "--cache-dir", str(tmp_path / f"{name}-cache"),
        ]  # fmt: skip

    assert main(command("alone")) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pertinence"]
    finished = subprocess.run([*launcher, *command("together")], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("4 of 200 images cannot be decoded and are skipped") == 1
    alone, together = (json.loads((tmp_path / n / "search_result.json").read_text()) for n in ("alone", "together"))
    assert (alone.pop("run")["processes"], together.pop("run")["processes"]) == (1, 2)
    assert together == alone
    assert alone["images"]["skipped"] == {"search": BAD_ROWS}


def test_a_data_set_in_a_pipeline_is_read_as_alone(classify, folder):
    column = as_column(*((folder / name).read_bytes() for name in ("cmyk", "rotated by exif")))
    answers = list(classify(KeyDataset(column, "image"), top_k=1))
    assert answers == [classify(str(folder / name), top_k=1) for name in ("cmyk", "rotated by exif")]
