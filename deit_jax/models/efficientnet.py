"""EfficientNet (Tan & Le 2019, arXiv 1905.11946): ConvNets scaled in width, depth and resolution together.

B0 was found by an architecture search: a stem, seven stages of mobile inverted bottlenecks (MBConv, Sandler et al.
2018) with squeeze-excitation and SiLU, a 1x1 convolution, a linear head. B1 … B7 are B0 with more channels, more layers
and larger images (section 3.3). Attribute names are timm's (`blocks.1.0.conv_pw`), so weights map one to one.

EfficientNet-Lite (`lite0` … `lite4`, R. Liu 2020, in the same released code) is for small devices: no
squeeze-excitation, ReLU6 instead of SiLU, and the first and last layers of every size are B0's.

Each size has two names. `tf_efficientnet_b0` holds weights that were trained in TensorFlow (AutoAugment, AdvProp,
NoisyStudent): padding as there and batch normalization with eps 1e-3. `efficientnet_b0` pads symmetrically and has eps
1e-5. Their tensors are the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from deit_jax.models.grouped_conv import Features, conv_general_dilated
from deit_jax.models.inputs import Images, NoHead, check_images, training_key
from deit_jax.models.vit import dropout

# Table 1, stages 2-8: MBConv's expansion, kernel, stride, output channels, layers
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, TOP = 32, 1280  # channels of B0's first and last convolution
SE_RATIO = 0.25  # squeezed channels over a block's input channels

# As in the released code: normal, variance 2 / fan-out; a depthwise kernel's fan-out is its window, its fan-in to flax.
conv_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
depthwise_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
# +-1 / sqrt(features). The release has +-1 / sqrt(classes): as much for 1,000 of them, 11 times as much for ten, where
# fine-tuning with a new head then started at a loss of 5.5 instead of ln 10.
head_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def scaled_width(width: int, coefficient: float) -> int:
    """`width` x `coefficient` to the nearest multiple of 8, but not below nine tenths of it (released code)."""
    wanted = width * coefficient
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def scaled_stages(
    width_coefficient: float, depth_coefficient: float, lite: bool = False
) -> list[tuple[int, int, int, int, int]]:
    """`STAGES` with scaled channels and layers; of a `lite` model the first and last stage keep their one layer."""
    kept = (0, len(STAGES) - 1) if lite else ()
    return [
        (
            expansion,
            kernel,
            stride,
            scaled_width(width, width_coefficient),
            depth if i in kept else math.ceil(depth * depth_coefficient),
        )
        for i, (expansion, kernel, stride, width, depth) in enumerate(STAGES)
    ]


def conv(
    width_in: int,
    width_out: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    depthwise: bool = False,
    bias: bool = False,
    tf_style: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution, padded by (kernel - 1) / 2 on every side, or as TensorFlow does: at stride 2 one pixel less above
    and left where the size is even."""
    pad = (kernel - 1) // 2
    return nnx.Conv(
        width_in,
        width_out,
        (kernel, kernel),
        strides=stride,
        padding="SAME" if tf_style else ((pad, pad), (pad, pad)),
        feature_group_count=width_in if depthwise else 1,
        conv_general_dilated=conv_general_dilated,
        use_bias=bias,
        kernel_init=depthwise_init if depthwise else conv_init,
        dtype=dtype,
        rngs=rngs,
    )


def norm(width: int, *, tf_style: bool, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-3 if tf_style else 1e-5, dtype=dtype, rngs=rngs)


def activation(lite: bool) -> Callable[[Features], Features]:
    return jax.nn.relu6 if lite else jax.nn.silu


class SqueezeExcite(nnx.Module):
    """Channels weighted by sigmoid(expand(silu(reduce(mean over pixels))))."""

    def __init__(self, width: int, reduced: int, **common):
        self.conv_reduce = conv(width, reduced, bias=True, **common)
        self.conv_expand = conv(reduced, width, bias=True, **common)

    def __call__(self, x: Features) -> Features:
        squeezed = x.mean((1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.conv_expand(jax.nn.silu(self.conv_reduce(squeezed))))


class MBConv(nnx.Module):
    """A mobile inverted bottleneck: 1x1 to `expansion` times the channels, depthwise convolution (with the stride),
    squeeze-excitation, 1x1 back without an activation; a shortcut where the shape stays.

    lite: no squeeze-excitation, ReLU6. common: `tf_style`, `dtype`, `rngs`. Calling it with `key` drops the branch of
    each sample with probability `drop_path` (stochastic depth, Huang et al. 2016).
    """

    def __init__(
        self, width_in: int, width: int, kernel: int, *, stride: int = 1, expansion: int = 6, lite: bool, **common
    ):
        expanded = width_in * expansion
        self.conv_pw, self.bn1 = conv(width_in, expanded, **common), norm(expanded, **common)
        self.conv_dw = conv(expanded, expanded, kernel, stride=stride, depthwise=True, **common)
        self.bn2 = norm(expanded, **common)
        self.se = None if lite else SqueezeExcite(expanded, int(width_in * SE_RATIO), **common)
        self.conv_pwl, self.bn3 = conv(expanded, width, **common), norm(width, **common)
        self.act = activation(lite)
        self.has_shortcut = stride == 1 and width_in == width

    def layers(self) -> list[tuple[nnx.Conv, nnx.BatchNorm]]:
        """Its convolutions with their normalizations, in order; the last one follows squeeze-excitation."""
        return [(self.conv_pw, self.bn1), (self.conv_dw, self.bn2), (self.conv_pwl, self.bn3)]

    def __call__(
        self, x: Features, *, train: bool = False, drop_path: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Features:
        *active, (project, last) = self.layers()
        y = x
        for layer, batch_norm in active:
            y = self.act(batch_norm(layer(y), use_running_average=not train))
        y = self.se(y) if self.se else y
        y = last(project(y), use_running_average=not train)
        return x + dropout(y, drop_path, key, (y.shape[0], 1, 1, 1)) if self.has_shortcut else y


class MBConv1(MBConv):
    """An `MBConv` of expansion 1, which has no first 1x1 convolution: the paper's MBConv1."""

    def __init__(self, width_in: int, width: int, kernel: int, *, stride: int = 1, lite: bool, **common):
        self.conv_dw = conv(width_in, width_in, kernel, stride=stride, depthwise=True, **common)
        self.bn1 = norm(width_in, **common)
        self.se = None if lite else SqueezeExcite(width_in, int(width_in * SE_RATIO), **common)
        self.conv_pw, self.bn2 = conv(width_in, width, **common), norm(width, **common)
        self.act = activation(lite)
        self.has_shortcut = stride == 1 and width_in == width

    def layers(self) -> list[tuple[nnx.Conv, nnx.BatchNorm]]:
        return [(self.conv_dw, self.bn1), (self.conv_pw, self.bn2)]


class Numbered(nnx.Module):
    """Modules under the names "0", "1", …, as PyTorch names those of a sequence."""

    def __init__(self, modules: Sequence[nnx.Module]):
        self.count = len(modules)
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[nnx.Module]:
        return (getattr(self, str(i)) for i in range(self.count))


def make_stage(
    width_in: int, width: int, depth: int, kernel: int, *, stride: int, expansion: int, **common: Any
) -> Numbered:
    """`depth` blocks; the first changes width and resolution."""
    blocks = []
    for i in range(depth):
        sizes = {"width_in": width if i else width_in, "width": width, "kernel": kernel, "stride": 1 if i else stride}
        block = MBConv1(**sizes, **common) if expansion == 1 else MBConv(**sizes, expansion=expansion, **common)
        blocks.append(block)
    return Numbered(blocks)


class EfficientNet(nnx.Module):
    """An EfficientNet.

    Args:
        num_classes: of the head; 0: none, and the model's outputs are what it would see.
        width_coefficient, depth_coefficient: channels and layers over B0's.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth, rising linearly from 0; block i of n has drop_path_rate i / n.
        tf_style: padding and batch normalization as in TensorFlow, see the top of this file.
        lite: the Lite variant, see there.
        dtype: compute type. Parameters, statistics and the head are float32.
        img_size: height and width in pixels it is made for; a ConvNet takes any.
        crop: fraction of the resized image's short side that evaluation keeps at `img_size`.

    In training mode batch statistics are used and the running ones (nnx.BatchStat) updated in place.
    """

    distilled = False

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        width_coefficient: float = 1.0,
        depth_coefficient: float = 1.0,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.2,
        tf_style: bool = False,
        lite: bool = False,
        dtype: DTypeLike = jnp.float32,
        img_size: int | tuple[int, int] = 224,
        crop: float = 0.875,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.tf_style = jnp.dtype(dtype), tf_style
        self.img_size, self.crop = img_size, crop
        self.drop_rate, self.drop_path_rate = drop_rate, drop_path_rate
        common = {"tf_style": tf_style, "dtype": self.dtype, "rngs": rngs}

        self.act = activation(lite)

        width_in, top = (width if lite else scaled_width(width, width_coefficient) for width in (STEM, TOP))
        self.conv_stem, self.bn1 = conv(3, width_in, 3, stride=2, **common), norm(width_in, **common)
        stages = []
        for expansion, kernel, stride, width, depth in scaled_stages(width_coefficient, depth_coefficient, lite):
            options = {"stride": stride, "expansion": expansion, "lite": lite}
            stages.append(make_stage(width_in, width, depth, kernel, **options, **common))
            width_in = width
        self.blocks = Numbered(stages)
        self.conv_head, self.bn2 = conv(width_in, top, **common), norm(top, **common)
        self.width = top
        self.reset_classifier(num_classes, rngs)

    def reset_classifier(self, num_classes: int, rngs: nnx.Rngs) -> None:
        """Put a new head in the place of the one that the model has."""
        self.num_classes = num_classes
        head = nnx.Linear(self.width, num_classes, kernel_init=head_init, rngs=rngs) if num_classes else NoHead()
        self.classifier = head

    def features(self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None) -> Features:
        """Activations after the last convolution, at a thirty-second of the images' size."""
        check_images(images)
        x = self.act(self.bn1(self.conv_stem(jnp.asarray(images, self.dtype)), use_running_average=not train))
        stages: Any = self.blocks
        blocks = [block for stage in stages for block in stage]
        for i, block in enumerate(blocks):
            own = None if key is None else jax.random.fold_in(key, i)
            x = block(x, train=train, drop_path=self.drop_path_rate * i / len(blocks), key=own)
        return self.act(self.bn2(self.conv_head(x), use_running_average=not train))

    def __call__(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch classes"]:
        """Logits, float32.

        train with `key`: dropout and stochastic depth act; every random number follows from `key`. NNX's
        `model.train()` and `model.eval()` have no effect.
        """
        key = training_key(train, key, self.drop_rate, self.drop_path_rate)
        drop, path = (None, None) if key is None else jax.random.split(key)
        x = self.features(images, train=train, key=path)
        pooled = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return self.classifier(dropout(pooled, self.drop_rate, drop, pooled.shape))

    def heads(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "batch classes"], None]:
        """(logits, None): it has no distillation head."""
        return self(images, train=train, key=key), None


# Width and depth coefficients, image size and dropout of the released code; crops of timm's tf_ weights.
SIZES = {
    "b0": (1.0, 1.0, 224, 0.875, 0.2),
    "b1": (1.0, 1.1, 240, 0.882, 0.2),
    "b2": (1.1, 1.2, 260, 0.890, 0.3),
    "b3": (1.2, 1.4, 300, 0.904, 0.3),
    "b4": (1.4, 1.8, 380, 0.922, 0.4),
    "b5": (1.6, 2.2, 456, 0.934, 0.4),
    "b6": (1.8, 2.6, 528, 0.942, 0.5),
    "b7": (2.0, 3.1, 600, 0.949, 0.5),
    "lite0": (1.0, 1.0, 224, 0.875, 0.2),
    "lite1": (1.0, 1.1, 240, 0.882, 0.2),
    "lite2": (1.1, 1.2, 260, 0.890, 0.3),
    "lite3": (1.2, 1.4, 280, 0.904, 0.3),
    "lite4": (1.4, 1.8, 300, 0.920, 0.3),
}

CONFIGS: dict[str, dict] = {
    f"{mark}efficientnet_{size}": {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "img_size": img_size,
        "crop": crop,
        "drop_rate": drop_rate,
        "tf_style": bool(mark),
        "lite": size.startswith("lite"),
    }
    for mark in ("", "tf_")
    for size, (width, depth, img_size, crop, drop_rate) in SIZES.items()
}
