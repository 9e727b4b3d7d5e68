"""TPU topologies that are not here: libtpu compiles for them on any Linux x86-64 machine."""

import importlib.util
import math
import os
import re
from typing import Any

import jax

from deit_jax.errors import UserError, first_line


def prepare_environment(topology: str) -> None:
    """To be called before jax looks for devices: plan on the CPU, and let libtpu not look for a TPU.

    Args:
        topology: chip and grid as libtpu names them, "v5e:4x4"; "" changes nothing.

    Raises:
        UserError: the name has another form, or libtpu is not installed.
    """
    if not topology:
        return
    if not re.fullmatch(r"v\d+\w?:\d+(x\d+)+", topology):
        raise UserError(f"topology '{topology}' is not a chip and its grid: write v5e:4x4, v5p:2x2x2 or v6e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("a plan for a TPU that is not here needs its compiler: pip install libtpu (Linux, x86-64)")
    chip, _, grid = topology.partition(":")
    chips = math.prod(map(int, grid.split("x")))
    count = chips if chip in ("v5e", "v6e") else 2 * chips  # older names count cores
    os.environ |= {
        "TPU_ACCELERATOR_TYPE": f"{chip.replace('v5e', 'v5litepod')}-{count}",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # libtpu's lock keeps two programs off one TPU; compiling uses none
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    jax.config.update("jax_platforms", "cpu")


def topology_devices(topology: str) -> list[Any]:
    """The devices of a TPU topology, for compiling only. Raises UserError with libtpu's reason."""
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(
            f"libtpu cannot compile for topology '{topology}' ({first_line(error)}): v5e:4x4 and v6e:16x16 are two that"
            " it can; if it is locked, end the other program that uses it"
        ) from None
