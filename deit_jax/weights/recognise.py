"""What model a set of weights is, from the names and shapes of its tensors, and from what its files say besides."""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from flax import nnx

from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.models import efficientnet, regnet, vit
from deit_jax.weights.description import ACTIVATIONS, Description

HEAD_SIZE = 64  # of every published ViT and DeiT; the weights do not show it
MOST_NAMED = 12  # keys that an error names of each kind
DEFAULTS = {"embed_dim": 768, "depth": 12, "patch_size": 16, "distilled": False}
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model's class and the arguments that make it.

    Attributes:
        name: a registry name of that shape, or "".
        module: class of the model.
        config: its arguments; `img_size` is None where the weights' grid is not a square and nothing says what it is,
            `num_heads` is None where it cannot be told, and `num_classes` is 0 where there is no head.
        positions: patches in the position embedding.
        assumed: what neither tensors nor files say ("name", "num_heads", "norm_eps", "img_size").
    """

    name: str
    module: type[nnx.Module]
    config: dict
    positions: int = 0
    assumed: tuple[str, ...] = ()

    def constructor(self, **overrides) -> functools.partial:
        """A callable of `rngs`; arguments left at None keep the weights' own. Raises UserError for one that is neither
        given nor known."""
        arguments = self.config | {k: v for k, v in overrides.items() if v is not None}
        if arguments.get("img_size", 0) is None:
            raise UserError(
                f"pos_embed has {self.positions} patch positions, which are not a square: give"
                " img_size=(height, width), or image_size in a config.json beside the weights"
            )
        if arguments.get("num_heads", 0) is None:
            raise UserError(
                f"the weights, {self.describe()}, do not tell their attention heads: give num_heads=, or"
                " num_attention_heads in a config.json beside the weights"
            )
        return functools.partial(self.module, **arguments)

    def describe(self) -> str:
        """The model in a few words: "deit_tiny_patch16_224 (ViT of width 192, depth 12, patch 16)"."""
        if self.module is vit.ViT:
            mark = "distilled " if self.config["distilled"] else ""
            text = "{}ViT of width {embed_dim}, depth {depth}, patch {patch_size}".format(mark, **self.config)
        else:
            text = self.module.__name__
        return f"{self.name} ({text})" if self.name else f"a {text}"


def most_common(values: Iterable[int], default: int = 0) -> int:
    """The value most tensors agree on, so that one broken tensor does not mislead."""
    counts = Counter(values).most_common()
    # of a head's weight and bias that disagree, ImageNet's 1000 is the likelier number
    return max(counts, key=lambda item: (item[1], item[0] == 1000))[0] if counts else default


def recognise(shapes: Shapes, source: str, said: Description) -> Architecture:
    """The architecture of tensors under timm's names.

    Args:
        shapes: name → PyTorch shape.
        source: for the error message.
        said: what the files say; `said.name` decides among registry names of the same shape (`vit_…` and `deit_…`,
            `efficientnet_…` and `tf_efficientnet_…`).

    Raises UserError where the layout is unknown, or what is said does not fit the tensors or is not implemented.
    """
    if any(re.match(r"blocks\.\d+\.\d+\.", key) for key in shapes):
        found = recognise_efficientnet(shapes, source, said)
    elif any(re.match(r"blocks\.\d+\.", key) for key in shapes):
        found = recognise_vit(shapes, source, said)
    elif any(re.match(r"s\d+\.b\d+\.", key) for key in shapes):
        found = recognise_regnet(shapes, source, said)
    else:
        shown = ", ".join(list(shapes)[:3]) or "nothing"
        raise UserError(
            f"{source} has an unknown layout (it holds {shown}, …): neither timm's names of a ViT, DeiT, RegNetY or"
            " EfficientNet, nor Hugging Face's of a ViT or DeiT"
        )
    known = ACTIVATIONS[found.module.__name__]
    if said.activation not in (None, *known):
        raise UserError(
            f"{source} has activation '{said.activation}': {known[0]} is implemented for {found.describe()}"
        )
    return found


def registered_name(hint: str) -> str:
    """The longest registry name that `hint` begins with ("deit_small_patch16_224-cd65a155", "facebook/deit-tiny-…",
    "vit_tiny_patch16_224.augreg_in21k"), or ""."""
    bare = hint.split("/")[-1].replace("-", "_")
    fits = [name for name in models.list_models() if re.match(rf"{re.escape(name)}(?![a-zA-Z0-9])", bare)]
    return max(fits, key=len, default="")


def recognise_vit(shapes: Shapes, source: str, said: Description) -> Architecture:
    last = lambda *ends: (shape[-1] for key, shape in shapes.items() if key.endswith(ends) and shape)
    first = lambda *ends: (shape[0] for key, shape in shapes.items() if key.endswith(ends) and shape)
    dim = most_common(last("norm1.weight", "norm2.weight", "norm1.bias", "cls_token", "pos_embed"), 0)
    hidden = most_common(first("mlp.fc1.weight", "mlp.fc1.bias"), 4 * dim)
    patch = most_common(last("patch_embed.proj.weight"), 16)
    distilled = any(key == "dist_token" or key.startswith("head_dist.") for key in shapes)
    heads = [shape[0] for key, shape in shapes.items() if re.match(r"head(_dist)?\.", key) and shape]
    config = {
        "embed_dim": dim,
        "depth": depth_of(shapes, source, said),
        "patch_size": patch,
        "distilled": distilled,
    }
    alike = [name for name, other in vit.CONFIGS.items() if config == {k: other.get(k, d) for k, d in DEFAULTS.items()}]
    named = registered_name(said.name)
    assumed = [] if named in alike else ["name"]

    num_heads = said.num_heads or (vit.CONFIGS[named]["num_heads"] if named in alike else None)
    if num_heads is None:
        assumed.append("num_heads")
        num_heads = vit.CONFIGS[alike[0]]["num_heads"] if alike else None if dim % HEAD_SIZE else dim // HEAD_SIZE
    if num_heads and dim % num_heads:
        raise UserError(f"{source} has {num_heads} attention heads, which do not divide its width {dim}")
    if said.norm_eps is None and named not in alike:
        assumed.append("norm_eps")

    pos = shapes.get("pos_embed", ())
    patches = max(1, pos[1] - (2 if distilled else 1)) if len(pos) == 3 else None
    size = said.img_size or (vit.CONFIGS[named]["img_size"] if named in alike else None)
    img_size = image_size(patches, patch, size)
    if size is None or img_size != size:
        assumed.append("img_size")
    if said.img_size and img_size != said.img_size:
        said.notes.append(
            f"its configuration says image size {said.img_size}: it is not used, the position embedding has {patches}"
            f" patches of {patch} pixels"
        )
    config |= {
        "num_heads": num_heads,
        "mlp_ratio": hidden / max(dim, 1),
        "num_classes": most_common(heads, 0),
        "img_size": img_size,
        "norm_eps": said.norm_eps or 1e-6,
    }
    if distilled and said.dist_head is False:
        config["dist_head"] = False
    return Architecture(registry_name(alike, named, config), vit.ViT, config, patches or 1, tuple(assumed))


def registry_name(alike: list[str], named: str, config: dict) -> str:
    """The name among `alike` whose model is `config`'s: `named` if it is one of them, the one of the same image size
    else; "" where a detail differs from all."""
    same = [
        name
        for name in alike
        if config["mlp_ratio"] == 4
        and config.get("dist_head", True)
        and vit.CONFIGS[name]["num_heads"] == config["num_heads"]
    ]
    fits = [name for name in same if vit.CONFIGS[name]["img_size"] == config["img_size"]] or same
    return named if named in fits else next(iter(fits), "")


def depth_of(shapes: Shapes, source: str, said: Description) -> int:
    """Blocks of a transformer. Raises UserError where some are missing: a model without its last ones would pass for
    a shallower one."""
    numbers = {int(m[1]) for m in (re.match(r"blocks\.(\d{1,9})\.", key) for key in shapes) if m}
    depth = 1 + max(numbers, default=0)
    if len(numbers) < depth:
        gap = next(i for i in range(depth) if i not in numbers)
        raise UserError(f"{source} has blocks.{depth - 1} but not blocks.{gap}: it was cut short, or is not a ViT")
    name = registered_name(said.name)
    if said.depth and depth > said.depth:
        raise UserError(
            f"{source} holds {depth} blocks, its configuration says {said.depth}: they belong to two models"
        )
    expected = said.depth or (models.find(name)[1].get("depth", 12) if name.startswith(("deit", "vit")) else depth)
    if depth < expected:
        raise UserError(
            f"{source} lacks blocks {depth}..{expected - 1} of {expected} (blocks.{depth}.norm1.weight and what"
            " follows): it was cut short: download it again"
        )
    return depth


def image_size(patches: int | None, patch: int, said) -> int | tuple[int, int] | None:
    """Pixels per side that make this many patches: `said` where it fits, else a square's, else None."""
    if patches is None:
        return said or 224
    if said:
        height, width = (said, said) if isinstance(said, int) else said
        if (height // patch) * (width // patch) == patches:
            return said if isinstance(said, int) else tuple(said)
    side = math.isqrt(patches)
    return side * patch if side * side == patches else None


def recognise_regnet(shapes: Shapes, source: str, said: Description) -> Architecture:
    stages = []
    for stage in sorted({int(m[1]) for m in (re.match(r"s(\d+)\.b\d+\.", key) for key in shapes) if m}):
        start = rf"s{stage}\.b(\d+)\."
        of = lambda pattern, axis: [s[axis] for k, s in shapes.items() if re.fullmatch(pattern, k)]
        blocks = [int(m[1]) for m in (re.match(start, key) for key in shapes) if m]
        width = most_common(of(start + r"conv[123]\.bn\.(weight|bias)", 0))
        stages.append((width, max(blocks), most_common(of(start + r"conv2\.conv\.weight", 1))))
    for name in regnet.CONFIGS:
        _, config = models.find(name)
        family = {k: config[k] for k in ("w0", "wa", "wm", "depth", "group_width")}
        if regnet.stage_widths(**family) == stages:
            heads = [shape[0] for key, shape in shapes.items() if key.startswith("head.fc.") and shape]
            assumed = () if registered_name(said.name) == name else ("name",)
            return Architecture(name, regnet.RegNet, config | {"num_classes": most_common(heads, 0)}, assumed=assumed)
    shown = listed([f"{depth} x {width}" for width, depth, _ in stages])
    raise UserError(f"{source} has an unknown layout: a RegNet of stages {shown} is not in deit_jax.list_models()")


def recognise_efficientnet(shapes: Shapes, source: str, said: Description) -> Architecture:
    """Of the two names of a size, whose tensors are the same, the one that is said; else the one without `tf_`."""
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
        shown = listed([f"{depth} x {width}" for width, depth in stages])
        raise UserError(
            f"{source} has an unknown layout: an EfficientNet of stages {shown} is not in deit_jax.list_models()"
        )
    plain, tf = sorted(alike)
    named = next((name for name in (said.name, source) if "efficientnet" in name), "")
    name = tf if "tf_efficientnet" in named else plain
    heads = [shape[0] for key, shape in shapes.items() if key.startswith("classifier.") and shape]
    config = efficientnet.CONFIGS[name] | {"num_classes": most_common(heads, 0)}
    if said.img_size:
        config |= {"img_size": said.img_size}
    return Architecture(name, efficientnet.EfficientNet, config, assumed=() if named else ("name",))


def check_keys(found: Shapes, needed: Shapes, source: str, what: str) -> None:
    """Raise UserError naming the keys that are missing, extra or of another shape than `what` needs."""
    problems = []
    if missing := [key for key in needed if key not in found]:
        problems.append(f"missing {listed(missing)}")
    if extra := [key for key in found if key not in needed]:
        problems.append(f"unknown {listed(extra)}")
    wrong = [k for k in needed if k in found and tuple(found[k]) != tuple(needed[k])]
    problems += [f"{k} has shape {tuple(found[k])}, not {tuple(needed[k])}" for k in wrong[:MOST_NAMED]]
    if len(wrong) > MOST_NAMED:
        problems.append(f"{len(wrong) - MOST_NAMED} more shapes differ")
    if problems:
        raise UserError(f"{source} does not hold {what}: {'; '.join(problems)}")


def listed(keys: list[str]) -> str:
    """Names in a row, the first of many."""
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more
