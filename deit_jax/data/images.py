"""Encoded image or pixels → the square uint8 view a model sees, byte for byte as PIL and torchvision make it."""

import io
import math
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from PIL import Image

from deit_jax.data import jpeg

Encoded = bytes | bytearray | memoryview
Box = tuple[int, int, int, int]  # top, left, height, width
_local = threading.local()  # a resizer keeps buffers, so each thread has its own


def decode(image: Encoded | np.ndarray) -> np.ndarray:
    """RGB pixels, uint8 (height, width, 3), identical to `PIL.Image.open(image).convert("RGB")`.

    Like PIL's convert it ignores EXIF orientation and drops alpha. Pixels, uint8 (height, width[, 1 or 3]), pass
    through. Raises OSError for what cannot be decoded (cut short, no image, too large).
    """
    if isinstance(image, np.ndarray):
        return _as_rgb(image)
    if bytes(image[:2]) == b"\xff\xd8":
        pixels = _decode_plain_jpeg(image)
        if pixels is not None:
            return pixels
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return np.asarray(opened.convert("RGB"))
    except OSError:
        raise
    except Exception as error:  # PIL's plugins let many kinds escape: SyntaxError, ValueError, struct.error …
        raise OSError(f"{type(error).__name__}: {error}") from error


def decode_boxes(image: Encoded | np.ndarray, draw: Callable[[int, int], list[Box]]) -> tuple[np.ndarray, list[Box]]:
    """The boxes draw(height, width) gives for the image's size, and its pixels as `decode` makes them, of which the
    rows below all boxes may be left out. `draw` is a pure function."""
    frame = jpeg.read_frame(image) if isinstance(image, bytes) and image[:2] == b"\xff\xd8" else None
    if frame:
        boxes = draw(frame.height, frame.width)
        pixels = jpeg.decode_top(image, frame, max(top + height for top, _, height, _ in boxes))
        if pixels is not None:
            return pixels, boxes
    pixels = decode(image)
    return pixels, draw(*pixels.shape[:2])


def random_resized_crop(image: Encoded | np.ndarray, box: Box, size: int, *, fast: bool = False) -> np.ndarray:
    """Cut `box` out of the image and resize it, bicubic with antialiasing, to uint8 (size, size, 3).

    Crop first, then resize: PIL's `resize(box=…)` would let the filter look beyond the box, which torchvision's
    does not. `fast` leaves PIL's arithmetic (see `fast_resize`).
    """
    top, left, height, width = box
    return (fast_resize if fast else resize)(decode(image)[top : top + height, left : left + width], size, size)


def eval_image(
    image: str | os.PathLike | Encoded | np.ndarray,
    size: int = 224,
    crop: float = 0.875,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """The evaluation view, uint8 (size, size, 3): short side resized to int(size / crop), then the centre square.

    `image` is a path, an encoded image or pixels; interpolation: a name of PIL's `Image.Resampling`, in lower case. The
    same bytes as torchvision's Resize and CenterCrop on PIL.
    """
    if isinstance(image, str | os.PathLike):
        with open(image, "rb") as file:
            image = file.read()
    pixels = decode(image)
    height, width = pixels.shape[:2]
    short = max(size, int(size / crop))
    if width <= height:
        new_height, new_width = int(short * height / width), short
    else:
        new_height, new_width = short, int(short * width / height)
    pixels = resize(pixels, new_height, new_width, interpolation)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)  # half to even, as torchvision
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def draw_crop(rng: np.random.Generator, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """A training crop by torchvision's law: area uniform in `scale` x image, log aspect (width / height) uniform in
    `ratio`, ten tries to fit; else the largest centred box of an allowed aspect. All in whole pixels."""
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


def _decode_plain_jpeg(data: Encoded) -> np.ndarray | None:
    """Grey and YCbCr JPEG by simplejpeg, which is faster; None leaves the file to PIL: CMYK, RGB and whatever
    libjpeg complains about, so that PIL decides what is broken."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "Gray") or height * width > (Image.MAX_IMAGE_PIXELS or 1 << 62):
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except (ValueError, MemoryError):
        return None


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
