"""The mesh of all devices of all processes, and how batches and parameters are split over it.

FSDP (ZeRO-3): kernels, their gradients, optimizer state and EMA are stored split over the mesh's `fsdp` axis;
everything else is replicated. A kernel is gathered right before its product, in the type that the product is computed
in, and again in the backward pass; its gradient is scattered back. The models need no code for this: `gather_kernels`
replaces the products of their `nnx.Linear` and `nnx.Conv` layers.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from deit_jax.errors import UserError
from deit_jax.runtime.mesh import mesh_sizes

BATCH_AXES = ("data", "fsdp")  # mesh axes that split a batch
SMALLEST = 2**10  # elements of a kernel below which gathering it costs more than holding it whole

# Models' methods that take images → whether the batch is the leading axis of all that they return.
METHODS = {"__call__": True, "heads": True, "embed": True, "features": True, "inspect": False}


def start_processes(heartbeat_timeout: int = 100) -> None:
    """Join the other processes of a multi-host run, once, before any device is used. A single process needs nothing.

    Slurm's tasks and the hosts that TPU_WORKER_HOSTNAMES lists are found by jax. Elsewhere each process gets
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; or DEIT_JAX_PROCESSES=auto
    where jax knows the cluster by other marks (a Cloud TPU VM's metadata, Open MPI). See docs/scale.md.

    heartbeat_timeout: seconds without a heartbeat after which jax counts a process as lost and ends the others. Raises
    UserError where one of the three variables is missing or is not a number.
    """
    environ = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environ:
        given = [environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        if not all(map(str.isdigit, given)):
            raise UserError(f"JAX_NUM_PROCESSES and JAX_PROCESS_ID are {given}: JAX_COORDINATOR_ADDRESS needs both")
        count, index = map(int, given)
        jax.distributed.initialize(None, count, index, heartbeat_timeout_seconds=heartbeat_timeout)
    elif (
        environ.get("DEIT_JAX_PROCESSES") == "auto"
        or int(environ.get("SLURM_NTASKS", 1)) > 1
        or len(environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_timeout)


def make_mesh(devices: Sequence[Any] | None = None, *, data: int = -1, fsdp: int = 1) -> Mesh:
    """All devices (of all processes) as a mesh of the axes `data` and `fsdp`; -1 takes what the other leaves.

    A batch is split over both, kernels are stored split over fsdp. Raises UserError where the sizes do not make up the
    number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(len(devices), data=data, fsdp=fsdp)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the mesh's `data` and `fsdp` axes."""
    return NamedSharding(mesh, P(tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch → global arrays over the mesh. Asynchronous: returns before the copy is done."""
    split = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(split, v) for k, v in batch.items()}


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """How a parameter of this path ("blocks/attn/qkv/kernel") and shape is stored.

    A kernel's largest axis that divides evenly is split over `fsdp`. The leading axis of stacked blocks is never split:
    a loop over the blocks would have to fetch each block from the device that holds it.
    """
    stacked = is_stacked(path)
    devices = mesh.shape.get("fsdp", 1)
    fitting = [axis for axis in range(stacked, len(shape)) if shape[axis] % devices == 0]
    if devices == 1 or not fitting or not path.endswith("kernel") or math.prod(shape[stacked:]) < SMALLEST:
        return P()
    return P(*[None] * max(fitting, key=lambda axis: shape[axis]), "fsdp")


def is_stacked(path: str) -> bool:
    """Whether the parameter is of blocks that are stacked along its leading axis; those in a list are numbered."""
    return bool(re.search(r"(^|/)blocks/(?!\d)", path))


def param_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each array (or shape) of a tree of parameters, or of a state that holds such trees."""

    def place(keys: tuple, x: Any) -> NamedSharding:
        path = jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value")  # an nnx.State's leaf
        return NamedSharding(mesh, param_spec(path, x.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def constrain_params(tree: Any, mesh: Mesh | None) -> Any:
    """A tree with the parameters' paths (a sum of gradients), inside jit, split as the parameters are stored."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, param_shardings(tree, mesh))


@dataclasses.dataclass(frozen=True)
class GatheredProduct:
    """A product with a kernel that is stored split: the kernel is gathered first, and again in the backward pass.

    Attributes:
        product: (inputs, kernel, …) → outputs, as `jax.lax.dot_general`.
        mesh: the devices.
        stored: how the kernel is split in memory.
        prevent_cse: keep the compiler from gathering once for both passes; not needed where the product is part of
            what a backward pass computes again.
    """

    product: Callable[..., Array]
    mesh: Mesh
    stored: P
    prevent_cse: bool

    def __call__(
        self, inputs: Shaped[Array, "..."], kernel: Shaped[Array, "..."], *args: Any, **options: Any
    ) -> Shaped[Array, "..."]:
        def run(inputs, kernel):
            inside = not jax.sharding.get_abstract_mesh().empty  # where the caller has set a mesh
            for spec in (self.stored, P()):  # the transpose of the first one scatters the gradient
                place = spec if inside else NamedSharding(self.mesh, spec)
                kernel = jax.lax.with_sharding_constraint(kernel, place)
            return self.product(inputs, kernel, *args, **options)

        return jax.checkpoint(run, prevent_cse=self.prevent_cse)(inputs, kernel)


def gather_kernels(model: nnx.Module, mesh: Mesh) -> nnx.Module:
    """The same model object, whose layers gather kernels that are stored split."""
    again = getattr(model, "remat", "none") != "none"
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Linear | nnx.Conv):
            product = "dot_general" if isinstance(layer, nnx.Linear) else "conv_general_dilated"
            path = "/".join(map(str, (*path, "kernel")))
            stored = P(*param_spec(path, layer.kernel.shape, mesh)[is_stacked(path) :])
            function = getattr(layer, product)
            function = function.product if isinstance(function, GatheredProduct) else function
            if stored != P():
                function = GatheredProduct(function, mesh, stored, prevent_cse=not again)
            setattr(layer, product, function)
    return model


def shard(target: Any, mesh: Mesh) -> Any:
    """Place a model or its arrays on a mesh, kernels split over its axis `fsdp`, if it has one.

        mesh = jax.make_mesh((4, 2), ("data", "fsdp"))
        model = deit_jax.shard(deit_jax.create_model("deit_small_patch16_224"), mesh)  # an NNX model, in place
        variables = deit_jax.shard(variables, mesh)                                    # a tree of arrays

    Args:
        target: an NNX module (also one that holds ours), or a tree of arrays with the paths of the models' parameters
            (Linen variables, gradients, an optimizer's state).
        mesh: any mesh, with Auto or Explicit axes. Batches are to be split over its axes `data` and `fsdp`.

    Returns the model or the arrays.
    """
    if not isinstance(target, nnx.Module):
        return jax.device_put(target, param_shardings(target, mesh))
    state = nnx.state(target)
    nnx.update(target, jax.device_put(state, param_shardings(state, mesh)))
    return gather_kernels(target, mesh)


@functools.cache
def on_any_mesh(module: type[nnx.Module]) -> type[nnx.Module]:
    """The model class, whose `METHODS` (images, …) also take arrays of meshes with Explicit axes.

    `jax.make_mesh` makes such meshes unless told otherwise; there every reshape would need an output sharding. The
    methods run with Auto axes; what they return is split along its leading axis as the images are, or replicated.
    """
    wrapped = {
        name: with_auto_axes(getattr(module, name), first) for name, first in METHODS.items() if hasattr(module, name)
    }
    kept = {name: getattr(module, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(module.__name__, (module,), exec_body=lambda namespace: namespace.update(wrapped | kept))


def with_auto_axes(method: Callable, batch_first: bool) -> Callable:
    """`on_any_mesh` for one method."""

    @functools.wraps(method)
    def call(self, images, **options):
        mesh = explicit_mesh(images, self)
        if mesh is None:
            return method(self, images, **options)
        graphdef, state = nnx.split(self)
        arrays = {name: value for name, value in options.items() if isinstance(value, jax.Array)}
        static = {name: value for name, value in options.items() if name not in arrays}

        def run(state, images, arrays):
            model = nnx.merge(graphdef, state)
            return method(model, images, **arrays, **static), nnx.state(model, nnx.BatchStat)

        split = P(*jax.typeof(images).sharding.spec[:1]) if batch_first else P()
        auto: Callable = jax.sharding.auto_axes(run, out_sharding=(split, P()))
        inside = not jax.sharding.get_abstract_mesh().empty
        with contextlib.nullcontext() if inside else jax.sharding.use_abstract_mesh(mesh):
            out, batch_stats = auto(state, images, arrays)
        nnx.update(self, batch_stats)
        return out

    return call


def explicit_mesh(images: Any, model: nnx.Module) -> Any:
    """The mesh with Explicit axes that the images or the model's parameters lie on, or None."""
    for leaf in (images, *jax.tree.leaves(nnx.state(model, nnx.Param))[:1]):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None
