"""Accuracy against throughput, the paper's Figure 1, with the images/s of the machine at hand.

    python benchmarks/throughput.py [--models=deit_tiny_patch16_224,regnety_040,…] [--batch=256] [--repeats=30]
        [--note="other programs were running"] [--output=docs/throughput]

Accuracies are the published ones of benchmarks/published.json; without --models, all of them are measured. A repeat is
one forward pass, in evaluation mode, over a batch in memory; every model's median over the repeats counts. The models
take turns, so that what else the machine does disturbs all alike. A batch that does not fit the device is halved until
it does. Weights are random: speed does not depend on them. bfloat16 on accelerators, float32 on CPU.

Writes OUTPUT.png, .svg and .json.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import machine, parser, save, spread, table

from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.evaluate.inference import head_logits
from deit_jax.runtime.hardware import compute_dtype

PUBLISHED = Path(__file__).with_name("published.json")
HALF = (0.5, 0.5, 0.5)  # normalization statistics


def read_published(wanted: Sequence[str] = ()) -> list[dict[str, Any]]:
    """[{"model", "family", "top1"}] of published.json, of the `wanted` models where there are any.

    Raises UserError for a wanted model that has no published accuracy.
    """
    known = {row["model"]: row for row in json.loads(PUBLISHED.read_text())["models"]}
    missing = next((name for name in wanted if name not in known), None)
    if missing:
        raise UserError(f"{PUBLISHED.name} has no accuracy of {missing}: use some of {', '.join(known)}")
    return [row for name, row in known.items() if not wanted or name in wanted]


def random_arrays(shapes: dict, rng: np.random.Generator) -> dict:
    """Arrays of those shapes that keep activations in the range of a trained model's: kernels of variance 1 / fan-in,
    vectors of ones. Made on the host, since compiling every model's initialization takes minutes."""

    def draw(leaf):
        if leaf.ndim < 2:
            return np.ones(leaf.shape, leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1])
        return (rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in)).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


def forward_pass(name: str) -> Callable[[int], None]:
    """A function of the batch size: run one forward pass and wait for it. Sizes that were seen are compiled."""
    build = models.constructor(name, dtype=compute_dtype("auto"))
    graphdef, params, batch_stats = models.abstract(build)
    rng = np.random.default_rng(0)
    weights = jax.device_put({"params": random_arrays(params, rng), "batch_stats": random_arrays(batch_stats, rng)})
    size = models.find(name)[1].get("img_size", 224)

    @functools.lru_cache(maxsize=1)
    def images(batch: int) -> jax.Array:
        return jnp.asarray(rng.integers(0, 256, (batch, size, size, 3), np.uint8))

    return lambda batch: jax.block_until_ready(head_logits(graphdef, weights, images(batch), HALF, HALF)) and None


def largest_batch(run: Callable[[int], None], batch: int) -> int:
    """The first of batch, batch / 2, … that the device has memory for; compiled and warm afterwards."""
    while True:
        try:
            run(batch)
            return batch
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
        batch //= 2


def measure(passes: dict[str, Callable[[int], None]], batch: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Images/s of each model, in turns: {name: {"batch", "images_per_second": {"median", …}, "seconds": [...]}}."""
    sizes = {}
    for name, run in passes.items():
        sizes[name] = largest_batch(run, batch)
        run(sizes[name])  # the first call may still set things up
        print(
            f"{name}: batch {sizes[name]}, ready after {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True
        )
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run in passes.items():
            begun = time.perf_counter()
            run(sizes[name])
            seconds[name].append(time.perf_counter() - begun)
    return {
        name: {"batch": sizes[name], "images_per_second": spread([sizes[name] / s for s in times]), "seconds": times}
        for name, times in seconds.items()
    }


def draw(rows: Sequence[dict[str, Any]], output: str, subtitle: str) -> None:
    """OUTPUT.png and .svg. rows: of `read_published`, with "images_per_second"."""
    from matplotlib.figure import Figure

    from deit_jax.plots import COLORS, INK, tidy
    from deit_jax.plots import save as save_figure

    figure = Figure(figsize=(7.6, 4.6))
    axis = figure.subplots()
    families = list(dict.fromkeys(row["family"] for row in rows))
    for color, family in zip(COLORS, families, strict=False):
        points = sorted((r["images_per_second"], r["top1"], r["model"]) for r in rows if r["family"] == family)
        distilled = "distilled" in family
        speeds, accuracies, _ = zip(*points, strict=True)
        style = {"linestyle": "--", "marker": "*", "markersize": 11} if distilled else {"marker": "o"}
        axis.plot(speeds, accuracies, color=color, label=family, linewidth=1.5, **style)
        for speed, top1, model in points:
            offset = (-14, -10) if distilled else (5, 5)  # a distilled model is often beside another's point
            options = {"textcoords": "offset points", "fontsize": 8, "color": color}
            axis.annotate(short_name(model), (speed, top1), xytext=offset, **options)
    axis.set_xscale("log")
    axis.margins(x=0.1, y=0.1)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.4g}")
    axis.xaxis.set_minor_formatter(lambda x, _: f"{x:,.4g}" if f"{x:e}"[0] in "25" else "")
    tidy(axis, "images/s (log scale)", "published ImageNet top-1, %")
    axis.set_title(subtitle, fontsize=8, color=INK, loc="left")
    axis.legend(frameon=False, fontsize=8)
    for kind in ("png", "svg"):
        save_figure(figure, f"{output}.{kind}")


def short_name(model: str) -> str:
    """ "B 384" of deit_base_distilled_patch16_384, "4GF" of regnety_040, "B3" of efficientnet_b3."""
    parts = model.split("_")
    if parts[0] == "regnety":
        return f"{int(parts[1]) / 10:g}GF"
    if parts[0] == "efficientnet":
        return parts[1].upper()
    letter = {"tiny": "Ti", "small": "S", "base": "B", "large": "L"}[parts[1]]
    return letter if parts[-1] == "224" else f"{letter} {parts[-1]}"


def main() -> None:
    args = parser(__doc__, models="", batch=256, repeats=30, note="", output="docs/throughput").parse_args()
    try:
        published = read_published([name for name in args.models.split(",") if name])
    except UserError as error:
        sys.exit(f"error: {error}")
    found = measure({row["model"]: forward_pass(row["model"]) for row in published}, args.batch, args.repeats)
    rows = [row | {"images_per_second": found[row["model"]]["images_per_second"]["median"]} for row in published]
    about = machine()
    device = about["gpu"] or f"{about['cores']} cores of {about['cpu']}"
    dtype = compute_dtype("auto").name
    subtitle = f"{device}, {dtype}, {about['date']}, median of {args.repeats}" + (f"; {args.note}" if args.note else "")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    draw(rows, args.output, subtitle)
    save(f"{args.output}.json", dtype=dtype, repeats=args.repeats, note=args.note, models=found)
    lines = []
    for row in rows:
        one = found[row["model"]]
        speeds = [f"{speed:.3g}" for speed in one["images_per_second"].values()]
        lines.append([row["model"], f"{row['top1']:.1f}", str(one["batch"]), *speeds])
    print(table(["model", "top-1 %", "batch", "images/s: min", "median", "max"], lines))


if __name__ == "__main__":
    main()
