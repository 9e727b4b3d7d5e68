"""Devices as a mesh with one axis, `data`; where batches and parameters lie on it; several processes.

Rules stand outside the models: a parameter's place follows from its shape alone, so any model can be sharded.
"""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def start_processes() -> None:
    """Join the other processes of a multi-host run, once, before any device is used.

    SLURM, Open MPI and Cloud TPU pods are recognised by jax; elsewhere set JAX_COORDINATOR_ADDRESS (host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID in each process. A single process needs nothing.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, index)
    elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()


def make_mesh(devices=None) -> Mesh:
    """All devices (of all processes) along `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, P("data"))


def place_params(tree, mesh: Mesh, how: str = "replicated", smallest: int = 2**16):
    """A NamedSharding for each array (or shape) of `tree`.

    how: "replicated", or "fsdp": arrays of at least `smallest` elements are split over `data` along their largest axis
    that divides evenly; XLA gathers them where they are used.
    """
    count = mesh.devices.size

    def place(x):
        axes = [None] * len(x.shape)
        fits = [i for i, n in enumerate(x.shape) if n % count == 0]
        if how == "fsdp" and count > 1 and np.prod(x.shape) >= smallest and fits:
            axes[max(fits, key=lambda i: x.shape[i])] = "data"
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(place, tree)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch → global arrays over the mesh. Asynchronous: returns before the copy is done."""
    split = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(split, v) for k, v in batch.items()}
