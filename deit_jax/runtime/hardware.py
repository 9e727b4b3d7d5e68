"""What is known of machines: peak rates and memory of accelerators, and which of several ways is best on which."""

import contextlib
import contextvars
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

GIB = 2**30


class Accelerator(NamedTuple):
    """One device.

    Attributes:
        peak: dense bfloat16 FLOP/s.
        memory: bytes.
        link: bytes/s that it can send to all of its neighbours together, while it receives as many; 0: not known.
        bandwidth: bytes/s of its memory that large copies reach, nine tenths of the data sheet's; 0: not known.
    """

    peak: float
    memory: float
    link: float = 0.0
    bandwidth: float = 0.0


# By a part of jax's `device_kind`, the first that matches. Data sheets' rates, but for H100 and H200, whose 989 TFLOP/s
# no power limit allows for long: there it is what large products of random numbers reach. Of v5e's 16 GiB libtpu's
# compiler gives a program 15.75. Links: half of the bidirectional bandwidth that NVIDIA (NVLink) and Google (per chip)
# publish; of TPU v4 a pod's all-reduce bandwidth by its chips, which is the same figure for v5e and v6e.
ACCELERATORS = {
    "H200": Accelerator(790e12, 139 * GIB, 450e9, 4.3e12),
    "H100": Accelerator(790e12, 79 * GIB, 450e9, 3.0e12),
    "A100-SXM4-80GB": Accelerator(312e12, 79 * GIB, 300e9, 1.8e12),
    "A100 80GB": Accelerator(312e12, 79 * GIB),
    "A100": Accelerator(312e12, 39 * GIB),
    "TPU v4": Accelerator(275e12, 32 * GIB, 268e9),
    "TPU v5 lite": Accelerator(197e12, 15.75 * GIB, 200e9),
    "TPU v5": Accelerator(459e12, 95 * GIB, 600e9),
    "TPU v6": Accelerator(918e12, 32 * GIB, 400e9),
}


def accelerator(device_kind: str) -> Accelerator | None:
    """The table's entry for a jax device's `device_kind`; None where there is none (a CPU, another GPU)."""
    return next((known for part, known in ACCELERATORS.items() if part in device_kind), None)


def device_memory(device_kind: str, devices_here: int = 1) -> float | None:
    """Bytes one device has: an accelerator's by the table, a CPU device's share of the machine's; None: not known."""
    known = accelerator(device_kind)
    if known:
        return known.memory
    if device_kind.lower() != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / devices_here


def free_memory() -> float:
    """Bytes of the host's memory that a program can still take, within a container's limit; all of it where the system
    does not tell."""
    free = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as file:
            free += [1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        free.append(float(int(limit) - int(used)))
    return min(free)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_targets: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("targets", default=())


@contextlib.contextmanager
def compiling_for(*devices: Any) -> Iterator[None]:
    """Within it, models and settings are those of `devices`, which need not be here, not of this process's devices."""
    token = _targets.set(devices)
    try:
        yield
    finally:
        _targets.reset(token)


def targets() -> tuple[Any, ...]:
    """The devices that programs are compiled for: those of `compiling_for`, else all that jax has."""
    import jax  # here: settings are checked before jax looks for devices

    return _targets.get() or tuple(jax.devices())


def target() -> Any:
    """The first of `targets`."""
    return targets()[0]


# What "auto" and 0 mean, by setting and platform.
BEST = {
    "dtype": {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"},
    # On CPU, without a loop over the blocks, nothing is won by computing weights twice. cudnn: where it can run, else
    # recompute (`models.kernels.best_attention`)
    "attention": {"cpu": "einsum", "gpu": "cudnn", "tpu": "recompute"},
    # 64: every block of any model. Without a loop nothing is copied into arrays of all layers
    "scan_unroll": {"cpu": 64, "gpu": 64, "tpu": 1},
}


def best(setting: str, value: Any) -> Any:
    """`value`, or, where it is left open ("auto" or 0), what is best on the target's platform."""
    return BEST[setting].get(target().platform, BEST[setting]["gpu"]) if value in ("auto", 0) else value


def compute_dtype(name: str) -> Any:
    """The compute type that a setting names; "auto" is bfloat16 on accelerators and float32 on CPU."""
    import jax.numpy as jnp

    return jnp.dtype(best("dtype", name))
