"""Keeping freed memory, so that a step on CPU does not fault in its temporaries page by page.

XLA's CPU code takes one block for a step's temporaries and gives it back after the step. glibc serves a block that
large by mmap and returns it to the system, so every step pays a page fault for each 4 KiB: a third of the CPU time of a
small DeiT's step (docs/performance.md). Accelerators keep their own pools and gain nothing.

One heap is also one lock: threads that compile or take small blocks wait for each other. Where a step's temporaries are
few, that costs more than the faults.
"""

import ctypes
import os
import sys
from pathlib import Path

# <malloc.h>: options of mallopt
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
MANY_PIXELS = 2**15  # of a batch: with fewer, one heap costs more time than it saves
NEVER = -1  # glibc's manual: a threshold of -1 switches trimming off; 2**31 - 1 still gives back a step of 2 GiB


def cpu_only() -> bool:
    """Whether jax will run on CPU here, as far as can be told before it starts."""
    devices = [
        path for pattern in ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)
    ]
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not devices


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from one heap and to keep them. Call it before jax makes its threads.

    Returns whether it was done: False where the C library is another. The process' memory then never shrinks.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # blocks above 64 MiB fit in no arena but the first
    return all([libc.mallopt(M_ARENA_MAX, 1), libc.mallopt(M_MMAP_MAX, 0), libc.mallopt(M_TRIM_THRESHOLD, NEVER)])
