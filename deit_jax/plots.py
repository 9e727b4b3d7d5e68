"""Pictures of a run: curves, attention, differences. Each function writes one PNG."""

import io
import itertools
import math
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen needed
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from deit_jax.plot_text import caption, drawable
from deit_jax.runtime import atomic, storage

PER_BAND = 8  # images side by side
INK, GRID = "#333333", "#dddddd"
COLORS = ["#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#868e96", "#e8a200", "#0c8599", "#5c3d2e"]


def tidy(axis, xlabel: str, ylabel: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel, color=INK)
    axis.set_ylabel(ylabel, color=INK, fontsize=9)


def save(figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, bbox_inches="tight", format=path.suffix[1:] or None)
    plt.close(figure)
    atomic.write_bytes(path, picture.getvalue())


def curves(
    path: str | Path, logs: dict[str, list[dict]], objectives: dict[str, str] | None = None, fused: bool = False
) -> None:
    """Training loss and evaluation top-1 over epochs, a line per run.

    Averaged weights are shown where the runs are few; accuracy, where a run was evaluated more than once.

    Args:
        logs: {run: records of its log.jsonl}.
        objectives: {run: what its loss is}; losses of different objectives are not comparable, and each has a panel of
            its own. None: all have the same.
        fused: whether the accuracy of a model with two heads, of which there are some, is that of both together.
    """
    names = objectives or {}
    panels = list(dict.fromkeys(names.get(name, "") for name in logs)) or [""]
    styles = {"eval/top1": "-", "eval_ema/top1": ":"} if len(logs) <= 3 else {"eval/top1": "-"}
    scores = {
        (name, key): [(r["epoch"], r[key]) for r in records if key in r]
        for name, records in logs.items()
        for key in styles
    }
    both = any(len(points) > 1 for points in scores.values())
    count = len(panels) + both
    figure, axes = plt.subplots(1, count, figsize=(6.5 if count == 1 else 5 * count, 3.8), squeeze=False)
    for color, (name, records) in zip(itertools.cycle(COLORS), logs.items(), strict=False):
        losses = [(r["epoch"], r["loss"]) for r in records if "loss" in r]
        if losses:
            axis = axes[0, panels.index(names.get(name, ""))]
            marker = "o" if len(losses) == 1 else None  # a line of one point would draw nothing
            axis.plot(*zip(*losses, strict=True), color=color, label=drawable(name), linewidth=1.5, marker=marker)
        for key, style in styles.items():
            points = scores[name, key]
            if both and points:
                label = drawable(name if style == "-" else f"{name}, averaged weights")
                marker = "o" if len(points) == 1 else None
                axes[0, -1].plot(
                    *zip(*points, strict=True), style, color=color, label=label, linewidth=1.5, marker=marker
                )
    titles = [f"training loss: {panel}" if panel else "training loss" for panel in panels]
    for axis, ylabel in zip(
        axes[0], [*titles, f"top-1 on held-out images{' (fused heads)' if fused else ''}, %"], strict=False
    ):
        tidy(axis, "epoch", ylabel)
        if axis.lines and len(logs) <= 4:
            axis.legend(frameon=False, fontsize=8)
    if len(logs) > 4:
        lines = {line.get_label(): line for axis in axes[0] for line in axis.lines}
        options = {"frameon": False, "fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axes[0, -1].legend(lines.values(), lines.keys(), **options)
    figure.tight_layout()
    save(figure, storage.place(path))


def attention(
    path: str | Path,
    images: UInt8[np.ndarray, "images height width 3"],
    maps: Float[np.ndarray, "images tokens patches"],
    captions: list[str],
    grid: tuple[int, int],
) -> None:
    """Each image above what its class (and distillation) token attends to in the last block, mean over heads; PER_BAND
    images side by side, the others below. All maps have one colour scale.

    Args:
        maps: of each of the first tokens, its attention to the patches.
        captions: of the images, of one or more lines.
        grid: patch rows and columns.
    """
    tokens = ["class token", "distillation token"][: maps.shape[1]]
    scale = ScalarMappable(Normalize(0, max(float(maps.max()), 1e-6)), "inferno")
    texts = ["\n".join(caption(line, 20) for line in text.split("\n")) for text in captions]
    rows, columns, bands = 1 + len(tokens), min(len(images), PER_BAND), math.ceil(len(images) / PER_BAND)
    text_height = 0.15 * (1 + max(text.count("\n") for text in texts)) + 0.15  # inches
    figure = plt.figure(figsize=(1.6 * columns, bands * (1.6 * rows + text_height)))
    inch_x, inch_y = 1 / figure.get_size_inches()
    whole = figure.add_gridspec(bands, 1, hspace=text_height / (1.6 * rows), left=0, right=1, bottom=0, top=1)
    for band in range(bands):
        axes = whole[band].subgridspec(rows, columns, hspace=0.05, wspace=0.05).subplots(squeeze=False)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        for axis, label in zip(axes[:, 0], ["image", *tokens], strict=True):
            axis.set_ylabel(label, fontsize=9, color=INK)
        for column, place in enumerate(range(band * columns, min((band + 1) * columns, len(images)))):
            image = images[place]
            axes[0, column].imshow(image, interpolation="nearest")
            axes[0, column].set_title(texts[place], fontsize=8, color=INK)
            for axis, heat in zip(axes[1:, column], maps[place], strict=False):
                axis.imshow(image.mean(-1), cmap="gray", interpolation="nearest")
                extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
                axis.imshow(
                    heat.reshape(grid),
                    norm=scale.norm,
                    cmap=scale.cmap,
                    alpha=0.75,
                    extent=extent,
                    interpolation="nearest",
                )
        low, high = axes[-1, -1].get_position(), axes[1, -1].get_position()
        bar = figure.add_axes((1 + 0.12 * inch_x, low.y0, 0.12 * inch_x, high.y1 - low.y0))
        figure.colorbar(scale, cax=bar, format=lambda share, _: f"{100 * share:g} %")
        bar.tick_params(labelsize=8, labelcolor=INK)
        bar.set_ylabel("share of the token's attention, per patch", fontsize=8, color=INK)
    which = "class and the distillation token" if len(tokens) > 1 else "class token"
    note = f"Attention of the {which} to each patch of the image: last block, mean over heads, one colour scale."
    figure.text(0, -0.12 * inch_y, note, fontsize=9, color=INK, va="top")
    save(figure, storage.place(path))


def differences(
    path: str | Path,
    rows: list[tuple[str, float, float, float, list[float]]],
    xlabel: str = "difference in top-1, points",
) -> None:
    """Paired differences as dots with their confidence intervals, one row each; small dots are the single pairs.

    rows: (label, mean, low, high, values); low and high may be nan (no interval drawn).
    """
    figure, axis = plt.subplots(figsize=(8.6, 0.6 + 0.42 * len(rows)))
    for y, (_, mean, low, high, values) in enumerate(rows):
        axis.plot(values, [y + 0.18] * len(values), "o", color=COLORS[4], alpha=0.55, markersize=3.5, linewidth=0)
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [y, y], color=COLORS[0], linewidth=2.2, solid_capstyle="butt")
        axis.plot([mean], [y], "o", color=COLORS[0], markersize=6)
        axis.annotate(f"{mean:+.2f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)
    axis.axvline(0, color=INK, linewidth=0.9, linestyle="--")
    axis.set_yticks(range(len(rows)), [textwrap.fill(drawable(label), 62) for label, *_ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    tidy(axis, xlabel, "")
    axis.grid(axis="x", color=GRID, linewidth=0.8)
    axis.grid(axis="y", visible=False)
    save(figure, storage.place(path))
