"""Which model a set of weights is: a registered one, by its name, or what a configuration says in full."""

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from flax import nnx

from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.models import vit
from deit_jax.own import is_own
from deit_jax.runtime.sharding import on_any_mesh
from deit_jax.weights.metadata import Metadata
from deit_jax.weights.names import HuggingFace, Naming

MOST_NAMED = 8  # keys that an error names of each kind
FAMILIES = {module.__name__: module for module in models.FAMILIES}
HEAD_KEYS = {
    "ViT": ("head.weight", "head_dist.weight", "head.bias"),
    "RegNet": ("head.fc.weight", "head.fc.bias"),
    "EfficientNet": ("classifier.weight", "classifier.bias"),
}
# ends of the name of a tensor that the models of one family alone have
FIRST_KEYS = {
    "ViT": ("patch_embed.proj.weight", "patch_embeddings.projection.weight"),
    "RegNet": ("stem.conv.weight",),
    "EfficientNet": ("conv_stem.weight",),
}
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model's class and the arguments that make it.

    Attributes:
        name: a registry name of that shape, the name of the user's own class, or "".
        module: class of the model.
        config: its arguments; `num_classes` is 0 where the weights have no head.
    """

    name: str
    module: type[nnx.Module]
    config: dict

    @property
    def img_size(self) -> int | tuple[int, int]:
        """Pixels per side, or (height, width)."""
        return all_arguments(self.module, self.config)["img_size"]

    def constructor(self, **overrides) -> functools.partial:
        """A callable of `rngs`; arguments left at None keep the weights' own."""
        arguments = self.config | {k: v for k, v in overrides.items() if v is not None}
        return functools.partial(on_any_mesh(self.module), **arguments)

    def describe(self) -> str:
        """The model in a few words: "deit_tiny_patch16_224 (ViT of width 192, depth 12, patch 16)"."""
        text = self.module.__name__
        if self.module is vit.ViT:
            config = all_arguments(self.module, self.config)
            text = "ViT of width {embed_dim}, depth {depth}, patch {patch_size}".format(**config)
            text = f"distilled {text}" if config["distilled"] else text
        return f"{self.name} ({text})" if self.name else f"a {text}"


def architecture_of(
    shapes: Shapes, naming: Naming, metadata: Metadata, source: str, *, name: str = "", img_size: Any = None
) -> Architecture:
    """The architecture of a file's tensors.

    Args:
        shapes: name → PyTorch shape, the names in `naming`.
        metadata: its `name` is a registered model's, or "".
        source: for error messages.
        name, img_size: what they are where the metadata does not say.

    Raises UserError where nothing names the model, or the metadata does not fit the tensors.
    """
    name = metadata.name if metadata.name in models.list_models() or is_own(metadata.name) or not name else name
    if is_own(name):
        module, config = models.find(name)
        return Architecture(name, module, {"num_classes": 0} | config | metadata.arguments)
    if metadata.family in FAMILIES:
        module, config = FAMILIES[metadata.family], dict(metadata.arguments)
    elif name:
        module, config = models.find(name)
        config = config | metadata.arguments
    else:
        raise UserError(unnamed(shapes, source))
    shape = lambda key: shapes.get(naming.split(key)[0], ())
    heads = [shape(key)[0] for key in HEAD_KEYS[module.__name__] if shape(key)]
    config["num_classes"] = next(iter(heads), 0)
    if module is vit.ViT:
        full = all_arguments(module, config)
        if isinstance(naming, HuggingFace) and naming.head == "classifier" and heads and full["distilled"]:
            config["two_heads"] = False  # DeiTForImageClassification: the distillation token has no head of its own
        if len(shape("pos_embed")) == 3 and bool(shape("dist_token")) == full["distilled"]:
            patches, own = shape("pos_embed")[1] - positions_before_patches(full), metadata.arguments.get("img_size")
            config["img_size"] = own or fitting_size(patches, full["patch_size"], [img_size, full["img_size"]], source)
    return Architecture(registry_name(module, config, name), module, config)


def positions_before_patches(config: Mapping[str, Any]) -> int:
    """How many positions of a ViT of all these arguments are not of patches."""
    return 0 if config["no_embed_class"] else 1 + config["distilled"] + config["reg_tokens"]


def all_arguments(module: type[nnx.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the defaults of the module's constructor."""
    parameters = inspect.signature(module.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)


def registry_name(module: type[nnx.Module], config: dict, hint: str) -> str:
    """The name of the registered model that `config` makes, whatever its size in pixels, classes, epsilon and initial
    weights: `hint` if it is one of several, else one of the same size; "" where there is none."""
    free = ("num_classes", "img_size", "norm_eps", "init_std")
    plain = lambda config: (
        {k: v for k, v in all_arguments(module, config).items() if k not in free}
        | {
            "init_values": bool(config.get("init_values"))  # how LayerScale began does not matter any more
        }
    )
    alike = {name: other for name, other in models.FAMILIES[module].items() if plain(other) == plain(config)}
    sized = [name for name, other in alike.items() if other.get("img_size") == config.get("img_size")]
    return hint if hint in alike else next(iter([*sized, *alike]), "")


def registered_name(hint: str) -> str:
    """The longest registry name that `hint` begins with ("deit_small_patch16_224-cd65a155", "facebook/deit-tiny-…",
    "vit_tiny_patch16_224.augreg_in21k"), or ""."""
    bare = hint.split("/")[-1].replace("-", "_")
    fits = [name for name in models.list_models() if re.match(rf"{re.escape(name)}(?![a-zA-Z0-9])", bare)]
    return max(fits, key=len, default="")


def fitting_size(patches: int, patch: int, sizes: list, source: str) -> int | tuple[int, int]:
    """The first of `sizes` (pixels, (height, width) or None) that has so many patches, else a square's."""
    for size in sizes:
        height, width = (size, size) if isinstance(size, int) else size or (0, 0)
        if (height // patch) * (width // patch) == patches:
            return size
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise UserError(
            f"{source}: the grid of its {patches} patch positions is not known: give img_size=(height, width), or"
            " image_size in a config.json beside the weights"
        )
    return side * patch


def unnamed(shapes: Shapes, source: str) -> str:
    """The error for weights of which nothing says what model they are: it names models of their family."""
    family = next((name for name, ends in FIRST_KEYS.items() if any(key.endswith(ends) for key in shapes)), "")
    if not family:
        return f"{source} has an unknown layout (it holds {listed(list(shapes)[:3])} …): see deit_jax.list_models()"
    names = sorted(models.FAMILIES[FAMILIES[family]])
    return (
        f"{source} does not say which model it is: name it, by name=, as NAME.safetensors or in a config.json beside it"
        f' ({{"architecture": NAME}}); its tensors are those of a model like {listed(names)}'
    )


def check_keys(found: Shapes, needed: Shapes, source: str, what: str) -> None:
    """Raise UserError naming the keys that are missing, extra or of another shape than `what` needs."""
    problems = []
    if missing := [key for key in needed if key not in found]:
        problems.append(f"missing {listed(missing)}")
    if extra := [key for key in found if key not in needed]:
        problems.append(f"unknown {listed(extra)}")
    wrong = [k for k in needed if k in found and tuple(found[k]) != tuple(needed[k])]
    if wrong:
        problems.append(listed([f"{k} has shape {tuple(found[k])}, not {tuple(needed[k])}" for k in wrong]))
    if problems:
        raise UserError(f"{source} does not hold {what}: {'; '.join(problems)}")


def listed(keys: list[str]) -> str:
    """Names in a row, the first of many."""
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more
