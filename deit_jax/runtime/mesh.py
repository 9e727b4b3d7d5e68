"""Sizes of the mesh's axes; apart from sharding.py because settings are checked before jax is imported."""

from deit_jax.errors import UserError


def mesh_sizes(num_devices: int, *, data: int = -1, fsdp: int = 1) -> dict[str, int]:
    """{mesh axis: devices}, -1 filled in. Raises UserError where they do not make up `num_devices`."""
    given = f"mesh.data={data} mesh.fsdp={fsdp}"
    if min(data, fsdp) < -1 or 0 in (data, fsdp):
        raise UserError(f"{given}: each is a number of devices from 1 on, or -1 for the rest")
    data = 1 if data == fsdp == -1 else data  # mesh.fsdp=-1 alone: all over fsdp
    data = num_devices // fsdp if data == -1 else data
    fsdp = num_devices // data if fsdp == -1 else fsdp
    if data * fsdp != num_devices:
        raise UserError(f"{given} does not make up {num_devices} devices: use divisors of it, and -1 for the rest")
    return {"data": data, "fsdp": fsdp}
