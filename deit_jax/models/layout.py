"""Where arrays lie on a mesh: logical axes of parameters, one table of rules to mesh axes, and FSDP's gathers.

A parameter's axes have logical names, found by its path (`LOGICAL_AXES`); `RULES` maps these to mesh axes. A mesh axis
that splits the batch cannot split a weight while it is used. So a weight stored over such an axis (FSDP, ZeRO-3) is
gathered right before its block runs, gathered again in the backward pass, and its gradient is scattered back. Any other
axis (tensor parallelism) stays split while it is used.

The names stand outside the models, so that any tree of arrays with these paths can be placed: parameters, gradients,
the optimizer's moments, averaged weights.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from deit_jax.errors import UserError, nearest

# End of a parameter's path → names of its last axes. Stacked blocks have one more, "layers", in front, which is never
# split: a loop over the blocks would have to fetch each block from the device that holds it.
LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    "patch_embed/kernel": (None, None, None, "embed"),
    "attn/qkv/kernel": ("embed", "heads"),
    "attn/qkv/bias": ("heads",),
    "attn/proj/kernel": ("heads", "embed"),
    "mlp/fc1/kernel": ("embed", "mlp"),
    "mlp/fc1/bias": ("mlp",),
    "mlp/fc2/kernel": ("mlp", "embed"),
    "head/kernel": ("embed", "classes"),
    "head_dist/kernel": ("embed", "classes"),
}

# Logical name → mesh axes; those that a mesh lacks do nothing.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor", "model"),
    "mlp": ("tensor", "model"),
    "classes": (),
}

SMALLEST = 2**12  # elements of one layer; to gather smaller arrays costs more than to hold them

# Operations that cost next to nothing: where a backward pass keeps results, it keeps what goes into these instead. So
# it keeps a weight as it is stored, and gathers it again.
FREE = ("sharding_constraint", "reshape")

Rules = Mapping[str, str | tuple[str, ...] | None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and what its axes split. Hashable: a model carries it in its structure.

    Attributes:
        mesh: the devices.
        rules: (logical name, mesh axes) pairs, without axes of one device.
        smallest: arrays with fewer elements (per layer) are not split over the batch's axes.
    """

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    smallest: int = SMALLEST

    def axes(self, name: str | None) -> tuple[str, ...]:
        """Mesh axes of a logical name."""
        return dict(self.rules).get(name or "", ())

    def count(self, axes: tuple[str, ...]) -> int:
        """Devices along mesh axes."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def batch_shards(self) -> int:
        """Parts that a batch is split into."""
        return self.count(self.axes("batch"))

    def stored(self, path: str, shape: tuple[int, ...]) -> P:
        """How a parameter of this path ("blocks/attn/qkv/kernel") and shape is split in memory.

        An axis is split as its logical name says where its size divides evenly. If that leaves a large array whole on
        the axes that store weights (those of the batch that some rule also gives to weights), its largest axis that
        divides evenly is split instead; arrays of unknown names (ConvNets) are placed by this alone.
        """
        names = logical_axes(path, len(shape))
        batch = self.axes("batch")
        stacked = names[:1] == ("layers",)
        large = math.prod(shape[stacked:]) >= self.smallest
        placed: list[tuple[str, ...]] = []
        for name, size in zip(names, shape, strict=True):
            axes = tuple(a for a in self.axes(name) if large or a not in batch)
            placed.append(axes if axes and size % self.count(axes) == 0 else ())
        storing = tuple({a: None for name, axes in self.rules if name != "batch" for a in axes if a in batch})
        if storing and large and not any(set(axes) & set(storing) for axes in placed):
            free = [i for i in range(stacked, len(shape)) if not placed[i] and shape[i] % self.count(storing) == 0]
            if free:
                placed[max(free, key=lambda i: shape[i])] = storing
        return P(*(axes or None for axes in placed))

    def used(self, path: str, shape: tuple[int, ...]) -> P:
        """How the parameter is split while a block computes with it: as stored, less the batch's axes."""
        batch = self.axes("batch")
        stored = [(axes,) if isinstance(axes, str) else axes or () for axes in self.stored(path, shape)]
        kept = [tuple(a for a in axes if a not in batch) for axes in stored]
        return P(*(axes or None for axes in kept))

    def constrain(self, x: Shaped[Array, "*shape"], spec: P) -> Shaped[Array, "*shape"]:
        """x, split as `spec` says; inside jit, eager, and where the caller has set a mesh."""
        inside = not jax.sharding.get_abstract_mesh().empty
        return jax.lax.with_sharding_constraint(x, spec if inside else NamedSharding(self.mesh, spec))

    def pin(self, x: Shaped[Array, "*shape"], *names: str | None) -> Shaped[Array, "*shape"]:
        """An activation (batch, …), split over the batch's axes, and as `names` say along the next axes."""
        axes = [self.axes(name) for name in ("batch", *names)]
        even = [a if a and n % self.count(a) == 0 else None for a, n in zip(axes, x.shape, strict=False)]
        return self.constrain(x, P(*even))


def make_layout(mesh: Mesh, rules: Rules | None = None, smallest: int = SMALLEST) -> Layout:
    """The layout of a mesh by `RULES`, in which `rules` replaces what it names.

    Raises UserError for a logical name or a mesh axis that does not exist.
    """
    named = {name: (axes,) if isinstance(axes, str) else tuple(axes or ()) for name, axes in (rules or {}).items()}
    for name, axes in named.items():
        if name not in RULES:
            raise UserError(f"rule '{name}' is not a logical axis{nearest(name, RULES)}: use {', '.join(RULES)}")
        for axis in axes:
            if axis not in mesh.axis_names:
                raise UserError(f"rule {name}: the mesh has no axis '{axis}', but {', '.join(mesh.axis_names)}")
    present = {name: tuple(a for a in axes if mesh.shape.get(a, 1) > 1) for name, axes in (RULES | named).items()}
    return Layout(mesh, tuple(present.items()), smallest)


def logical_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """Logical names of a parameter's axes; None for an axis without one."""
    parts = path.split("/")
    known = next((axes for end, axes in LOGICAL_AXES.items() if f"/{path}".endswith(f"/{end}")), None)
    if known is not None and rank in (len(known), len(known) + 1):
        return known if rank == len(known) else ("layers", *known)
    inside = parts[parts.index("blocks") + 1 :] if "blocks" in parts else []
    stacked = bool(inside) and not inside[0].isdigit()  # nnx.List numbers its modules; stacked blocks have no number
    return ("layers" if stacked else None, *[None] * (rank - 1)) if rank else ()


def path_of(keys: tuple) -> str:
    """jax's key path as names joined by slashes."""
    names = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in keys]
    return "/".join(str(name) for name in names if name != "value")


def place_params(tree: Any, layout: Layout) -> Any:
    """A NamedSharding for each array (or shape) of a tree of parameters, or of a state that holds such trees."""
    place = lambda keys, x: NamedSharding(layout.mesh, layout.stored(path_of(keys), x.shape))
    return jax.tree_util.tree_map_with_path(place, tree)


def pin_params(tree: Any, layout: Layout | None) -> Any:
    """A tree with the parameters' paths (a sum of gradients), inside jit, split as the parameters are stored; as it is
    without a layout."""
    if layout is None:
        return tree
    pin = lambda keys, x: layout.constrain(x, layout.stored(path_of(keys), x.shape))
    return jax.tree_util.tree_map_with_path(pin, tree)


def gather(
    layout: Layout, path: str, x: Shaped[Array, "*shape"], dtype: DTypeLike | None = None
) -> Shaped[Array, "*shape"]:
    """A stored weight as a block needs it, cast to `dtype` before it travels.

    The backward pass gathers it again instead of keeping it (`remat_policy`). By the transpose of the first constraint
    its gradient is split as the weight is stored: reduced and scattered, not kept whole.
    """
    stored, used = layout.stored(path, x.shape), layout.used(path, x.shape)
    if stored == used:
        return x
    x = layout.constrain(x if dtype is None else x.astype(dtype), stored)
    return layout.constrain(x, used)


def gathered(skip: str = "", *, cast: bool = False) -> Callable:
    """Decorate a module's method (self, x, …): its weights are gathered and x is split over the batch's axes first.

    Does nothing for a module without a layout (`module.layout` is None).

    Args:
        skip: attribute whose parameters are left alone, because its modules gather their own.
        cast: kernels travel in the module's compute type (`module.dtype`), not in float32.
    """

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(self, x, **options):
            layout = self.layout
            if layout is None:
                return method(self, x, **options)

            def one(keys, leaf):
                path = path_of(keys)
                if skip and path.split("/")[0] == skip:
                    return leaf
                return gather(layout, path, leaf, self.dtype if cast and path.endswith("kernel") else None)

            graphdef, params, rest = nnx.split(self, nnx.Param, ...)
            model = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(one, params), rest)
            out = method(model, layout.pin(x), **options)
            nnx.update(self, nnx.state(model, nnx.BatchStat))
            return out

        return call

    return decorate


def remat_policy(layout: Layout | None) -> Callable | None:
    """What jax.checkpoint keeps of a block where nothing is to be recomputed: all but gathered weights. None: as it
    is, for a layout that gathers nothing."""
    if layout is None or not any(set(layout.axes("batch")) & set(a) for n, a in layout.rules if n != "batch"):
        return None
    return lambda primitive, *_, **__: primitive.name not in FREE


def any_mesh(method: Callable) -> Callable:
    """Decorate a module's method (self, x, …) so that it also takes arrays of meshes with Explicit axes.

    `jax.make_mesh` makes such meshes unless told otherwise; there every reshape would need an output sharding. The
    method runs with Auto axes; what it returns is split along its leading axis as x is (`any_mesh_by` for methods whose
    outputs have the batch elsewhere).
    """
    return any_mesh_by()(method)


def any_mesh_by(batch_axis: Mapping[str, int] | None = None) -> Callable:
    """`any_mesh` for a method that returns a dictionary, with the axis of the batch in each of its entries."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(self, x, **options):
            mesh = explicit_mesh(x, self)
            if mesh is None:
                return method(self, x, **options)
            graphdef, state = nnx.split(self)
            arrays = {name: value for name, value in options.items() if isinstance(value, jax.Array)}
            static = {name: value for name, value in options.items() if name not in arrays}

            def run(state, x, arrays):
                model = nnx.merge(graphdef, state)
                out = method(model, x, **arrays, **static)
                return out, nnx.state(model, nnx.BatchStat)

            batch = tuple(jax.typeof(x).sharding.spec[:1])
            spec = {name: P(*[None] * axis, *batch) for name, axis in batch_axis.items()} if batch_axis else P(*batch)
            auto: Callable = jax.sharding.auto_axes(run, out_sharding=(spec, P()))
            if jax.sharding.get_abstract_mesh().empty:
                with jax.sharding.use_abstract_mesh(mesh):
                    out, batch_stats = auto(state, x, arrays)
            else:
                out, batch_stats = auto(state, x, arrays)
            nnx.update(self, batch_stats)
            return out

        return call

    return decorate


def explicit_mesh(x: Any, module: nnx.Module) -> Any:
    """The mesh with Explicit axes that x or the module's parameters lie on; None where there is none."""
    for leaf in (x, *jax.tree.leaves(nnx.state(module, nnx.Param))[:1]):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def with_layout(model: nnx.Module, layout: Layout) -> nnx.Module:
    """The same model object, every module of ours in it told its layout."""
    for _, module in nnx.iter_modules(model):
        if hasattr(type(module), "layout"):
            module.layout = layout  # pyright: ignore[reportAttributeAccessIssue]
    return model


def shard(target: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """Place a model or its arrays on a mesh, by logical axes.

        mesh = jax.make_mesh((4, 2), ("data", "model"))
        model = deit_jax.shard(deit_jax.create_model("deit_small_patch16_224"), mesh)      # an NNX model, in place
        linen = deit_jax.shard(deit_jax.to_linen("deit_small_patch16_224"), mesh)          # a Linen module's copy
        variables = deit_jax.shard(variables, mesh)                                        # arrays: a tree of them

    Args:
        target: an NNX module (also one that holds ours), a module of `to_linen`, or a tree of arrays with the paths of
            the models' parameters (Linen variables, gradients, an optimizer's state).
        mesh: any mesh, with Auto or Explicit axes. The default rules know axes called data, fsdp, and tensor or model.
        rules: logical axis (`batch`, `embed`, `heads`, `mlp`, `classes`) → mesh axis, several, or None; replaces the
            default for the names it has. {"embed": "data"} is FSDP over the data axis.

    Returns the model or the arrays. Raises UserError for a rule that does not fit.
    """
    layout = make_layout(mesh, rules)
    if isinstance(target, nnx.Module):
        state = nnx.state(target)
        nnx.update(target, jax.device_put(state, place_params(state, layout)))
        return with_layout(target, layout)
    if isinstance(target, linen.Module):
        if not hasattr(target, "layout"):
            raise UserError(
                f"{type(target).__name__} is not a module of deit_jax.to_linen: shard its variables instead"
            )
        return target.clone(layout=layout)
    return jax.device_put(target, place_params(target, layout))
