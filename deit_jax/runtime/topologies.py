"""Devices that are not here, to compile for: TPUs by libtpu and NVIDIA GPUs by jax's CUDA plugin, on Linux x86-64."""

import importlib.util
import math
import os
import re
from typing import Any

import jax

from deit_jax.errors import UserError, first_line

# XLA describes a GPU by such a text (openxla/xla, device_description.proto). The values are those of its own
# specifications, xla/backends/gpu/target_config/specs/{h100_sxm,h200,a100_sxm_80}.txtpb; cuDNN's version decides
# whether its attention is taken.
GPU_TEXT = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  runtime_version: "12.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""
HOPPER = {"shared": 233472, "optin": 232448, "cores": 132, "fpus": 128, "cache": 52428800, "clock": 1.98, "major": 9}
AMPERE = {"shared": 167936, "optin": 166912, "cores": 108, "fpus": 64, "cache": 41943040, "clock": 1.41, "major": 8}
GPUS = {
    "h100": HOPPER | {"name": "NVIDIA H100 80GB HBM3", "memory": 84942979072, "bandwidth": 3352320000000},
    "h200": HOPPER | {"name": "NVIDIA H200 141GB HBM3e", "memory": 151397597184, "bandwidth": 4800000000000},
    "a100": AMPERE | {"name": "NVIDIA A100-SXM4-80GB", "memory": 85100068864, "bandwidth": 2039040000000},
}


def prepare_environment(topology: str) -> None:
    """To be called before jax looks for devices: plan on the CPU, and let libtpu not look for a TPU.

    Args:
        topology: a GPU and how many of one machine, "h100:8", or a TPU chip and grid as libtpu names them, "v5e:4x4";
            "" changes nothing.

    Raises:
        UserError: the name has another form, or the compiler is not installed.
    """
    if not topology:
        return
    gpu = re.fullmatch(rf"({'|'.join(GPUS)}):[1-8]", topology)
    if not gpu and not re.fullmatch(r"v\d+\w?:\d+(x\d+)+", topology):
        raise UserError(
            f"topology '{topology}' is not a chip and its grid: write v5e:4x4, v5p:2x2x2 or v6e:4x4, or 1 to 8 GPUs of"
            f" one machine, {', '.join(f'{name}:8' for name in GPUS)}"
        )
    needed, package = ("jax_cuda12_plugin", "'deit-jax[plan-gpu]'") if gpu else ("libtpu", "libtpu")
    if importlib.util.find_spec(needed) is None:
        raise UserError(f"a plan for devices that are not here needs their compiler: pip install {package}")
    if not gpu:
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
    """The devices of a topology, for compiling only. Raises UserError with the compiler's reason."""
    from jax.experimental import topologies

    name, _, count = topology.partition(":")
    try:
        if name in GPUS:  # slices x machines x GPUs
            text = GPU_TEXT.format(**GPUS[name])
            return topologies.get_topology_desc(name, "cuda", target_config=text, topology=f"1x1x{count}").devices
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"the compiler cannot make topology '{topology}' ({first_line(error)}): take another") from None


def compiler_options(topology: str) -> dict[str, Any]:
    """What XLA has to be told to compile for a topology: on a GPU that is not here no kernel can be timed. Products
    are then cuBLAS's, which a GPU takes for nearly all of a ViT's: XLA's own (Triton's) are chosen by their times."""
    if topology.partition(":")[0] not in GPUS:
        return {}
    return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
