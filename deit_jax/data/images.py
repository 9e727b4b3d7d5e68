"""Decoded image → the square uint8 view a model sees, byte for byte as PIL and torchvision make it."""

import math
import os
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image

from deit_jax.data.decode import Encoded, check_size, decode

Box = tuple[int, int, int, int]  # top, left, height, width
PAD = 4  # pixels reflected beyond each edge before a simple crop
LARGE = 1 << 24  # pixels of a resized image above which only the part that is kept is computed
SUPPORT = 3  # pixels on each side that PIL's widest filter, lanczos, looks at when it enlarges
_local = threading.local()  # a resizer keeps buffers, so each thread has its own


def random_resized_crop(image: Encoded | np.ndarray, box: Box, size: int, *, fast: bool = False) -> np.ndarray:
    """Cut `box` out of the image and resize it, bicubic with antialiasing, to uint8 (size, size, 3).

    Crop first, then resize: PIL's `resize(box=…)` would let the filter look beyond the box, which torchvision's
    does not. `fast`: by `fast_resize` instead of PIL's arithmetic.
    """
    top, left, height, width = box
    return (fast_resize if fast else resize)(decode(image)[top : top + height, left : left + width], size, size)


def eval_image(
    image: str | os.PathLike | Encoded | np.ndarray,
    size: int = 224,
    crop: float = 0.875,
    interpolation: str = "bicubic",
    *,
    exif: bool = False,
    fit: str = "short",
) -> np.ndarray:
    """The evaluation view: short side resized to int(size / crop) pixels, then the centre square.

    Args:
      image: a path, an encoded image, or pixels, uint8 (height, width[, 3]).
      size: of the view, in pixels.
      crop: the view's side over the short side of the resized image.
      interpolation: a name of PIL's `Image.Resampling`, in lower case.
      exif: turn the image as its EXIF orientation says.
      fit: "short"; "short_floor": the smaller half of an odd margin comes before the crop, as in transformers;
        "squash": as "short_floor", but both sides are resized to int(size / crop) pixels.

    Returns:
      uint8 (size, size, 3), the same bytes as torchvision's Resize and CenterCrop on PIL.

    Raises:
      OSError: for what cannot be read or decoded.
    """
    if isinstance(image, str | os.PathLike):
        with open(image, "rb") as file:
            image = file.read()
    pixels = decode(image, exif)
    height, width = pixels.shape[:2]
    short = max(size, int(size / crop))
    if fit == "squash":
        new_height = new_width = short
    else:
        new_height, new_width = with_short_side(height, width, short)
    half = round if fit == "short" else math.floor  # round is half to even, as torchvision
    top, left = half((new_height - size) / 2), half((new_width - size) / 2)
    if new_height * new_width > LARGE and short > min(height, width):  # only the part that is kept is computed
        x, y = width / new_width, height / new_height
        first, last = max(0, int(top * y) - SUPPORT), min(height, int((top + size) * y) + SUPPORT + 1)
        kept, kind = Image.fromarray(pixels[first:last]), Image.Resampling[interpolation.upper()]
        kept = kept.resize((size, last - first), kind, box=(left * x, 0, (left + size) * x, last - first))
        return np.asarray(kept.resize((size, size), kind, box=(0, top * y - first, size, (top + size) * y - first)))
    check_size(new_height, new_width)
    pixels = resize(pixels, new_height, new_width, interpolation)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def draw_crop(rng: np.random.Generator, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """A training crop from torchvision's distribution: area uniform in `scale` x image, log aspect (width / height)
    uniform in `ratio`, ten tries to fit; else the largest centred box of an allowed aspect. All in whole pixels."""
    area = height * width
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    draws = rng.random(22).tolist()
    for attempt in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        aspect = math.exp(log_low + (log_high - log_low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def with_short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width in pixels of an image that is resized to that short side, as torchvision rounds."""
    return (int(short * height / width), short) if width <= height else (short, int(short * width / height))


def draw_simple_crop(rng: np.random.Generator, height: int, width: int, size: int) -> Box:
    """A box for `simple_crop`, each place alike. Raises OSError for an image that would be too large."""
    resized = with_short_side(height, width, size)
    check_size(*resized)
    room = np.array(resized) + 2 * PAD - size
    top, left = (rng.random(2) * (room + 1)).astype(int).tolist()
    return top, left, size, size


def simple_crop(image: Encoded | np.ndarray, box: Box, size: int, *, fast: bool = False) -> np.ndarray:
    """DeiT III's simple random crop: the short side resized to `size`, PAD pixels reflected beyond each edge, and `box`
    cut out of that, uint8 (size, size, 3). Arguments as `random_resized_crop`."""
    pixels, (top, left, *_) = decode(image), box
    height, width = with_short_side(pixels.shape[0], pixels.shape[1], size)
    pixels = (fast_resize if fast else resize)(pixels, height, width)
    return np.pad(pixels, ((PAD, PAD), (PAD, PAD), (0, 0)), "reflect")[top : top + size, left : left + size]


def resize(pixels: np.ndarray, height: int, width: int, interpolation: str = "bicubic") -> np.ndarray:
    """PIL's antialiased resizing: uint8 (h, w, 3) → (height, width, 3)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()]))


def fast_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`resize` by cykooz-resizer's vector instructions, a fifth of the time.

    Its coefficients have 16 bits, PIL's 22: one byte in 300 differs, by one level. It is done in two passes, rows
    first, as PIL did up to version 12; later ones take the cheaper order, and then differ by 0.2 levels on average.
    """
    import cykooz_resizer as simd

    if not hasattr(_local, "resizer"):
        _local.resizer = simd.Resizer()
        bicubic = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
        _local.options = simd.ResizeOptions(resize_alg=bicubic, use_alpha=False)
    image = simd.ImageData(pixels.shape[1], pixels.shape[0], simd.PixelType.U8x3, pixels.tobytes())
    for rows in (pixels.shape[0], height):
        resized = simd.ImageData(width, rows, simd.PixelType.U8x3)
        _local.resizer.resize(image, resized, _local.options)
        image = resized
    return np.frombuffer(image.get_buffer(), np.uint8).reshape(height, width, 3)
