"""Encoded image → uint8 RGB pixels, byte for byte as PIL makes them.

Different from PIL's `convert("RGB")` on purpose: 16-bit greys are scaled to 8 bit (PIL clips them to white), 32-bit
pixels outside 0 … 255 are refused (no range is agreed for them), and so is an image too large, before memory is taken.
"""

import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

T = TypeVar("T")
Encoded = bytes | bytearray | memoryview

ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = 1


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
    which PIL turns by itself."""
    if isinstance(image, np.ndarray):
        return UPRIGHT
    try:
        value = _opened(image, lambda opened: 0 if opened.format == "TIFF" else opened.getexif().get(ORIENTATION, 0))
    except OSError:
        return UPRIGHT
    return value if value in range(2, 9) else UPRIGHT


def read_header(image: Encoded | np.ndarray) -> str:
    """PIL's name of the pixels' type ("RGB", "L", "I;16", …), read without decoding.

    Raises OSError for what is not an image that `decode` could read, as far as its header tells.
    """
    if isinstance(image, np.ndarray):
        return "RGB"

    def check(opened: Image.Image) -> str:
        check_size(opened.height, opened.width)
        return opened.mode

    return _opened(image, check)


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
            raise OSError(
                f"its pixels have 32 bits (PIL's mode {mode}) and lie in {low:g} … {high:g}: no range is agreed for"
                " them, store 8 or 16 bits"
            )
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
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
