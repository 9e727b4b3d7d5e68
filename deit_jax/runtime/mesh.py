"""Sizes of the mesh's axes; apart from sharding.py because settings are checked before jax is imported."""

import math

from deit_jax.errors import UserError


def mesh_sizes(num_devices: int, *, data: int = -1, fsdp: int = 1, tensor: int = 1) -> dict[str, int]:
    """{mesh axis: devices}, -1 filled in. Raises UserError where they do not make up `num_devices`."""
    if data == fsdp == -1:
        data = 1  # mesh.fsdp=-1 alone: all over fsdp
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    shown = " ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == -1]
    given = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) > 1 or min(size for size in (*sizes.values(), 1) if size != -1) < 1:
        raise UserError(f"{shown}: each is a number of devices from 1 on, and at most one is -1, the rest")
    if num_devices % given or (not open_axes and given != num_devices):
        raise UserError(f"{shown} does not make up {num_devices} devices: use divisors of it, and -1 for the rest")
    return {name: num_devices // given if size == -1 else size for name, size in sizes.items()}
