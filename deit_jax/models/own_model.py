"""A model of the user's own: `model.name=package.module:Class`.

See examples/own_model.py, and deit_jax/own.py for where it is imported from.
"""

import functools
import inspect
import types
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from deit_jax.errors import UserError
from deit_jax.models.inputs import Images
from deit_jax.models.vit import fuse
from deit_jax.own import own_part
from deit_jax.runtime.sharding import is_stacked

OPTIONAL = ("img_size", "dtype")  # what every model is given, and a class need not take
STATELESS = "give nnx.Dropout no rngs but the call's key, nnx.BatchNorm use_running_average=not train"


class OwnNetwork(nnx.Module):
    """The methods that this package's models have, for the class of the user's own that comes after it.

    That class is an nnx.Module, made by Class(num_classes=, rngs=), with img_size= (pixels per side; its own default
    counts where `model.img_size` is 0) and dtype= (of the computation) where it takes them. It is called with
    normalized images, float32 (batch, height, width, 3), with train= and, where it takes one, with key=, a new random
    key per training step, None in evaluation. It returns logits (batch, num_classes), or where it has an attribute
    `head_dist` a tuple of two heads': class and distillation. `augment.mean` and `augment.std` normalize the images.

    Parameters are nnx.Param, batch statistics nnx.BatchStat; it has no other state. Settings of the heads
    (`optimizer.head_lr_scale`, other classes) apply to its attributes `head`, `head_dist` and `classifier`.

    Attributes:
        num_classes: of each head.
        two_heads: whether it has two heads.
    """

    num_classes: int
    two_heads: bool

    def heads(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"] | None]:
        """Logits of the class head and of the distillation head (None where there is none), float32.

        Raises UserError for state that changes, or logits of another shape.
        """
        call: Any = super().__call__
        options = {"key": key} if "key" in inspect.signature(call).parameters else {}
        before, name = jax.tree.leaves(nnx.state(self)), type(self).__name__
        found = call(images, train=train, **options)
        after = jax.tree.leaves(nnx.state(self))
        if len(after) != len(before) or (not train and any(a is not b for a, b in zip(before, after, strict=True))):
            raise UserError(f"model {name} makes state in its call, or changes its state with train=False: {STATELESS}")
        heads: tuple[Any, ...] = found if isinstance(found, tuple) else (found,)
        given, right = [x.shape for x in heads], [(len(images), self.num_classes)] * (1 + self.two_heads)
        if given != right:
            raise UserError(f"model {name} returns shapes {given}: they must be {right} (two heads with a head_dist)")
        return heads[0].astype(jnp.float32), heads[1].astype(jnp.float32) if self.two_heads else None

    def __call__(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch classes"]:
        """Logits, the heads fused."""
        return fuse(*self.heads(images, train=train, key=key))


@functools.cache
def own_model(name: str) -> tuple[type[nnx.Module], dict[str, Any]]:
    """(module class, its constructor's arguments) of the class `package.module:Class`.

    Raises UserError where there is none; its constructor does where it has state that `OwnNetwork` excludes.
    """
    with own_part("model.name", name) as made:
        if not (isinstance(made, type) and issubclass(made, nnx.Module)):
            raise UserError(f"model.name {name} is a {type(made).__name__}: give a class of flax.nnx.Module")
    construct: Any = made.__init__
    taken = inspect.signature(construct).parameters
    takes_any = any(part.kind is part.VAR_KEYWORD for part in taken.values())
    if lacking := [f"{part}=" for part in ("num_classes", "rngs") if part not in taken and not takes_any]:
        raise UserError(f"model.name {name} does not take {', '.join(lacking)}: see deit_jax/models/own_model.py")
    size = taken["img_size"].default if "img_size" in taken else inspect.Parameter.empty

    @functools.wraps(construct)  # its arguments are looked for
    def init(self: Any, *, num_classes: int, img_size: int, rngs: nnx.Rngs, **options: Any) -> None:
        given = {"img_size": img_size} | options
        given = {key: value for key, value in given.items() if key in taken or key not in OPTIONAL}
        construct(self, num_classes=num_classes, rngs=nnx.Rngs(rngs.params()), **given)
        self.num_classes, self.two_heads = num_classes, hasattr(self, "head_dist")
        for path, _ in nnx.to_flat_state(nnx.state(self, nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat)))):
            part = ".".join(map(str, path))
            raise UserError(f"model {name} has state besides nnx.Param and nnx.BatchStat, {part}: {STATELESS}")
        if any(is_stacked("/".join(map(str, path))) for path, _ in nnx.to_flat_state(nnx.state(self))):
            raise UserError(
                f"model {name} has an attribute blocks that is no list: that is for stacked blocks, rename it"
            )

    methods = {"__init__": init, "__module__": made.__module__, "__doc__": made.__doc__}
    module = types.new_class(made.__name__, (OwnNetwork, made), exec_body=lambda namespace: namespace.update(methods))
    return module, {"img_size": 224 if size is inspect.Parameter.empty else size}
