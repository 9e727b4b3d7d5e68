"""Decoding only the upper rows of a JPEG.

Most of the work on a JPEG is reading its Huffman code from the top, and libjpeg stops when it has as many rows as the
header promises. So a header that promises fewer makes it stop early; every row it gives is the same as in the whole
image, once one row of blocks is added below for the smoothing of colours.
"""

import dataclasses

import numpy as np
import simplejpeg

BASELINE, EXTENDED, SCAN, RESTART = 0xC0, 0xC1, 0xDA, 0xDD
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclasses.dataclass(frozen=True)
class Frame:
    """What the header says: size in pixels, where it says so, rows a row of blocks makes."""

    height: int
    width: int
    offset: int  # of the height, two bytes, in the file
    block_rows: int


def read_frame(data: bytes) -> Frame | None:
    """The header of a sequential, single-scan JPEG of one or three components without restarts; None for others."""
    at, frame, components = 2, None, 0
    try:
        while data[at] == 0xFF:
            marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
            if marker in FRAMES:
                if marker not in (BASELINE, EXTENDED) or data[at + 4] != 8:
                    return None
                height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
                components = data[at + 9]
                factors = [data[at + 11 + 3 * i] & 15 for i in range(components)]
                frame = Frame(height, width, at + 5, 8 * max(factors))
            elif marker == RESTART and data[at + 4 : at + 6] != b"\0\0":
                return None
            elif marker == SCAN:
                whole = components in (1, 3) and data[at + 4] == components
                return frame if whole and frame and frame.height and frame.width else None
            at += 2 + length
    except (IndexError, ValueError):
        pass
    return None


def decode_top(data: bytes, frame: Frame, rows: int) -> np.ndarray | None:
    """RGB pixels, uint8 (at least `rows`, width, 3), as a whole decode gives them; None where that is not sure."""
    height = (-(-rows // frame.block_rows) + 1) * frame.block_rows
    if height >= frame.height:
        return None
    pixels = np.empty((0, 0, 3), np.uint8)
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in ("YCbCr", "Gray"):
            return None
        shortened = bytearray(data)
        shortened[frame.offset : frame.offset + 2] = height.to_bytes(2, "big")
        pixels = np.empty((height, frame.width, 3), np.uint8)
        simplejpeg.decode_jpeg(shortened, "RGB", buffer=pixels)
    except ValueError as error:
        # That more follows before the end marker is what we made it say; anything else is for a whole decode to judge.
        if "extraneous bytes before marker 0xd9" not in str(error):
            return None
    return pixels
