"""A DeiT and one more block, trained on a mesh of Explicit axes in plain Flax NNX: images split over both axes,
kernels and optimizer state stored split over `fsdp`.

    python -m examples.mesh_nnx      # on one CPU: XLA_FLAGS=--xla_force_host_platform_device_count=8
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import deit_jax
from deit_jax.models.vit import Block


class TwoStage(nnx.Module):
    """A whole DeiT's tokens, one more block alone, and a class head."""

    def __init__(self, classes: int, width: int = 64, *, rngs: nnx.Rngs):
        sizes = {"embed_dim": width, "num_heads": 4, "depth": 2}
        self.body = deit_jax.create_model("deit_digits_distilled_patch4_16", num_classes=classes, **sizes, rngs=rngs)
        self.block = Block(width, num_heads=4, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(class logits of the block alone, distillation logits of the whole model)"""
        _, dist = self.body.heads(images)  # whole models take arrays of any mesh
        graphdef, state = nnx.split((self.block, self.head))

        def run(state, tokens):  # parts of ours need Auto axes
            block, head = nnx.merge(graphdef, state)
            return head(block(tokens).mean(1))

        rows = P(("data", "fsdp"))
        return jax.sharding.auto_axes(run, out_sharding=rows)(state, self.body.embed(images)), dist


def main(steps: int = 5, classes: int = 4) -> tuple[list[float], TwoStage]:
    """Train on random images, in hard distillation from a teacher that knows the labels.

    Returns the losses and the model.
    """
    mesh = jax.make_mesh((jax.device_count() // 2, 2), ("data", "fsdp"))  # Explicit axes, as jax makes them today
    model = deit_jax.shard(TwoStage(classes, rngs=nnx.Rngs(0)), mesh)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)  # its moments lie where the weights do

    images = jax.random.normal(jax.random.key(0), (16, 16, 16, 3))
    labels = jnp.arange(16) % classes
    batch = jax.device_put((images, labels), NamedSharding(mesh, P(("data", "fsdp"))))

    @nnx.jit
    def step(model: TwoStage, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
        def loss(model: TwoStage) -> jax.Array:
            cls, dist = model(images)
            teacher_logits = jax.nn.one_hot(labels, classes) * 5.0
            return deit_jax.distillation_loss(cls, dist, labels, teacher_logits, kind="hard")

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    with jax.set_mesh(mesh):
        return [float(step(model, optimizer, *batch)) for _ in range(steps)], model


if __name__ == "__main__":
    losses, model = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print("mlp.fc1.kernel:", model.body.blocks.mlp.fc1.kernel[...].sharding.spec)
