"""A DeiT trained on a mesh of (data, model) axes in plain Flax NNX: images split over `data`, heads and MLPs over
`model`, weights and optimizer state stored split over both.

    python -m examples.mesh_nnx      # on one CPU: XLA_FLAGS=--xla_force_host_platform_device_count=8
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import deit_jax


def main(steps: int = 5, classes: int = 4) -> tuple[list[float], nnx.Module]:
    """Train on random images, in hard distillation from a teacher that knows the labels.

    Returns the losses and the model.
    """
    mesh = jax.make_mesh((jax.device_count() // 2, 2), ("data", "model"))  # Explicit axes, as jax makes them today
    model = deit_jax.create_model(
        "deit_digits_distilled_patch4_16", num_classes=classes, embed_dim=64, num_heads=4, depth=2
    )
    deit_jax.shard(model, mesh, rules={"embed": "data"})  # "heads" and "mlp" go to "model" by default
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)  # its moments lie where the weights do

    images = jax.random.normal(jax.random.key(0), (16, 16, 16, 3))
    labels = jnp.arange(16) % classes
    batch = jax.device_put((images, labels), NamedSharding(mesh, P("data")))

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
        def loss(model: nnx.Module) -> jax.Array:
            cls, dist = model.heads(images, train=True)
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
    print("mlp.fc1.kernel:", model.blocks.mlp.fc1.kernel[...].sharding.spec)
