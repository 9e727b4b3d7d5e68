"""A model of one's own: a class that `model.name` names, kept by that name in its run.

    python main.py --config=configs/digits.py --workdir=runs/own --config.model.name=examples.own_model:ConvMixer \
        --config.train_baseline=False
    python -m deit_jax.predict runs/own IMAGE

Trockman & Kolter 2022 (arXiv 2201.09792), small. It has two heads, so that the second one learns from the teacher; the
docstring of `OwnNetwork` in deit_jax/models/own_model.py lists what a class must offer.
"""

import jax
from flax import nnx


class Mixer(nnx.Module):
    """A depthwise and a pointwise convolution, each behind GELU and normalization; the first with a shortcut."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(width, width, (5, 5), feature_group_count=width, rngs=rngs)
        self.pointwise = nnx.Conv(width, width, (1, 1), rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x + self.norms[0](jax.nn.gelu(self.depthwise(x)), use_running_average=not train)
        return self.norms[1](jax.nn.gelu(self.pointwise(x)), use_running_average=not train)


class ConvMixer(nnx.Module):
    """Patches of 2 x 2 pixels, four mixers, and a mean over the patches for two heads."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs, img_size: int = 16, width: int = 48, drop_rate: float = 0.0):
        self.patches = nnx.Conv(3, width, (2, 2), strides=2, rngs=rngs)
        self.mixers = nnx.List([Mixer(width, rngs) for _ in range(4)])
        self.dropout = nnx.Dropout(drop_rate)  # without rngs: a call brings its key
        self.head = nnx.Linear(width, num_classes, rngs=rngs)
        self.head_dist = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(
        self, images: jax.Array, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        x = self.patches(images)
        for mixer in self.mixers:
            x = mixer(x, train)
        x = self.dropout(x.mean((1, 2)), deterministic=not train, rngs=key)
        return self.head(x), self.head_dist(x)
