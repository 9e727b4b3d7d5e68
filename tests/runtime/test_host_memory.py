"""In a process of its own, because what is told to the C library stays."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
import jax, jax.numpy as jnp
from deit_jax.runtime.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
class Statistics(ctypes.Structure):  # mallinfo2 of <malloc.h>
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Statistics
def f(x):  # 80 MB of temporaries
    return jax.lax.fori_loop(0, 2, lambda i, y: jnp.sin(y)[::-1], jnp.broadcast_to(x, (40, 500_000))).sum()
step = jax.jit(f).lower(1.0).compile()
before = mallinfo().arena
for _ in range(3):
    step(1.0).block_until_ready()
print(mallinfo().arena - before)
"""


def heap_growth(how: str) -> int:
    """Bytes by which steps have enlarged the heap, which holds no block that goes back to the system."""
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's allocator"
)
def test_steps_keep_their_memory():
    assert heap_growth("give back") < 20e6 < 80e6 < heap_growth("keep")
