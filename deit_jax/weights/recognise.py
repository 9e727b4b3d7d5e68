"""What model a set of weights is, from the names and shapes of its tensors alone."""

import dataclasses
import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable

from flax import nnx

from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.models import efficientnet, regnet, vit

HEAD_SIZE = 64  # of every published ViT and DeiT; the weights do not show it
log = logging.getLogger("deit_jax")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model's class and the arguments that make it; `name` is a registry name of that shape, or "".

    In `config`, `img_size` is None where the weights' grid is no square and nothing says what it is, `num_heads` is
    None where it cannot be told, and `num_classes` is 0 where there is no head. guessed: another name has the same
    tensors, and nothing says which of the two it is.
    """

    name: str
    module: type[nnx.Module]
    config: dict
    positions: int = 0  # of patches in the position embedding
    guessed: bool = False

    def constructor(self, **overrides) -> functools.partial:
        """A callable of `rngs`; arguments left at None keep the weights' own. Raises UserError for one that is neither
        given nor known."""
        arguments = self.config | {k: v for k, v in overrides.items() if v is not None}
        if arguments.get("img_size", 0) is None:
            raise UserError(
                f"pos_embed has {self.positions} patch positions, which are no square: give img_size=(height, width)"
            )
        if arguments.get("num_heads", 0) is None:
            raise UserError(f"the weights, {self.describe()}, do not tell their attention heads: give num_heads=")
        return functools.partial(self.module, **arguments)

    def describe(self) -> str:
        if self.module is vit.ViT:
            mark = "distilled " if self.config["distilled"] else ""
            text = "{}ViT of width {embed_dim}, depth {depth}, patch {patch_size}".format(mark, **self.config)
        else:
            text = self.module.__name__
        return f"{self.name} ({text})" if self.name else f"a {text}"


def most_common(values: Iterable, default=None):
    """The value most tensors agree on, so that one broken tensor does not mislead."""
    counts = Counter(values).most_common()
    # of a head's weight and bias that disagree, ImageNet's 1000 is the likelier number
    return max(counts, key=lambda item: (item[1], item[0] == 1000))[0] if counts else default


def recognise(shapes: dict[str, tuple[int, ...]], source: str, *, hint: str = "", img_size=None) -> Architecture:
    """The architecture of tensors under timm's names.

    Args:
        shapes: name → PyTorch shape.
        source: for the error message.
        hint: a name to prefer among those of the same shape (`vit_…` and `deit_…` are alike, and `efficientnet_…` and
            `tf_efficientnet_…`).
        img_size: what the file's own configuration says, for grids that are no square and for ConvNets.

    Raises UserError where the layout is unknown.
    """
    if any(re.match(r"blocks\.\d+\.\d+\.", key) for key in shapes):
        return recognise_efficientnet(shapes, source, hint, img_size)
    if any(re.match(r"blocks\.\d+\.", key) for key in shapes):
        return recognise_vit(shapes, hint, img_size)
    if any(re.match(r"s\d+\.b\d+\.", key) for key in shapes):
        return recognise_regnet(shapes, source)
    shown = ", ".join(list(shapes)[:3]) or "nothing"
    raise UserError(
        f"{source} has an unknown layout (it holds {shown}, …): neither timm's names of a ViT, DeiT, RegNetY or "
        "EfficientNet, nor Hugging Face's of a ViT or DeiT"
    )


def recognise_vit(shapes: dict[str, tuple[int, ...]], hint: str, img_size) -> Architecture:
    last = lambda *ends: (shape[-1] for key, shape in shapes.items() if key.endswith(ends) and shape)  # noqa: E731
    first = lambda *ends: (shape[0] for key, shape in shapes.items() if key.endswith(ends) and shape)  # noqa: E731
    dim = most_common(last("norm1.weight", "norm2.weight", "norm1.bias", "cls_token", "pos_embed"), 0)
    hidden = most_common(first("mlp.fc1.weight", "mlp.fc1.bias"), 4 * dim)
    patch = most_common(last("patch_embed.proj.weight"), 16)
    distilled = any(key == "dist_token" or key.startswith("head_dist.") for key in shapes)
    prefix = 2 if distilled else 1
    heads = [shape[0] for key, shape in shapes.items() if re.match(r"head(_dist)?\.", key) and shape]
    positions = most_common(shape[1] for key, shape in shapes.items() if key == "pos_embed" and len(shape) == 3)
    config = {
        "embed_dim": dim,
        "depth": 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in shapes) if m),
        "patch_size": patch,
        "distilled": distilled,
    }
    alike = [name for name, other in vit.CONFIGS.items() if config == {k: other.get(k, d) for k, d in DEFAULTS.items()}]
    num_heads = vit.CONFIGS[alike[0]]["num_heads"] if alike else None if dim % HEAD_SIZE else dim // HEAD_SIZE
    config |= {
        "num_heads": num_heads,
        "mlp_ratio": hidden / max(dim, 1),
        "num_classes": most_common(heads, 0),
        "img_size": image_size(positions, prefix, patch, img_size),
    }
    alike = alike if config["mlp_ratio"] == 4 else []
    fits = [name for name in alike if vit.CONFIGS[name]["img_size"] == config["img_size"]] or alike
    name = hint if hint in fits else next(iter(fits), "")
    return Architecture(name, vit.ViT, config, max(1, (positions or 0) - prefix))


DEFAULTS = {"embed_dim": 768, "depth": 12, "patch_size": 16, "distilled": False}


def image_size(positions: int | None, prefix: int, patch: int, said) -> int | tuple[int, int] | None:
    """Pixels a side that make so many positions: `said` where it fits, else a square's, else None."""
    if positions is None:
        return said or 224
    if said:
        height, width = (said, said) if isinstance(said, int) else said
        if (height // patch) * (width // patch) == positions - prefix:
            return said if isinstance(said, int) else tuple(said)
    side = math.isqrt(max(positions - prefix, 0))
    return side * patch if side and side * side == positions - prefix else None


def recognise_regnet(shapes: dict[str, tuple[int, ...]], source: str) -> Architecture:
    stages = []
    for stage in sorted({int(m[1]) for m in (re.match(r"s(\d+)\.b\d+\.", key) for key in shapes) if m}):
        start = rf"s{stage}\.b(\d+)\."
        of = lambda pattern, axis: [s[axis] for k, s in shapes.items() if re.fullmatch(pattern, k)]  # noqa: E731
        blocks = [int(m[1]) for m in (re.match(start, key) for key in shapes) if m]
        width = most_common(of(start + r"conv[123]\.bn\.(weight|bias)", 0))
        stages.append((width, max(blocks), most_common(of(start + r"conv2\.conv\.weight", 1))))
    for name in regnet.CONFIGS:
        _, config = models.find(name)
        family = {k: config[k] for k in ("w0", "wa", "wm", "depth", "group_width")}
        if regnet.stage_widths(**family) == stages:
            heads = [shape[0] for key, shape in shapes.items() if key.startswith("head.fc.") and shape]
            return Architecture(name, regnet.RegNet, config | {"num_classes": most_common(heads, 0)})
    shown = ", ".join(f"{depth} x {width}" for width, depth, _ in stages)
    raise UserError(f"{source} has an unknown layout: a RegNet of stages {shown} is none of deit_jax.list_models()")


def recognise_efficientnet(shapes: dict[str, tuple[int, ...]], source: str, hint: str, img_size) -> Architecture:
    """Of the two names of a size, whose tensors are the same, the one that `hint` or `source` holds; else the one
    without `tf_`, with a warning."""
    blocks = {tuple(map(int, m.groups())) for m in (re.match(r"blocks\.(\d+)\.(\d+)\.", key) for key in shapes) if m}
    stages = []
    for stage in sorted({stage for stage, _ in blocks}):
        last = "bn3" if stage else "bn2"
        start = rf"blocks\.{stage}\.\d+\.{last}\.(weight|bias)"
        width = most_common(shape[0] for key, shape in shapes.items() if re.fullmatch(start, key) and shape)
        stages.append((width, 1 + max(block for at, block in blocks if at == stage)))
    alike = []
    for name, config in efficientnet.CONFIGS.items():
        scaled = efficientnet.scaled_stages(config["width_coefficient"], config["depth_coefficient"])
        if [(width, depth) for *_, width, depth in scaled] == stages:
            alike.append(name)
    if not alike:
        shown = ", ".join(f"{depth} x {width}" for width, depth in stages)
        raise UserError(
            f"{source} has an unknown layout: an EfficientNet of stages {shown} is none of deit_jax.list_models()"
        )
    plain, tf = sorted(alike)
    said = next((name for name in (hint, source) if "efficientnet" in name), "")
    name = tf if "tf_efficientnet" in said else plain
    if not said:
        log.warning(
            "%s does not say whether it is %s or %s, whose tensors are the same: it is taken for %s where no model is"
            " named (a file named %s.safetensors would say so)", source, plain, tf, plain, tf,
        )  # fmt: skip
    heads = [shape[0] for key, shape in shapes.items() if key.startswith("classifier.") and shape]
    config = efficientnet.CONFIGS[name] | {"num_classes": most_common(heads, 0)}
    if img_size:
        config |= {"img_size": img_size}
    return Architecture(name, efficientnet.EfficientNet, config, guessed=not said)


def check_keys(found: dict[str, tuple[int, ...]], needed: dict[str, tuple[int, ...]], source: str, what: str) -> None:
    """Raise UserError naming every key that is missing, extra or of another shape than `what` needs."""
    problems = []
    if missing := [key for key in needed if key not in found]:
        problems.append(f"missing {', '.join(missing)}")
    if extra := [key for key in found if key not in needed]:
        problems.append(f"unknown {', '.join(extra)}")
    wrong = [k for k in needed if k in found and tuple(found[k]) != tuple(needed[k])]
    problems += [f"{k} has shape {tuple(found[k])}, not {tuple(needed[k])}" for k in wrong]
    if problems:
        raise UserError(f"{source} does not hold {what}: {'; '.join(problems)}")
