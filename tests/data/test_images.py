"""Decoding, crops and the evaluation view against PIL itself, golden values and the law of torchvision's crop."""

import io
import math
import struct
import tracemalloc

import numpy as np
import pytest
from helpers import GOLDEN
from PIL import Image, ImageOps
from scipy import stats

from deit_jax.data import images

PHOTOS = ("cock.JPEG", "giant_panda.JPEG")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def textured(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth structure plus noise, so that JPEG has something to code at every size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + c) + np.cos(y / (5 + c)) for c in range(3)], -1)
    pixels = np.clip(128 + 50 * waves + rng.normal(0, 10, waves.shape), 0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(pixels[..., 0].astype(np.int32 if mode == "I" else np.float32))
    image = Image.fromarray(pixels)
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pil_rgb(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "I;16":  # PIL would clip to white what is above 255
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        return np.asarray(image.convert("RGB"))


def odd_images() -> dict[str, bytes]:
    """Sixty odd images: sizes, modes, formats and JPEG's variants."""
    made = {}
    for width, height in (1, 1), (1, 9), (9, 1), (2, 2), (7, 5), (8000, 50), (50, 8000), (223, 225), (16, 17), (3, 400):
        for kind in ("JPEG", "PNG"):
            made[f"{width}x{height}.{kind}"] = encoded(textured(width, height), kind)
    modes = {
        "PNG": "1 L LA P RGB RGBA I;16".split(),
        "TIFF": "1 L LA P RGB RGBA CMYK I F I;16".split(),
        "WEBP": "L RGB RGBA".split(),
        "GIF": "L P RGB".split(),
        "BMP": "1 L P RGB".split(),
        "JPEG": "L CMYK YCbCr".split(),
    }
    for kind, names in modes.items():
        for mode in names:
            made[f"mode {mode}.{kind}"] = encoded(textured(40, 30, mode), kind)
    photo = textured(90, 61)
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        made[f"sampling {sampling}"] = encoded(photo, "JPEG", subsampling=sampling)
    for quality in (1, 100):
        made[f"quality {quality}"] = encoded(photo, "JPEG", quality=quality)
    made["progressive"] = encoded(photo, "JPEG", progressive=True)
    made["restart markers"] = encoded(photo, "JPEG", restart_marker_blocks=2)
    made["kept RGB"] = encoded(photo, "JPEG", keep_rgb=True)
    made["interlaced"] = encoded(photo.convert("RGBA"), "PNG", optimize=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: convert("RGB") leaves the pixels as stored
    made["EXIF orientation"] = encoded(photo, "JPEG", exif=exif)
    made["transparent palette"] = encoded(photo.convert("P"), "PNG", transparency=3)
    return made


ODD = odd_images()


@pytest.mark.parametrize("name", ODD)
def test_decode_is_pils_convert_and_every_image_has_its_views(name):
    pixels = images.decode(ODD[name])
    np.testing.assert_array_equal(pixels, pil_rgb(ODD[name]))
    box = images.draw_crop(np.random.default_rng(3), *pixels.shape[:2], SCALE, RATIO)
    top, left, height, width = box
    assert 0 <= top < top + height <= pixels.shape[0]
    assert 0 <= left < left + width <= pixels.shape[1]
    for view in (images.random_resized_crop(ODD[name], box, 32), images.eval_image(ODD[name], 32)):
        assert view.shape == (32, 32, 3)
        assert view.dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_is_cut_short_is_judged_as_pil_judges_it(kind):
    whole = encoded(textured(120, 90), kind)
    parts = [whole[: len(whole) * tenths // 10] for tenths in range(10)]
    for broken in (*parts, b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"GIF89a", b"BM"):
        with pytest.raises(OSError):
            images.decode(broken)
    for data in (whole[:-cut] for cut in (1, 2, 3, 10, 30)):
        try:
            expected = pil_rgb(data)
        except OSError:
            with pytest.raises(OSError):
                images.decode(data)
        else:
            np.testing.assert_array_equal(images.decode(data), expected)


def test_arrays_pass_through_as_rgb():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for pixels in (grey, grey[..., None], np.repeat(grey[..., None], 3, -1)):
        np.testing.assert_array_equal(images.decode(pixels), np.stack([grey] * 3, -1))
    for channels in (2, 4):
        with pytest.raises(OSError, match=f"pixels of {channels} channels: give 1 or 3"):
            images.decode(np.repeat(grey[..., None], channels, -1))


@pytest.mark.parametrize("name", PHOTOS)
def test_crop_is_torchvisions_crop_then_resize(name):
    data = (GOLDEN / f"eval_{name}").read_bytes()
    rng = np.random.default_rng(0)
    with Image.open(io.BytesIO(data)) as opened:
        photo = opened.convert("RGB")
    for size in (32, 224):
        for _ in range(5):
            top, left, height, width = box = images.draw_crop(rng, photo.height, photo.width, SCALE, RATIO)
            expected = photo.crop((left, top, left + width, top + height)).resize((size, size), Image.BICUBIC)
            np.testing.assert_array_equal(images.random_resized_crop(data, box, size), np.asarray(expected))


def test_evaluation_view_is_the_released_codes():
    golden = np.load(GOLDEN / "eval_images.npz")
    assert len(golden.files) == 2
    for key in golden.files:
        name, size = key.split("_", 1)[1].rsplit("/", 1)
        path = GOLDEN / f"eval_{name}"
        np.testing.assert_array_equal(images.eval_image(path, int(size)), golden[key])
        np.testing.assert_array_equal(images.eval_image(path.read_bytes(), int(size)), golden[key])


@pytest.mark.parametrize("crop", [0.875, 1.0, 0.9])
@pytest.mark.parametrize(("width", "height"), [(301, 200), (200, 333), (64, 64), (37, 500)])
def test_evaluation_view_by_pil_step_by_step(width, height, crop):
    image, size = textured(width, height), 48
    short = int(size / crop)
    new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    resized = np.asarray(image.resize(new, Image.BICUBIC))
    top, left = round((new[1] - size) / 2), round((new[0] - size) / 2)
    expected = resized[top : top + size, left : left + size]
    np.testing.assert_array_equal(images.eval_image(np.asarray(image), size, crop), expected)


def boxes(height: int, width: int, scale, ratio, count: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(11)
    return np.array([images.draw_crop(rng, height, width, scale, ratio) for _ in range(count)])


def test_crop_areas_ratios_and_places_follow_their_law():
    """Where every try fits, area, log ratio and the two offsets are uniform and independent."""
    side, scale = 4000, (0.08, 0.5)
    top, left, height, width = boxes(side, side, scale, RATIO).T
    area = height * width / side**2
    log_ratio = np.log(width / height)
    uniform = {
        "area": (area - scale[0]) / (scale[1] - scale[0]),
        "ratio": (log_ratio - math.log(RATIO[0])) / math.log(RATIO[1] / RATIO[0]),
        "top": (top + 0.5) / (side - height + 1),
        "left": (left + 0.5) / (side - width + 1),
    }
    for name, values in uniform.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-3, name
    correlations = np.corrcoef(np.stack(list(uniform.values())))[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(len(area))


def test_crop_with_rejections_follows_torchvision():
    """The released scale, on a landscape photo: tries that do not fit are drawn again, area and ratio both."""
    height, width, count = 375, 500, 20_000
    rng = np.random.default_rng(5)
    area, ratio = rng.uniform(0.08, 1, (count, 10)), np.exp(rng.uniform(*np.log(RATIO), (count, 10)))
    w, h = np.round(np.sqrt(area * height * width * ratio)), np.round(np.sqrt(area * height * width / ratio))
    fits = (w <= width) & (h <= height)
    taken = np.argmax(fits, 1)[fits.any(1)]
    rows = np.flatnonzero(fits.any(1))
    expected = np.stack([h[rows, taken], w[rows, taken]], 1)
    got = boxes(height, width, SCALE, RATIO)[:, 2:]
    assert stats.ks_2samp(got.prod(1), expected.prod(1)).pvalue > 1e-3
    assert stats.ks_2samp(got[:, 1] / got[:, 0], expected[:, 1] / expected[:, 0]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(50, 8000, (0, 3966, 50, 67)), (8000, 50, (3966, 0, 67, 50)), (1, 1, (0, 0, 1, 1))],
)
def test_crop_falls_back_to_the_largest_centred_box(height, width, box):
    drawn = boxes(height, width, (0.9, 1.0), RATIO, 20)
    np.testing.assert_array_equal(drawn, np.tile(box, (20, 1)))


@pytest.mark.parametrize("name", PHOTOS)
def test_fast_resize_is_pils_but_for_rounding(name):
    """Rows first, then columns: PIL's own passes, one after the other."""
    photo = images.decode((GOLDEN / f"eval_{name}").read_bytes())
    rng = np.random.default_rng(0)
    for size in (32, 224):
        for _ in range(10):
            top, left, height, width = images.draw_crop(rng, *photo.shape[:2], SCALE, RATIO)
            crop = photo[top : top + height, left : left + width]
            by_rows = Image.fromarray(crop).resize((size, height), Image.BICUBIC)
            expected = np.asarray(by_rows.resize((size, size), Image.BICUBIC)).astype(int)
            difference = np.abs(images.fast_resize(crop, size, size) - expected)
            assert difference.max() <= 2
            assert difference.mean() < 0.01
            whole = np.asarray(Image.fromarray(crop).resize((size, size), Image.BICUBIC)).astype(int)
            assert np.abs(images.fast_resize(crop, size, size) - whole).mean() < 0.5


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled_by_its_range(kind):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    pixels = images.decode(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels, np.stack([[[0, 0, 1], [128, 254, 255]]] * 3, -1))


@pytest.mark.parametrize(("mode", "values"), [("F", [[0.0, 1.0]]), ("F", [[-3.0, 9.0]]), ("I", [[0, 70000]])])
def test_pixels_of_32_bits_without_a_known_range_are_refused(mode, values):
    image = Image.fromarray(np.array(values, np.float32 if mode == "F" else np.int32))
    with pytest.raises(OSError, match=f"32 bits .PIL's mode {mode}."):
        images.decode(encoded(image, "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", [*range(1, 9), 0, 9])
def test_exif_orientation_is_pils(kind, value):
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(textured(90, 61), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data, exif=True), expected)
    np.testing.assert_array_equal(images.decode(data), pil_rgb(data))
    np.testing.assert_array_equal(images.eval_image(data, 32, exif=True), images.eval_image(expected, 32))


def claimed(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = encoded(textured(64, 64), "JPEG")
    sides = struct.pack(">HH", 64, 64)
    assert data.count(sides) == 1
    return data.replace(sides, struct.pack(">HH", height, width))


def test_an_image_too_large_is_refused_before_memory_is_taken():
    huge = claimed(65500, 65500)
    tracemalloc.start()
    for use in (images.decode, images.eval_image, images.read_header):
        with pytest.raises(OSError, match="65500 x 65500 pixels, more than 179 million|exceeds limit"):
            use(huge)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(8000, 2), (1, 1_000_000)])
def test_a_strip_whose_view_would_be_too_large_is_refused(shape):
    with pytest.raises(OSError, match="more than 179 million"):
        images.eval_image(np.zeros((*shape, 3), np.uint8))


@pytest.mark.parametrize("shape", [(300, 200), (40, 333), (64, 64)])
def test_a_simple_crop_is_a_square_of_the_resized_image_with_reflected_edges(shape):
    """torchvision's Resize(64) and RandomCrop(64, padding=4, padding_mode="reflect"), by PIL and NumPy."""
    photo = textured(*shape)
    width, height = (64, int(64 * shape[1] / shape[0])) if shape[0] <= shape[1] else (int(64 * shape[0] / shape[1]), 64)
    resized = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC))
    padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)), "reflect")
    rng, places = np.random.default_rng(0), []
    for _ in range(2000):
        box = images.draw_simple_crop(rng, *np.asarray(photo).shape[:2], 64)
        places.append(box[:2])
    top, left = places[-1]
    found = images.simple_crop(np.asarray(photo), box, 64)
    np.testing.assert_array_equal(found, padded[top : top + 64, left : left + 64])
    for place, room in zip(np.transpose(places), (height - 56, width - 56), strict=True):
        assert (place.min(), place.max()) == (0, room)
        assert stats.chisquare(np.bincount(place, minlength=room + 1)).pvalue > 1e-3
