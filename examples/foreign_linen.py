"""Our parts inside somebody else's Flax Linen model: a RegNet stage and a transformer block through `ToLinen`, and a
whole DeiT through `to_linen`, trained with our distillation loss.

    python -m examples.foreign_linen
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

import deit_jax
from deit_jax.models.regnet import Stage
from deit_jax.models.vit import Block


class Hybrid(nn.Module):
    """Images (B, 32, 32, 3) → one logit vector of a whole small DeiT, one of stage and block of our own choosing."""

    classes: int
    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False):
        whole = deit_jax.to_linen("deit_cifar_patch4_32", num_classes=self.classes, depth=2, drop_path_rate=0.1)
        cls = whole(images, train=train)  # draws from the "dropout" stream where it trains
        stage = nnx.bridge.ToLinen(Stage, args=(3, self.width, 2), kwargs={"stride": 4, "group_width": 16})
        x = stage(images, train=train)
        block = nnx.bridge.ToLinen(Block, args=(self.width, 4))
        x = block(x.reshape(x.shape[0], -1, self.width), drop_path=0.1, key=self.make_rng("dropout") if train else None)
        return cls, nn.Dense(self.classes)(x.mean(1))


def main(steps: int = 20, classes: int = 4) -> list[float]:
    """Train on random images with a teacher that knows the labels; the losses."""
    model = Hybrid(classes)
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    labels = jnp.arange(16) % classes
    teacher_logits = jax.nn.one_hot(labels, classes) * 5.0
    variables = model.init(jax.random.key(1), images)
    params = variables.pop("params")
    optimizer = optax.adamw(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, statistics, state, key):
        def loss(params):
            (cls, dist), new = model.apply(
                {"params": params, **statistics}, images, train=True, rngs={"dropout": key}, mutable=list(statistics)
            )
            value = deit_jax.distillation_loss(cls, dist, labels, teacher_logits, kind="soft", alpha=0.5, tau=2.0)
            return value, new

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), statistics, state, value

    losses = []
    for i in range(steps):
        params, variables, state, value = step(params, variables, state, jax.random.key(i))
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
