"""Encoded image → uint8 RGB pixels → the square view a model sees, byte for byte as PIL and torchvision make them.

Different from PIL's `convert("RGB")` on purpose: 16-bit greys are scaled to 8 bit (PIL clips them to white), 32-bit
pixels outside 0 … 255 are refused (no range is agreed for them), and so is an image too large, before memory is taken.
"""

import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

T = TypeVar("T")
Encoded = bytes | bytearray | memoryview
Box = tuple[int, int, int, int]  # top, left, height, width
PAD = 4  # pixels reflected beyond each edge before a simple crop
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = 1
_local = threading.local()  # a resizer keeps buffers, so each thread has its own


def decode(image: Encoded | np.ndarray, exif: bool = False) -> np.ndarray:
    """RGB pixels, uint8 (height, width, 3).

    Args:
      image: an encoded image, or pixels, uint8 (height, width[, 1 or 3]), which pass through.
      exif: turn the image as its EXIF orientation says. Off, it is ignored, as PIL's convert does.

    Returns:
      The bytes of `PIL.Image.open(image).convert("RGB")` for all images of 8 bits per channel: alpha is dropped. Grey
      pixels of 16 bits are divided by 256, as PIL itself does with colours of 16 bits.

    Raises:
      OSError: for what cannot be decoded (cut short, not an image), has 32 bits per pixel of unknown range, or is
        of more than twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million, as PIL refuses.
    """
    if isinstance(image, np.ndarray):
        return _as_rgb(image)
    plain = bytes(image[:2]) == b"\xff\xd8" and not (exif and orientation(image) != UPRIGHT)
    pixels = _decode_plain_jpeg(image) if plain else None
    return _opened(image, lambda opened: _to_rgb(opened, exif)) if pixels is None else pixels


def check_size(height: int, width: int) -> None:
    """Raise OSError for an image of too many pixels (see `decode`)."""
    if Image.MAX_IMAGE_PIXELS and height * width > (limit := 2 * Image.MAX_IMAGE_PIXELS):
        raise OSError(f"it claims {width} x {height} pixels, more than {limit / 1e6:.0f} million")


def orientation(image: Encoded | np.ndarray) -> int:
    """The EXIF orientation of an encoded image, 1 (upright) to 8; 1 where it has none that is valid, and for TIFF,
    which PIL turns by itself. Raises OSError for what is not an image."""
    if isinstance(image, np.ndarray):
        return UPRIGHT
    value = _opened(image, lambda opened: 0 if opened.format == "TIFF" else opened.getexif().get(ORIENTATION, 0))
    return value if value in range(2, 9) else UPRIGHT


def read_header(image: Encoded | np.ndarray) -> None:
    """Raise OSError for what is not an image that `decode` could read, as far as its header tells."""
    if not isinstance(image, np.ndarray):
        _opened(image, lambda opened: check_size(opened.height, opened.width))


def _opened(image: Encoded, use: Callable[[Image.Image], T]) -> T:
    """use(the image opened by PIL). Raises OSError for whatever goes wrong."""
    try:
        with warnings.catch_warnings():
            # Between once and twice PIL's limit it warns; the limit here is where it refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(image))
        with opened:
            return use(opened)
    except UnidentifiedImageError as error:  # whose text names a place in memory
        raise OSError("cannot identify image file") from error
    except OSError:
        raise
    except Exception as error:  # PIL's plugins let many kinds escape: SyntaxError, ValueError, struct.error …
        raise OSError(f"{type(error).__name__}: {error}") from error


def _to_rgb(opened: Image.Image, exif: bool) -> np.ndarray:
    check_size(opened.height, opened.width)
    mode, has_16_bits = opened.mode, opened.format in ("PPM", "PNG")  # which PIL holds in 32
    if exif:
        opened = ImageOps.exif_transpose(opened)
    if mode.startswith("I;16") or (mode == "I" and has_16_bits):
        return _as_rgb((np.asarray(opened) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        low, high = np.asarray(opened).min(), np.asarray(opened).max()
        if not (low >= 0 and high <= 255) or (mode == "F" and high <= 1):
            raise OSError(f"its pixels have 32 bits (PIL's mode {mode}), of {low:g} … {high:g}: store 8 or 16 bits")
    return np.asarray(opened.convert("RGB"))


def _decode_plain_jpeg(data: Encoded) -> np.ndarray | None:
    """Grey and YCbCr JPEG by simplejpeg, which is faster; None leaves the file to PIL: CMYK, RGB and whatever
    libjpeg complains about, so that PIL decides what is broken."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "Gray"):
            return None
        check_size(int(height), int(width))
        return simplejpeg.decode_jpeg(data, "RGB")
    except (ValueError, MemoryError):
        return None


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] not in (1, 3):
        raise OSError(f"pixels of {pixels.shape[2]} channels: give 1 or 3")
    return np.ascontiguousarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2))


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
