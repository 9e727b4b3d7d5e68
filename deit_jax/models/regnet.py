"""RegNetY (Radosavovic et al. 2020, arXiv 2003.13678): the ConvNet family DeiT learns from.

A stem, four stages of bottleneck blocks with grouped 3x3 convolutions and squeeze-excitation, a linear head. Widths
follow the paper's quantized linear rule. Attribute names are timm's (`s1.b1.conv1.conv`), so weights map one to one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from deit_jax.models.grouped_conv import Features, conv_general_dilated
from deit_jax.models.inputs import Images, NoHead, check_images

# He initialization over the fan-out, as PyTorch counts it (output channels x window, groups ignored).
conv_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def stage_widths(w0: int, wa: float, wm: float, depth: int, group_width: int) -> list[tuple[int, int, int]]:
    """(width, depth, group width) of each stage: block i wants w0 + wa i, rounded to w0 wm^k, then to a multiple of 8
    and of the group width (section 3.3, Eq. 2-4)."""
    widths = []
    for i in range(depth):
        power = round(math.log((w0 + wa * i) / w0) / math.log(wm))
        widths.append(round(w0 * wm**power / 8) * 8)
    stages = []
    for width in sorted(set(widths)):
        group = min(group_width, width)
        stages.append((round(width / group) * group, widths.count(width), group))
    return stages


class ConvNorm(nnx.Module):
    """Convolution without bias, batch normalization, ReLU where `act`. Padded by (kernel - 1) / 2 on every side, as
    PyTorch does (XLA's "SAME" shifts by a pixel at stride 2)."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        scale: float = 1.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        pad = (kernel - 1) // 2
        self.conv = nnx.Conv(
            width_in,
            width_out,
            (kernel, kernel),
            strides=stride,
            padding=((pad, pad), (pad, pad)),
            feature_group_count=groups,
            conv_general_dilated=conv_general_dilated,
            use_bias=False,
            kernel_init=conv_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(
            width_out, momentum=0.9, epsilon=1e-5, scale_init=nnx.initializers.constant(scale), dtype=dtype, rngs=rngs
        )
        self.act = act

    def __call__(self, x: Features, *, train: bool = False) -> Features:
        x = self.bn(self.conv(x), use_running_average=not train)
        return jax.nn.relu(x) if self.act else x


class SqueezeExcite(nnx.Module):
    """Channels weighted by sigmoid(fc2(relu(fc1(mean over pixels))))."""

    def __init__(self, width: int, reduced: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        conv = lambda i, o: nnx.Conv(i, o, (1, 1), kernel_init=conv_init, dtype=dtype, rngs=rngs)
        self.fc1, self.fc2 = conv(width, reduced), conv(reduced, width)

    def __call__(self, x: Features) -> Features:
        squeezed = x.mean((1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(squeezed))))


class Bottleneck(nnx.Module):
    """RegNet's Y block: 1x1, grouped 3x3 (with the stride), squeeze-excitation, 1x1, shortcut, ReLU.

    The squeezed width is a quarter of the block's *input* width. The last normalization starts at scale 0, so that a
    new block is its shortcut.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        stride: int = 1,
        group_width: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "rngs": rngs}
        self.conv1 = ConvNorm(width_in, width, **common)
        self.conv2 = ConvNorm(width, width, 3, stride=stride, groups=width // group_width, **common)
        self.se = SqueezeExcite(width, round(width_in / 4), **common)
        self.conv3 = ConvNorm(width, width, act=False, scale=0.0, **common)
        changes = stride != 1 or width_in != width
        self.downsample = ConvNorm(width_in, width, stride=stride, act=False, **common) if changes else None

    def __call__(self, x: Features, *, train: bool = False) -> Features:
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        y = self.conv2(self.conv1(x, train=train), train=train)
        return jax.nn.relu(shortcut + self.conv3(self.se(y), train=train))


class Stage(nnx.Module):
    """`depth` blocks b1, b2, …; the first changes width and resolution. common: of each `Bottleneck`."""

    def __init__(self, width_in: int, width: int, depth: int, *, stride: int = 2, **common: Any):
        self.depth = depth
        for i in range(depth):
            block = Bottleneck(width if i else width_in, width, stride=1 if i else stride, **common)
            setattr(self, f"b{i + 1}", block)

    def __call__(self, x: Features, *, train: bool = False) -> Features:
        for i in range(self.depth):
            x = getattr(self, f"b{i + 1}")(x, train=train)
        return x


class Head(nnx.Module):
    """Mean over pixels, then a linear layer in float32."""

    def __init__(self, width: int, num_classes: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.01)
        self.fc = nnx.Linear(width, num_classes, kernel_init=init, rngs=rngs) if num_classes else NoHead()

    def __call__(self, x: Features) -> Float[Array, "batch classes"]:
        return self.fc(x.astype(jnp.float32).mean((1, 2)))


class RegNet(nnx.Module):
    """A RegNetY.

    Args:
        num_classes: of the head; 0: none, and the model's outputs are what it would see.
        w0, wa, wm, depth, group_width: the paper's parameters of the family.
        stem_width, stem_stride: of the first 3x3 convolution (stride 1 here or in the first stage, or in both, for
            images of 8-32 pixels).
        first_stride: of the first stage.
        dtype: compute type. Parameters and statistics are float32.
        img_size: accepted for uniformity with ViT; a ConvNet takes any size.

    In training mode batch statistics are used and the running ones (nnx.BatchStat) updated in place.
    """

    distilled = False

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        w0: int = 200,
        wa: float = 106.23,
        wm: float = 2.48,
        depth: int = 18,
        group_width: int = 112,
        stem_width: int = 32,
        stem_stride: int = 2,
        first_stride: int = 2,
        dtype: DTypeLike = jnp.float32,
        img_size: int | tuple[int, int] = 224,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.img_size = jnp.dtype(dtype), img_size
        self.stem = ConvNorm(3, stem_width, 3, stride=stem_stride, dtype=self.dtype, rngs=rngs)
        self.stages, width_in = 0, stem_width
        for width, blocks, group in stage_widths(w0, wa, wm, depth, group_width):
            self.stages += 1
            common = {"group_width": group, "dtype": self.dtype, "rngs": rngs}
            stride = 2 if self.stages > 1 else first_stride
            setattr(self, f"s{self.stages}", Stage(width_in, width, blocks, stride=stride, **common))
            width_in = width
        self.width = width_in
        self.reset_classifier(num_classes, rngs)

    def reset_classifier(self, num_classes: int, rngs: nnx.Rngs) -> None:
        """Put a new head in the place of the one that the model has."""
        self.num_classes, self.head = num_classes, Head(self.width, num_classes, rngs=rngs)

    def features(self, images: Images, *, train: bool = False) -> dict[str, Features]:
        """Activations after the stem and each stage: {"stem", "s1", …}, each (B, h, w, channels)."""
        check_images(images)
        seen = {"stem": self.stem(jnp.asarray(images, self.dtype), train=train)}
        x = seen["stem"]
        for i in range(1, self.stages + 1):
            seen[f"s{i}"] = x = getattr(self, f"s{i}")(x, train=train)
        return seen

    def __call__(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch classes"]:
        """Logits, float32.

        train: use the batch's statistics and update the running ones. NNX's `model.train()` and `model.eval()` have no
        effect. `key` is accepted for uniformity: a RegNet has no randomness.
        """
        return self.head(self.features(images, train=train)[f"s{self.stages}"])

    def heads(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "batch classes"], None]:
        """(logits, None): a RegNet has no distillation head."""
        return self(images, train=train), None


def family(w0: int, wa: float, wm: float, depth: int, group_width: int, **more: Any) -> dict[str, Any]:
    """Constructor arguments of one model of the family."""
    return {"w0": w0, "wa": wa, "wm": wm, "depth": depth, "group_width": group_width, **more}


# Parameters of the published RegNetY models (paper, appendix; Facebook's pycls model zoo).
CONFIGS: dict[str, dict] = {
    "regnety_002": family(24, 36.44, 2.49, 13, 8),
    "regnety_004": family(48, 27.89, 2.09, 16, 8),
    "regnety_006": family(48, 32.54, 2.32, 15, 16),
    "regnety_008": family(56, 38.84, 2.4, 14, 16),
    "regnety_016": family(48, 20.71, 2.65, 27, 24),
    "regnety_032": family(80, 42.63, 2.66, 21, 24),
    "regnety_040": family(96, 31.41, 2.24, 22, 64),
    "regnety_064": family(112, 33.22, 2.27, 25, 72),
    "regnety_080": family(192, 76.82, 2.19, 17, 56),
    "regnety_120": family(168, 73.36, 2.37, 19, 112),
    "regnety_160": family(200, 106.23, 2.48, 18, 112),
    "regnety_320": family(232, 115.89, 2.53, 20, 232),
    # for images of 8-32 pixels: at most one reduction before the second stage
    "regnety_mini": family(32, 32.0, 2.0, 3, 16, first_stride=1, img_size=16),
    "regnety_digits": family(32, 32.0, 2.0, 4, 16, stem_stride=1, img_size=16),
    "regnety_cifar": family(48, 27.89, 2.09, 10, 16, stem_stride=1, first_stride=1, img_size=32),
    "regnety_cifar_small": family(48, 48.0, 2.0, 6, 16, stem_stride=1, img_size=32),
}
