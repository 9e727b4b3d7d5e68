"""Pictures of a classifier's results on labelled images. Each function writes one PNG."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from deit_jax.evaluate.classification import Calibration
from deit_jax.plot_text import caption, shorten
from deit_jax.plots import COLORS, INK, plt, save, tidy

MOST_COUNTED = 20  # classes with a number in every cell of their matrix
NAME_WIDTH = 24


def confusion(path: Path, matrix: Integer[np.ndarray, "classes classes"], names: list[str]) -> None:
    """The confusion matrix, each row coloured by shares of its class, with counts where there is room."""
    count = len(names)
    side = min(max(3.0, 0.42 * count if count <= MOST_COUNTED else 0.2 * count), 10.0) + 1.2
    figure, axis = plt.subplots(figsize=(side + 0.6, side))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= MOST_COUNTED:
        for (row, column), images in np.ndenumerate(matrix):
            if images:
                color = "white" if shares[row, column] > 0.5 else INK
                axis.text(column, row, str(images), ha="center", va="center", fontsize=7, color=color)
    labels = [shorten(name, NAME_WIDTH) for name in names]
    axis.set_xticks(range(count), labels, rotation=90, fontsize=8 if count <= MOST_COUNTED else 6)
    axis.set_yticks(range(count), labels, fontsize=8 if count <= MOST_COUNTED else 6)
    axis.set_xlabel("predicted", color=INK)
    axis.set_ylabel("true", color=INK)
    axis.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axis, fraction=0.045, pad=0.03, label="share of the true class")
    save(figure, path)


def reliability(path: Path, found: Calibration) -> None:
    """Accuracy over confidence, above how many images had each confidence."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(4.6, 5), sharex=True, height_ratios=(3, 1))
    used = found.images > 0
    width, centres = np.diff(found.edges), (found.edges[1:] + found.edges[:-1]) / 2
    upper.bar(centres[used], found.accuracy[used], width[used], color=COLORS[0], alpha=0.35, edgecolor=COLORS[0])
    upper.plot(found.confidence[used], found.accuracy[used], "o", color=COLORS[0], markersize=4, label="accuracy")
    upper.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="perfectly calibrated")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    upper.set_title(f"expected calibration error {100 * found.error:.1f} %", fontsize=9, color=INK)
    lower.bar(centres, found.images, width, color=COLORS[4])
    tidy(upper, "", "accuracy")
    tidy(lower, "confidence", "images")
    figure.tight_layout()
    save(figure, path)


def contact_sheet(path: Path, images: list[np.ndarray], captions: list[list[str]], columns: int = 4) -> None:
    """Images in a grid, each above its caption, a list of lines. images: (H, W, 3) uint8."""
    rows, columns = math.ceil(len(images) / columns), min(columns, len(images))
    texts = ["\n".join(caption(line, 30) for line in lines) for lines in captions]
    text_height = 0.16 * (1 + max(text.count("\n") for text in texts)) + 0.15  # inches
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, (2.0 + text_height) * rows), squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.05, hspace=text_height / 2.0)
    for axis in axes.flat:
        axis.axis("off")
    options: dict[str, Any] = {"fontsize": 8, "color": INK, "ha": "center", "va": "top"}
    for axis, image, text in zip(axes.flat, images, texts, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.annotate(text, (0.5, -0.04), xycoords="axes fraction", **options)
    save(figure, path)
