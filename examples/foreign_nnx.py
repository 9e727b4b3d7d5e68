"""Our parts inside somebody else's Flax NNX model: a convolutional stem (RegNet's stage), our transformer blocks, two
heads, trained with our distillation loss.

    python -m examples.foreign_nnx
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import deit_jax
from deit_jax.models.regnet import Stage
from deit_jax.models.vit import Block


class Hybrid(nnx.Module):
    """Images (B, 32, 32, 3) → a stage at half resolution → tokens → blocks → (class, distillation) logits."""

    def __init__(self, classes: int, width: int = 64, *, rngs: nnx.Rngs):
        self.stage = Stage(3, width, depth=2, stride=4, group_width=16, rngs=rngs)
        self.blocks = nnx.List([Block(width, num_heads=4, rngs=rngs) for _ in range(2)])
        self.heads = nnx.List([nnx.Linear(width, classes, rngs=rngs) for _ in range(2)])

    def __call__(self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None):
        x = self.stage(images, train=train)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for i, block in enumerate(self.blocks):
            x = block(x, drop_path=0.1 * i, key=None if key is None else jax.random.fold_in(key, i))
        pooled = x.mean(1)
        return self.heads[0](pooled), self.heads[1](pooled)


def main(steps: int = 20, classes: int = 4) -> list[float]:
    """Train on random images with a teacher that looks at their mean colour; the losses."""
    model = Hybrid(classes, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    labels = jnp.arange(16) % classes
    teacher_logits = jax.nn.one_hot(labels, classes) * 5.0

    @nnx.jit
    def step(model, optimizer, key):
        def loss(model):
            cls, dist = model(images, train=True, key=key)
            return deit_jax.distillation_loss(cls, dist, labels, teacher_logits, kind="hard", label_smoothing=0.1)

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    return [float(step(model, optimizer, jax.random.key(i))) for i in range(steps)]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
