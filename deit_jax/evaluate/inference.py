"""Weights on batches of images → logits, and what is computed from them on the way: the one evaluation loop."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Integer, Shaped, UInt8

from deit_jax import models
from deit_jax.arrays import AnyArray
from deit_jax.augment import normalize
from deit_jax.models.vit import fuse
from deit_jax.runtime import sharding
from deit_jax.runtime.flops import count_flops

HEADS = ("cls", "dist", "fused_logits", "fused_probabilities")
USED = ("image", "label", "labels", "mask")  # entries of a batch that go to the devices
AHEAD = 2  # batches dispatched before the oldest is waited for: else the whole dataset would queue on the device

Batch = dict[str, Any]  # of `data.loader.eval_batches`: NumPy arrays (batch, …)
Weights = dict[str, Any]  # {"params", "batch_stats"}
Logits = dict[str, Float[Array, "batch classes"]]  # by head


@functools.partial(jax.jit, static_argnames=("graphdef", "mean", "std"))
def head_logits(
    graphdef: nnx.GraphDef,
    weights: Weights,
    images: UInt8[AnyArray, "batch height width 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Logits:
    """Logits per head of the model, in evaluation mode. mean, std: the model's normalization statistics."""
    model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
    cls, dist = model.heads(normalize(images, mean, std))
    if dist is None:
        return {"cls": cls}
    return dict(zip(HEADS, (cls, dist, fuse(cls, dist, "logits"), fuse(cls, dist, "probabilities")), strict=True))


def joint_head(heads: Mapping[str, Any], fusion: str) -> str:
    """The key of the joint prediction: of both heads fused, or of the only one."""
    return f"fused_{fusion}" if "dist" in heads else "cls"


def forward_flops(build: functools.partial, size: int) -> int:
    """Floating-point operations of a model's forward pass per image of `size` pixels, two per multiply-add."""
    if "attention" in build.keywords:
        build = functools.partial(build, attention="einsum")  # a fused kernel's arithmetic cannot be seen
    graphdef, params, batch_stats = models.abstract(build)
    run = lambda weights, images: head_logits(graphdef, weights, images, (0.5,) * 3, (0.5,) * 3)
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    return count_flops(run, {"params": params, "batch_stats": batch_stats}, image)


def infer(
    graphdef: nnx.GraphDef,
    sets: dict[str, Weights],
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
    mean: Iterable[float],
    std: Iterable[float],
    reduce: Callable[[Logits, dict[str, Shaped[Array, "batch ..."]]], Any] = lambda logits, batch: logits,
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Run several sets of weights of one model in a single pass over the data, a little ahead of the devices.

    Args:
        graphdef: of the model.
        sets: {name: {"params", "batch_stats"}}, on the mesh.
        batches: `image` uint8 (batch, height, width, 3), and what `reduce` needs; other entries stay on the host.
        mesh: the devices.
        mean, std: the model's normalization statistics.
        reduce: (logits per head, batch on the devices) → what is fetched of them, dispatched with the forward pass. In
            a run of several processes it must be replicated, as `count_correct`'s sums are.

    Yields (batch, {name: result of `reduce` as NumPy arrays}), in the order of the batches.
    """
    mean, std = tuple(mean), tuple(std)
    pending: collections.deque[tuple[Batch, dict[str, Any]]] = collections.deque()
    for batch in batches:
        placed = sharding.place_batch({k: v for k, v in batch.items() if k in USED}, mesh)
        run = lambda weights, placed=placed: reduce(head_logits(graphdef, weights, placed["image"], mean, std), placed)
        pending.append((batch, {name: run(weights) for name, weights in sets.items()}))
        if len(pending) > AHEAD:
            done, found = pending.popleft()
            yield done, jax.device_get(found)
    for done, found in pending:
        yield done, jax.device_get(found)


@jax.jit
def count_correct(
    logits: Logits,
    batch: dict[str, Shaped[AnyArray, "batch ..."]],
) -> dict[str, Float[Array, "4"]]:
    """Score one evaluation batch.

    Args:
        logits: of `head_logits`; -inf of classes that the data lacks.
        batch: its `label`, `mask` and, where images have several right labels, `labels`.

    Returns, per head, [top-1 correct, top-5 correct, summed cross-entropy, count] over the rows whose mask is 1.
    """

    # an image with several right labels (ImageNet-ReaL; padded by -1) is correct where any of them is predicted
    labels, mask = batch.get("labels", batch["label"][:, None]), batch["mask"]

    def count(logits):
        own = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)[..., None]
        # a tie goes to the class that comes first, as argmax decides
        before = jnp.arange(logits.shape[1]) < labels[..., None]
        rank = ((logits[:, None] > own) | ((logits[:, None] == own) & before)).sum(-1)
        # no comparison holds with NaN: without this, a model that has diverged would be correct everywhere
        wrong = max(logits.shape[1], 5)  # a rank that is in no top 5, however few the classes
        rank = jnp.where((labels < 0) | jnp.isnan(own[..., 0]), wrong, rank).min(1)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)[:, 0]
        # an unreadable image, which counts as wrong: the loss of a guess
        loss = jnp.where(batch["label"] < 0, jnp.log((logits != -jnp.inf).sum(1)), loss)
        counted = jnp.stack([rank < 1, rank < 5, loss, jnp.ones_like(loss)])
        return jnp.where(mask > 0, counted, 0).sum(1)  # a masked row's loss may be infinite, and 0 x inf is not 0

    return {name: count(x) for name, x in logits.items()}


def accuracies(totals: dict[str, Float[np.ndarray, "4"]], fusion: str) -> dict[str, Any]:
    """The result of `evaluate_sets` from its totals per head."""
    heads = {
        name: {"top1": 100 * right / n, "top5": 100 * right5 / n, "loss": loss / n}
        for name, (right, right5, loss, n) in ((name, total.tolist()) for name, total in totals.items())
    }
    return {**heads[joint_head(heads, fusion)], "heads": heads, "images": int(totals["cls"][3])}


def evaluate_sets(
    graphdef: nnx.GraphDef,
    sets: dict[str, Weights],
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
    mean: Iterable[float],
    std: Iterable[float],
    fusion: str = "logits",
    subset: Bool[AnyArray, " classes"] | None = None,
    outcomes: Any = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate several sets of weights of one model in a single pass over the data.

    Args:
        graphdef, sets, batches, mesh, mean, std: as `infer`.
        fusion: how the joint prediction combines both heads, "logits" or "probabilities".
        subset: which of the model's classes the data has, where it lacks some: predictions are among these alone.
        outcomes: `class_report.Outcomes` to which the predictions of the first set are added, in a single process.

    Returns, per name, {"top1", "top5", "loss", "heads": {head: {"top1", "top5", "loss"}}, "images"}: accuracies in
    percent, loss the mean cross-entropy; the first three are of the joint prediction.
    """
    totals = {name: collections.defaultdict(lambda: np.zeros(4)) for name in sets}

    def reduce(logits: Logits, batch: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if subset is not None:
            logits = {head: jnp.where(subset, x, -jnp.inf) for head, x in logits.items()}
        return count_correct(logits, batch), outcomes and predict(logits, fusion=fusion)

    for batch, found in infer(graphdef, sets, batches, mesh=mesh, mean=mean, std=std, reduce=reduce):
        for name, (counts, _) in found.items():
            for head, values in counts.items():
                totals[name][head] += values
        if outcomes:
            outcomes.add(batch, next(iter(found.values()))[1])
    return {name: accuracies(total, fusion) for name, total in totals.items()}


@functools.partial(jax.jit, static_argnames="fusion")
def predict(logits: Logits, *, fusion: str = "logits") -> dict[str, Shaped[Array, "batch"]]:
    """{head: predicted class, "joint": of the joint prediction, "confidence": the probability of that class}."""
    joint = logits[joint_head(logits, fusion)]
    classes = {head: x.argmax(-1) for head, x in logits.items()}
    return classes | {"joint": joint.argmax(-1), "confidence": jax.nn.softmax(joint.astype(np.float32)).max(-1)}


def predict_classes(
    graphdef: nnx.GraphDef,
    weights: Weights,
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
    mean: Iterable[float],
    std: Iterable[float],
    outputs: Integer[np.ndarray, " data_classes"] | None = None,
) -> tuple[dict[str, Integer[np.ndarray, " images"]], Integer[np.ndarray, " images"]]:
    """({head: predicted class}, label) of all images whose mask is 1.

    Arguments as of `infer`; `mesh` must be of this process's devices. outputs: per class of the data, the index of the
    model's logit; None: they are numbered alike.
    """

    def reduce(logits: Logits, _: dict[str, Any]) -> dict[str, Array]:
        return {head: (x if outputs is None else x[:, outputs]).argmax(-1) for head, x in logits.items()}

    parts = []
    for batch, found in infer(graphdef, {"": weights}, batches, mesh=mesh, mean=mean, std=std, reduce=reduce):
        real = batch["mask"] > 0
        parts.append({name: x[real] for name, x in {**found[""], "label": batch["label"]}.items()})
    heads = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return heads, heads.pop("label")
