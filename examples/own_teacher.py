"""Teachers of one's own, each a function that `teacher.name` names: Flax Linen, an exported artifact, a plain function,
and PyTorch, which `--mode=label` runs once.

    python main.py --config=configs/digits.py --workdir=runs/own --config.teacher.name=examples.own_teacher:linen \\
        --config.teacher.epochs=0

Weights are random here: a real function reads them from a file.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

import deit_jax

SIZE, CLASSES = 16, [str(digit) for digit in range(10)]
HALF = (0.5, 0.5, 0.5)
OwnTeacher = functools.partial(deit_jax.OwnTeacher, size=SIZE, mean=HALF, std=HALF, class_names=CLASSES)


class ConvNet(nn.Module):
    """Images (B, S, S, 3) → logits (B, classes)."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(images))
        return 4.0 * nn.Dense(len(CLASSES))(nn.relu(nn.Conv(64, (3, 3), strides=2)(x)).mean((1, 2)))


def variables() -> dict:
    """The Linen model's variables."""
    return jax.jit(ConvNet().init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))


def linen() -> deit_jax.OwnTeacher:
    """A Flax Linen model: its variables are the arrays."""
    return OwnTeacher(ConvNet().apply, variables())


def exported() -> deit_jax.OwnTeacher:
    """A `jax.export` artifact, for any batch: its weights are inside, so that it needs a version."""
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 16, 16, 3"), jnp.float32)
    model = jax.jit(functools.partial(ConvNet().apply, variables()))
    artifact = jax.export.deserialize(jax.export.export(model)(images).serialize())  # read from a file, as a rule
    return OwnTeacher(lambda arrays, images: artifact.call(images), (), version="1")


def brightness() -> deit_jax.OwnTeacher:
    """A plain function without arrays: the brighter the image, the higher the class."""

    def predict(arrays: tuple, images: jax.Array) -> jax.Array:
        level = 4.5 + 9 * images.mean((1, 2, 3))
        return -((level[:, None] - jnp.arange(10.0)) ** 2)

    return OwnTeacher(predict, (), version="1")


def pytorch() -> deit_jax.OwnTeacher:
    """A PyTorch model (as of timm or transformers); with ONNX Runtime, `predict` is
    `lambda arrays, images: session.run(None, {"images": np.asarray(images)})[0]`."""
    import torch  # only here: training from the stored labels needs no PyTorch

    torch.manual_seed(0)
    body = [torch.nn.Conv2d(3, 32, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    model = torch.nn.Sequential(*body, torch.nn.Linear(128, len(CLASSES))).eval()

    @torch.inference_mode()
    def predict(arrays: dict, images: jax.Array) -> torch.Tensor:
        return 4.0 * model(torch.from_dlpack(images).permute(0, 3, 1, 2))

    return OwnTeacher(predict, {name: x.numpy() for name, x in model.state_dict().items()}, host=True)
