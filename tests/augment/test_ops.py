"""Each op against the official code's stored results, and against PIL at other magnitudes, sizes and fills."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from pil_ops import RESAMPLING, WARPS, assert_close, pil_op, timm_arg

from deit_jax.augment import OPS, apply_op
from deit_jax.errors import UserError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "augment.npz")
CASES = json.loads(str(GOLDEN["meta"]))
CROP = GOLDEN["crops"][0]
RNG, RAMP = np.random.default_rng(0), np.arange(57 * 83).reshape(57, 83) % 256
# every op is compiled once for a size and number of images, so there are few of both
PHOTO = CROP[:57, :83]
IMAGES = {
    "photo": PHOTO,
    "noise": RNG.integers(0, 256, PHOTO.shape).astype(np.uint8),
    "dull": np.clip(RNG.normal(120, 20, PHOTO.shape), 0, 255).astype(np.uint8),
    "ramp": np.stack([RAMP, RAMP // 3, 255 - RAMP], -1).astype(np.uint8),
    "flat": np.full(PHOTO.shape, 255, np.uint8),
    "tiny": CROP[:2, :5],
    "one pixel": CROP[:1, :1],
}
MAGNITUDES = (0, 0.5, 1, 2, 3, 4, 5, 6.3, 7, 8, 8.6, 9.37, 10)
EXACT = ("Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd", "BrightnessIncreasing")
FILL = (0, 255, 17)


def cases():
    for name in OPS:
        for resampling in RESAMPLING if name in WARPS else ["bilinear"]:
            yield name, resampling


@pytest.mark.parametrize("case", sorted(CASES))
def test_golden(case):
    name, _, _, resampling = case.split("/")
    got = apply_op(name, GOLDEN["crops"], *CASES[case], resampling=resampling)
    assert_close(got, GOLDEN[case])
    assert np.abs(np.asarray(got).astype(int) - GOLDEN[case]).max() <= 1


@pytest.mark.parametrize(("name", "resampling"), cases())
@pytest.mark.parametrize("image", IMAGES)
def test_like_pil_at_every_magnitude(name, resampling, image):
    args = [timm_arg(name, magnitude, sign) for magnitude in MAGNITUDES for sign in (1, -1)]
    got = apply_op(name, np.stack([IMAGES[image]] * len(args)), np.array(args), resampling, FILL)
    expected = np.stack([pil_op(name, IMAGES[image], arg, resampling, FILL) for arg in args])
    if name in EXACT:
        np.testing.assert_array_equal(got, expected)
    if image in ("photo", "dull", "flat", "tiny", "one pixel"):
        assert np.abs(np.asarray(got).astype(int) - expected).max() <= 1
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0, -0.5])
def test_blends_at_their_limits(name, factor):
    got, expected = apply_op(name, CROP, factor), pil_op(name, CROP, factor)
    assert np.abs(np.asarray(got).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", OPS)
def test_one_argument_an_image_is_the_ops_one_by_one(name):
    images = np.stack([CROP, CROP[::-1], CROP[:, ::-1]])
    args = [timm_arg(name, *drawn) for drawn in ((9, 1), (3, -1), (6, 1))]
    one_by_one = [np.asarray(apply_op(name, image, arg)) for image, arg in zip(images, args, strict=True)]
    np.testing.assert_array_equal(apply_op(name, images, np.array(args)), one_by_one)
    # An array of the device is in single precision: the last bit of a place may differ, and with it a truncation.
    single = apply_op(name, images, jnp.array(args, jnp.float32))
    assert np.mean(np.abs(np.asarray(single).astype(int) - np.asarray(one_by_one))) < 0.1


@pytest.mark.parametrize("name", ["Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"])
def test_plain_spelling_means_the_same(name):
    np.testing.assert_array_equal(apply_op(name, CROP, 1.3), apply_op(name + "Increasing", CROP, 1.3))


def test_no_displacement_is_no_change():
    for name in WARPS:
        for resampling in RESAMPLING:
            np.testing.assert_array_equal(apply_op(name, CROP, 0.0, resampling), CROP)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "Rotat"}, r"'Rotat' is not known \(did you mean Rotate\?\)"),
        ({"name": "ShearXIncreasing"}, "is not known"),
        ({"resampling": "cubic"}, r"did you mean bicubic\?"),
        ({"images": np.zeros((4, 4, 3), np.float32)}, r"float32\[4, 4, 3\]"),
        ({"images": np.zeros((4, 4), np.uint8)}, r"uint8\[4, 4\]"),
        ({"arg": np.zeros(2)}, "2 numbers for 1 images"),
    ],
)
def test_bad_input_is_named(unchecked, given, message):
    with pytest.raises(UserError, match=message):
        apply_op(**({"name": "Rotate", "images": CROP, "arg": 1.0} | given))
