"""What the processes of one run say to each other beside their devices' collectives."""

import jax
from orbax.checkpoint import multihost

A_MONTH = 30 * 24 * 3600  # seconds


def wait_for_process_0(name: str) -> None:
    """Return when every process has called this with the same name, however long process 0 takes.

    A process that ends alone waits in jax's shutdown barrier, which gives up after 300 s and ends the others badly.
    """
    if jax.process_count() > 1:
        multihost.sync_global_processes(name, timeout=A_MONTH)
