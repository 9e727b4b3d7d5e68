"""Pictures of a run: curves, attention, classes. Each function writes one PNG; matplotlib's own settings stay."""

import io
import itertools
import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from deit_jax.arrays import AnyArray
from deit_jax.errors import printable
from deit_jax.runtime import atomic, storage

INK, GRID = "#333333", "#dddddd"
COLORS = ["#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#868e96", "#e8a200", "#0c8599", "#5c3d2e"]
MAX_CLASSES_WITH_COUNTS = 20  # classes with a number in every cell of their confusion matrix
# keys of a log's records: (label, line style)
LOSS_TERMS = {"class_loss": ("class loss", "-"), "distillation_loss": ("distillation loss", "--")}
AGREEMENTS = {"cls_agreement": ("class head", "-"), "dist_agreement": ("distillation head", "--")}

plain_text = matplotlib.rc_context({"text.parse_math": False})  # names of classes and runs are text, never markup


def tidy(axis: Any, xlabel: str, ylabel: str) -> None:
    """Label an axis and reduce its frame to the lines that are read."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel, color=INK)
    axis.set_ylabel(ylabel, color=INK, fontsize=9)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure whole, or not at all."""
    path, picture = storage.as_path(path), io.BytesIO()
    figure.savefig(picture, dpi=130, bbox_inches="tight", format=path.suffix[1:] or None)
    atomic.write_bytes(path, picture.getvalue())


def caption(text: str, width: int, lines: int = 2) -> str:
    """Text in at most `lines` lines of `width` characters; what was cut ends in an ellipsis."""
    found = textwrap.wrap(printable(text), width)
    if len(found) > lines:  # textwrap's own max_lines drops a word that is longer than the line
        found = [*found[: lines - 1], found[lines - 1][: width - 1].rstrip() + "…"]
    return "\n".join(found)


def wrapped(text: str, width: int) -> str:
    """Each line of a text as a `caption`."""
    return "\n".join(caption(line, width) for line in text.split("\n"))


class Line(NamedTuple):
    """A line of a panel: values over epochs. `style` is matplotlib's."""

    panel: str
    run: str
    label: str
    style: str
    epochs: list[float]
    values: list[float]


def curve_lines(
    logs: dict[str, list[dict]], objectives: dict[str, str] | None = None, *, detailed: bool = False
) -> list[Line]:
    """Training loss and evaluation top-1 over epochs, a line per run; with a teacher also the loss terms and the
    fraction of images on which each head agrees with the teacher.

    Args:
        logs: {run: records of its log.jsonl}.
        objectives: {run: what its loss is}; losses of different objectives are not comparable, and each has a panel of
            its own. None: all have the same.
        detailed: with each head's accuracy, the EMA's of many runs too, and the learning rate.
    """
    lines: list[Line] = []

    def add(panel: str, run: str, key: str, label: str = "", style: str = "-", factor: float = 1.0) -> None:
        points = [(r["epoch"], factor * r[key]) for r in logs[run] if key in r]
        if points:
            epochs, values = map(list, zip(*points, strict=True))
            lines.append(Line(panel, run, f"{run}, {label}" if label else run, style, epochs, values))

    for run in logs:
        objective = (objectives or {}).get(run, "")
        add(f"training loss: {objective}" if objective else "training loss", run, "loss")
    distilled = [run for run, records in logs.items() if any("distillation_loss" in r for r in records)]
    for panel, keys, factor in (
        ("loss terms", LOSS_TERMS, 1.0),
        ("agreement with the teacher's hard label, %", AGREEMENTS, 100.0),
    ):
        for run, (key, (label, style)) in itertools.product(distilled, keys.items()):
            add(panel, run, key, label, style, factor)
    accuracy = "top-1 on evaluation images, %"
    for run, records in logs.items():
        two_heads = any("eval/dist/top1" in r for r in records)
        add(accuracy, run, "eval/top1", "both heads" if two_heads else "")
        if detailed and two_heads:
            add(accuracy, run, "eval/cls/top1", "class head", "--")
            add(accuracy, run, "eval/dist/top1", "distillation head", "-.")
        if detailed or len(logs) <= 3:
            add(accuracy, run, "eval_ema/top1", "EMA", ":")
    for run in logs if detailed else ():
        add("learning rate", run, "lr")
    return lines


@plain_text
def curves(path: str | Path, logs: dict[str, list[dict]], objectives: dict[str, str] | None = None) -> None:
    """Draw the lines of `curve_lines`, whose arguments these are, a panel beside the other."""
    colors = dict(zip(logs, itertools.cycle(COLORS), strict=False))
    panels: dict[str, list[Line]] = {}
    for line in curve_lines(logs, objectives):
        panels.setdefault(line.panel, []).append(line)
    panels = panels or {"training loss": []}
    figure = Figure(figsize=(max(6.5, 5 * len(panels)), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for line in lines:
            look = {"label": caption(line.label, 60), "linestyle": line.style, "color": colors[line.run]}
            marker = "o" if len(line.epochs) == 1 else None  # a line of one point would draw nothing
            axis.plot(line.epochs, line.values, linewidth=1.5, marker=marker, **look)
        tidy(axis, "epoch", title)
        if lines and len(logs) <= 4:
            axis.legend(frameon=False, fontsize=8)
    if len(logs) > 4:
        lines = {line.get_label(): line for axis in axes for line in axis.lines}
        figure.legend(lines.values(), lines.keys(), frameon=False, fontsize=8, loc="outside right upper")
    save(figure, path)


@plain_text
def attention(
    path: str | Path,
    images: UInt8[np.ndarray, "images height width 3"],
    weights: Float[AnyArray, "images heads drawn tokens"],
    captions: list[str],
    grid: tuple[int, int],
) -> None:
    """Each image above what its class (and distillation) token attends to in the last block, mean over heads; the
    images side by side. All maps have one colour scale.

    Args:
        weights: of the class (and distillation) token to all tokens in the last block.
        captions: of the images, of one or more lines.
        grid: patch rows and columns.
    """
    maps = np.asarray(weights, np.float32).mean(1)[..., -math.prod(grid) :]
    tokens = ["class token", "distillation token"][: maps.shape[1]]
    scale = ScalarMappable(Normalize(0, max(float(maps.max()), 1e-6)), "inferno")
    rows, columns = 1 + len(tokens), len(images)
    figure = Figure(figsize=(1.6 * columns + 1, 1.6 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, label in zip(axes[:, 0], ["image", *tokens], strict=True):
        axis.set_ylabel(label, fontsize=9, color=INK)
    for column, image, heats, text in zip(axes.T, images, maps, captions, strict=True):
        column[0].imshow(image, interpolation="nearest")
        column[0].set_title(wrapped(text, 20), fontsize=8, color=INK)
        extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        for axis, heat in zip(column[1:], heats, strict=True):
            axis.imshow(image.mean(-1), cmap="gray", interpolation="nearest")
            heat = heat.reshape(grid)
            axis.imshow(heat, interpolation="nearest", norm=scale.norm, cmap=scale.cmap, alpha=0.75, extent=extent)
    bar = figure.colorbar(scale, ax=axes, format=lambda fraction, _: f"{100 * fraction:g} %", shrink=0.6, aspect=40)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)
    bar.set_label("the token's attention per patch; last block, mean over heads", fontsize=8, color=INK)
    save(figure, path)


@plain_text
def contact_sheet(
    path: str | Path, images: list[UInt8[np.ndarray, "height width 3"]], captions: list[str], *, columns: int = 4
) -> None:
    """Images in a grid, each below its caption of one or more lines."""
    rows, columns = math.ceil(len(images) / columns), min(columns, len(images))
    figure = Figure(figsize=(2.1 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, text in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(wrapped(text, 30), fontsize=8, color=INK)
    save(figure, path)


@plain_text
def confusion(path: str | Path, matrix: Integer[np.ndarray, "classes classes"], names: list[str]) -> None:
    """The confusion matrix, each row coloured by fractions of its class, with counts where there is room."""
    count = len(names)
    with_counts = count <= MAX_CLASSES_WITH_COUNTS
    side = min(max(3.0, 0.42 * count if with_counts else 0.2 * count), 10.0) + 1.2
    figure = Figure(figsize=(side + 0.6, side))
    axis = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    if with_counts:
        for (row, column), images in np.ndenumerate(matrix):
            if images:
                color = "white" if fractions[row, column] > 0.5 else INK
                axis.text(column, row, str(images), ha="center", va="center", fontsize=7, color=color)
    labels = [caption(name, 24, lines=1) for name in names]
    axis.set_xticks(range(count), labels, rotation=90, fontsize=8 if with_counts else 6)
    axis.set_yticks(range(count), labels, fontsize=8 if with_counts else 6)
    axis.set_xlabel("predicted", color=INK)
    axis.set_ylabel("true", color=INK)
    axis.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axis, fraction=0.045, pad=0.03, label="fraction of the true class")
    save(figure, path)
