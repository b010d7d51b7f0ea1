"""Pixels on the host are those of the expert's own preprocessing, bit for bit where Pillow or nothing resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pertinence import PertinenceError
from pertinence.data.decoding import decode_image
from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.experts.transforms import apply_transform
from pertinence.runtime.pixels import decode, host_pixels
from pertinence.runtime.transform import Transform


HALF = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIZES = [(37, 91), (200, 123), (64, 64), (63, 65), (300, 20), (10, 11), (128, 97)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("crop", [0.9, 1.0, 0.65])
def test_the_pixels_of_timm_are_equal_bit_for_bit(make_expert, tmp_path, interpolation, crop):
    settings = {"input_size": [3, 64, 64], "interpolation": interpolation, "crop_pct": crop, "num_classes": 10}
    folder = make_expert(tmp_path / "expert", pretrained_cfg={**settings, **{k: list(v) for k, v in HALF.items()}})
    expert = load_expert(ExpertReference(str(folder)), LoadOptions())
    transform = expert.entry.transform
    assert (transform.library, transform.interpolation) == ("timm", interpolation)
    for chosen in (transform, transform.seen_through(41)):
        own = expert.with_entry(expert.entry.replace(transform=chosen)).preprocess
        own.transform = chosen
        for size in SIZES:
            image = noise(*size)
            expected = own([torch.from_numpy(image).permute(2, 0, 1)])[0]
            np.testing.assert_array_equal(host_pixels(chosen, [image])[0], expected.numpy())
        own.transform = transform


WITHOUT_RESIZE = {
    "timm": Transform("timm", (64, 64), crop=(64, 64), rescale=1 / 255, **HALF),
    "transformers": Transform("transformers", (64, 64), crop=(64, 64), rescale=1 / 255, **HALF),
    "odd": Transform(
        "transformers", (61, 45), crop=(61, 45), rescale=0.00392156862745098, mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    "no mean": Transform("transformers", (64, 64), crop=(64, 64), rescale=1 / 255),
    "no scale": Transform("transformers", (64, 64), crop=(64, 64), mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)),
    "nothing": Transform("timm", (64, 64), crop=(64, 64)),
    "window": Transform("transformers", (41, 41), crop=(64, 64), rescale=1 / 127.5, window=(41, 41), **HALF),
}


@pytest.mark.parametrize("transform", WITHOUT_RESIZE.values(), ids=WITHOUT_RESIZE)
def test_without_a_resize_the_pixels_are_equal_bit_for_bit(transform):
    images = [noise(*size) for size in SIZES]
    expected = [apply_transform(transform, torch.from_numpy(image).permute(2, 0, 1)[None]) for image in images]
    np.testing.assert_array_equal(host_pixels(transform, images), torch.cat(expected).numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_pixels_of_torchvision_are_nearly_equal(interpolation):
    transform = Transform("transformers", (64, 64), resize=(64, 64), interpolation=interpolation, rescale=1 / 255)
    for size in SIZES:
        image = noise(*size)
        expected = apply_transform(transform, torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy()
        assert np.abs(host_pixels(transform, [image])[0] - expected).mean() < 0.5 / 255


def test_a_processor_of_its_own_is_refused():
    with pytest.raises(PertinenceError, match="code of its own"):
        host_pixels(Transform("own", (64, 64)), [noise(64, 64)])


MODES = ("RGB", "L", "LA", "RGBA", "P", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB", "I", "F")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_decoded_as_by_the_full_package(mode):
    image = Image.fromarray(noise(40, 31)).convert("L" if mode in ("LA", "PA", "I", "F") else "RGB").convert(mode)
    np.testing.assert_array_equal(decode(image), decode_image(image).permute(1, 2, 0))


ARRAYS = {
    "grey": noise(20, 30)[..., 0],
    "one channel": noise(20, 30)[..., :1],
    "four channels": np.concatenate([noise(20, 30), noise(20, 30)[..., :1]], -1),
    "channels first": noise(20, 30).transpose(2, 0, 1),
    "four high": noise(4, 30),
    "float": noise(20, 30).astype(np.float32) / 255,
    "float64": noise(20, 30) / 255,
    "float16": (noise(20, 30) / 255).astype(np.float16),
    "reversed": noise(20, 30)[::-1],
    "big-endian": (noise(20, 30) / 255).astype(">f4"),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_taken_as_by_the_full_package(array):
    np.testing.assert_array_equal(decode(array), decode_image(array).permute(1, 2, 0))


REFUSED = {
    "empty": (np.zeros((0, 3, 3), np.uint8), "expected an image of 1, 3 or 4 channels"),
    "five channels": (np.zeros((9, 9, 5), np.uint8), "expected an image of 1, 3 or 4 channels"),
    "integers": (np.zeros((9, 9, 3), np.int32), "images must be uint8, or float"),
    "out of range": (np.full((9, 9, 3), 2.0), r"must lie in \[0, 1\]"),
    "NaN": (np.full((9, 9, 3), np.nan), r"must lie in \[0, 1\]"),
    "objects": (np.full((9, 9, 3), None), "images must be uint8"),
    "damaged": (b"no image", "cannot be read as an image"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "an EPS file is a program"),
    "a number": (3, "expected an image"),
}


@pytest.mark.parametrize(("image", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_is_refused(image, words):
    with pytest.raises(PertinenceError, match=words):
        decode(image)


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 31)).save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg").shape == (31, 40, 3)
    np.testing.assert_array_equal(
        decode(tmp_path / "turned.jpg"), decode_image(tmp_path / "turned.jpg").permute(1, 2, 0)
    )
