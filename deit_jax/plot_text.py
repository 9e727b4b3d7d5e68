"""Text in pictures: every character as a glyph that is installed, or as its escape; long names cut with an ellipsis."""

import functools
import textwrap

from matplotlib import font_manager, ft2font
from matplotlib import pyplot as plt

from deit_jax.errors import escaped

# fonts with many scripts, in the order of preference; what is not installed is left out
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
    "Noto Sans Hebrew",
    "Noto Sans Arabic",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAexGothic",
    "Arial Unicode MS",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Nirmala UI",
    "Unifont",
)


@functools.cache
def families() -> tuple[str, ...]:
    """Matplotlib's own font, then the installed ones of FALLBACKS."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACKS if name in installed))


@functools.cache
def glyphs() -> frozenset[int]:
    """Code points that some font of `families` can draw."""
    files = (font_manager.findfont(font_manager.FontProperties(family=name)) for name in families())
    return frozenset(code for file in files for code in ft2font.FT2Font(file).get_charmap())


def drawable(text: str) -> str:
    r"""`text` without a character that would be drawn as a box: those without a glyph as \u4e2d, `\n` kept."""
    return "".join(c if c == "\n" or (c.isprintable() and ord(c) in glyphs()) else escaped(c) for c in text)


def shorten(text: str, width: int) -> str:
    """Drawable text of at most `width` characters; what was cut ends in an ellipsis."""
    text = drawable(text)
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def caption(text: str, width: int, lines: int = 2) -> str:
    """Drawable text in at most `lines` lines of `width` characters; what was cut ends in an ellipsis."""
    wrapped = textwrap.wrap(drawable(text), width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: width - 1].rstrip() + "…"]
    return "\n".join(wrapped)


plt.rcParams["font.family"] = list(families())
plt.rcParams["text.parse_math"] = False  # names of classes and runs are text, never markup
