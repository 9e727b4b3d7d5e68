"""The evaluation view: how an image becomes the input of a model with given weights."""

from typing import NamedTuple

from deit_jax.weights.load import Weights

CROP, INTERPOLATION = 0.875, "bicubic"  # where neither the weights nor the command say


class View(NamedTuple):
    """What a model sees of an image.

    Attributes:
        size: pixels per side.
        crop: side of the centre crop / resized short side.
        interpolation: of the resizing.
        fit: how resizing and crop are done, as `eval_image` has it.
        mean, std: normalization statistics of its pixels.
    """

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "short"

    def describe(self) -> str:
        """The view in one line."""
        squashed = ", squashed" if self.fit == "squash" else ""
        return f"{self.size} px, crop {self.crop:g}{squashed}, {self.interpolation}, mean {self.mean}, std {self.std}"


def view_of(weights: Weights, size: int, *, crop: float | None = None, interpolation: str | None = None) -> View:
    """The view of `size` pixels per side that weights are meant for.

    crop, interpolation: what is asked for; empty or 0: the weights' own, else the defaults.
    """
    return View(
        size,
        crop or weights.crop or CROP,
        interpolation or weights.interpolation or INTERPOLATION,
        weights.mean,
        weights.std,
        weights.fit or "short",
    )
