"""Processes, the mesh of all their devices, and batches on it. Where parameters lie is in layout.py."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deit_jax.errors import UserError
from deit_jax.runtime.mesh import mesh_sizes


def start_processes(heartbeat_timeout: int = 100) -> None:
    """Join the other processes of a multi-host run, once, before any device is used. A single process needs nothing.

    Slurm's tasks and the hosts that TPU_WORKER_HOSTNAMES lists are found by jax. Elsewhere each process gets
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; or DEIT_JAX_PROCESSES=auto
    where jax knows the cluster by other marks (a Cloud TPU VM's metadata, Open MPI). See docs/scale.md.

    Args:
        heartbeat_timeout: seconds without a heartbeat after which jax counts a process as lost and ends the others.

    Raises:
        UserError: one of the three variables is missing or is not a number.
    """
    environ = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environ:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        values = [environ.get(name, "") for name in names]
        for name, value in zip(names, values, strict=True):
            if not value.isdigit():
                raise UserError(f"{name} is '{value}': set it to a number beside JAX_COORDINATOR_ADDRESS")
        count, index = map(int, values)
        if index >= count:
            raise UserError(f"JAX_PROCESS_ID is {index} of {count} processes: they count from 0")
        jax.distributed.initialize(
            environ["JAX_COORDINATOR_ADDRESS"], count, index, heartbeat_timeout_seconds=heartbeat_timeout
        )
    elif (
        environ.get("DEIT_JAX_PROCESSES") == "auto"
        or int(environ.get("SLURM_NTASKS", 1)) > 1
        or len(environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_timeout)


def make_mesh(devices: Sequence[Any] | None = None, *, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices (of all processes) as a mesh of the axes `data`, `fsdp` and `tensor`; -1 takes what the others leave.

    A batch is split over data and fsdp; weights are stored split over fsdp; heads and MLPs over tensor.
    Raises UserError where the sizes do not make up the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(len(devices), data=data, fsdp=fsdp, tensor=tensor)
    local = sum(d.process_index == devices[0].process_index for d in devices)
    if local % sizes["tensor"]:
        raise UserError(f"mesh.tensor {tensor} does not divide the {local} devices of a process: use a divisor of them")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the mesh's `data` and `fsdp` axes."""
    return NamedSharding(mesh, P(tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch → global arrays over the mesh. Asynchronous: returns before the copy is done."""
    split = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(split, v) for k, v in batch.items()}
