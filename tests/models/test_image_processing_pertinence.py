"""The image processor: every image becomes RGB uint8 of its own size, and nothing else happens to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from pertinence import PertinenceError, PertinenceImageProcessor
from pertinence.data.decoding import decode_image


HEIGHT, WIDTH = 20, 33
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """An image (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def image(pixels) -> Image.Image:
    return Image.fromarray(pixels)


def decode(image) -> np.ndarray:
    """What the processor makes of one image, as (H, W, 3)."""
    (decoded,) = PertinenceImageProcessor()(image, return_tensors="pt")["images"]
    assert decoded.dtype == torch.uint8
    assert decoded.is_contiguous()
    return decoded.permute(1, 2, 0).numpy()


# Every kind of image


def test_an_rgb_image_keeps_its_pixels_and_its_size(image, pixels):
    np.testing.assert_array_equal(decode(image), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_modes_become_rgb_as_pillow_makes_them(image, mode):
    converted = image.convert(mode)
    np.testing.assert_array_equal(decode(converted), np.asarray(converted.convert("RGB")))


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_a_file_is_read_by_its_path(image, pixels, tmp_path, kind, suffix):
    image.save(tmp_path / f"image.{suffix}", lossless=True)
    np.testing.assert_array_equal(decode(kind(tmp_path / f"image.{suffix}")), pixels)


def test_a_palette_with_a_transparent_colour_is_read(image, tmp_path):
    palette = image.quantize(16)
    palette.save(tmp_path / "image.png", transparency=3)
    np.testing.assert_array_equal(decode(str(tmp_path / "image.png")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda pixels: pixels),
        (2, np.fliplr),
        (3, lambda pixels: np.rot90(pixels, 2)),
        (4, np.flipud),
        (5, lambda pixels: pixels.transpose(1, 0, 2)),
        (6, lambda pixels: np.rot90(pixels, -1)),
        (7, lambda pixels: np.rot90(pixels.transpose(1, 0, 2), 2)),
        (8, np.rot90),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
@pytest.mark.parametrize("kind", [str, Image.open], ids=["path", "opened"])
def test_a_photograph_is_turned_as_the_camera_was_held(image, pixels, tmp_path, orientation, upright, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(decode(kind(tmp_path / "photo.png")), upright(pixels))


# Arrays


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("layout", ["channels-last", "channels-first"])
@pytest.mark.parametrize("scale", ["uint8", "float32", "float64", "float16"])
def test_an_array_is_taken_as_it_is(pixels, kind, layout, scale):
    array = pixels if scale == "uint8" else (pixels / 255).astype(scale)
    array = array if layout == "channels-last" else array.transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(kind(array.copy())), pixels)


@pytest.mark.parametrize("channels", [None, 1, 4])
def test_an_array_of_other_channels_becomes_rgb(pixels, channels):
    grey = pixels[..., 0]
    array, expected = {
        None: (grey, np.stack([grey] * 3, -1)),
        1: (grey[..., None], np.stack([grey] * 3, -1)),
        4: (np.concatenate([pixels, grey[..., None]], -1), pixels),
    }[channels]
    np.testing.assert_array_equal(decode(array), expected)


@pytest.mark.parametrize("shape", [(4, 9, 3), (4, 4, 3), (4, 9, 1), (3, 9, 3)])
def test_a_strip_is_not_taken_for_channels(shape):
    strip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if shape[0] == 3:  # as transformers takes it
        expected = strip.transpose(1, 2, 0)
    else:
        expected = np.broadcast_to(strip, (*shape[:2], 3))
    np.testing.assert_array_equal(decode(strip), expected)


def test_an_array_of_another_byte_order_is_read_rightly(pixels):
    np.testing.assert_array_equal(decode((pixels / 255).astype(">f4")), pixels)


@pytest.mark.parametrize("dtype", [object, str, np.longdouble, "datetime64[s]"], ids=str)
def test_an_array_of_no_numbers_is_refused(pixels, dtype):
    with pytest.raises(PertinenceError, match="cannot be made of an array of .*: give uint8"):
        decode_image(pixels.astype("int64").astype(dtype))


@pytest.mark.parametrize("kind", ["sparse", "meta", "float8"])
def test_a_tensor_without_plain_numbers_is_refused_or_read(pixels, kind):
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if kind == "float8":
        assert decode_image(torch.zeros(3, 4, 4, dtype=torch.float8_e4m3fn)).max() == 0
        return
    with pytest.raises(PertinenceError, match="must be dense tensors with values"):
        decode_image(image.to("meta") if kind == "meta" else image.contiguous().to_sparse())


def test_an_array_that_is_a_view_is_read_rightly(pixels):
    np.testing.assert_array_equal(decode(pixels[::-1, ::2]), pixels[::-1, ::2])


# Batches


def test_images_of_several_kinds_and_sizes_stay_apart_and_in_order(image, pixels, tmp_path):
    image.save(tmp_path / "image.png")
    small = image.crop((0, 0, 7, 5))
    batch = PertinenceImageProcessor()([small, str(tmp_path / "image.png"), pixels, small.convert("L")])["images"]
    assert [tuple(decoded.shape) for decoded in batch] == [(3, 5, 7), (3, 20, 33), (3, 20, 33), (3, 5, 7)]
    assert torch.equal(batch[1], batch[2])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_an_array_of_images_is_a_batch(pixels, kind):
    batch = PertinenceImageProcessor()(kind(np.stack([pixels, 255 - pixels])))["images"]
    np.testing.assert_array_equal(torch.stack(batch).permute(0, 2, 3, 1).numpy(), np.stack([pixels, 255 - pixels]))


def test_an_array_that_may_not_be_written_to_is_read(pixels):
    fixed = pixels.copy()
    fixed.flags.writeable = False
    (decoded,) = PertinenceImageProcessor()(fixed)["images"]
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


def test_settings_of_other_processors_change_nothing(image, pixels):
    processor = PertinenceImageProcessor(do_resize=True, size={"height": 4, "width": 4}, do_normalize=True)
    (decoded,) = processor(image, do_resize=True, do_rescale=True)["images"]
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


def test_it_is_saved_and_found_by_the_auto_class(tmp_path):
    PertinenceImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is PertinenceImageProcessor


# What is no image


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (None, "expected an image .* got NoneType"),
        (7, "expected an image .* got int"),
        ({"image": 1}, "expected an image .* got dict"),
        ([[np.zeros((4, 4), np.uint8)]], "expected an image .* got list"),
        (np.zeros(5, np.uint8), r"1, 3 or 4 channels, got an array of shape \(5,\)"),
        (np.zeros((9, 9, 2), np.uint8), r"1, 3 or 4 channels, got an array of shape \(9, 9, 2\)"),
        (np.zeros((9, 9, 3), np.int64), "must be uint8, or float in .* got torch.int64"),
        (np.full((9, 9, 3), 1.5), r"float images must lie in \[0, 1\], got values from 1.5 to 1.5"),
        (np.full((9, 9, 3), -0.1), r"float images must lie in \[0, 1\], got values from -0.1"),
        (np.full((9, 9, 3), np.nan), r"float images must lie in \[0, 1\], got values from nan"),
        (np.zeros((0, 9, 3), np.uint8), r"\(3, 0, 9\)|\(0, 9, 3\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{type(value).__name__}-{getattr(value, 'shape', value)}",
)
def test_what_is_no_image_is_refused(wrong, words):
    with pytest.raises(PertinenceError, match=words):
        PertinenceImageProcessor()(wrong)


def test_other_tensors_than_those_of_torch_are_refused(image):
    with pytest.raises(PertinenceError, match="return_tensors='np' is not supported"):
        PertinenceImageProcessor()(image, return_tensors="np")


@pytest.fixture
def truncated(image, tmp_path) -> Path:
    """A file that begins like an image and ends too early."""
    image.save(tmp_path / "whole.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    return tmp_path / "truncated.png"


def test_a_truncated_image_is_refused(truncated):
    with Image.open(truncated) as opened, pytest.raises(PertinenceError, match="an image cannot be decoded"):
        PertinenceImageProcessor()(opened)


def test_a_truncated_file_is_refused_by_its_name(truncated):
    with pytest.raises(PertinenceError, match=r"truncated\.png"):
        PertinenceImageProcessor()(str(truncated))


@pytest.mark.parametrize("name", ["text.png", "missing.png"])
def test_a_path_that_leads_to_no_image_is_refused_by_its_name(tmp_path, name):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(PertinenceError, match=name):
        PertinenceImageProcessor()(str(tmp_path / name))
