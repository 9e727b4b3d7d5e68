"""In a process of its own, because what is told to the C library stays."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from deit_jax.runtime.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
@jax.jit
def f(x):  # 80 MB of temporaries
    return jax.lax.fori_loop(0, 2, lambda i, y: jnp.sin(y)[::-1], jnp.broadcast_to(x, (40, 500_000))).sum()
def faulted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(1.0).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(20):
    faulted()
print(int(statistics.median(faulted() for _ in range(10))))  # a step in which the heap still grows is no rule
"""


def faults(how: str) -> int:
    """Page faults of a step, the median of ten."""
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=300)
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_steps_fault_in_their_memory_once():
    assert faults("keep") < faults("give back") / 5
