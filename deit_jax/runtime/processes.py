"""Waiting of the processes of one run for each other, beside their devices' collectives."""

import itertools

import jax
from orbax.checkpoint import multihost

A_MONTH = 30 * 24 * 3600  # seconds
calls = itertools.count()  # the same on all processes: a barrier's name must be new each time


def wait_for_process_0(name: str) -> None:
    """Return when every process has called this, however long process 0 takes. All must call it in the same order.

    A process that ends alone waits in jax's shutdown barrier, which gives up after 300 s and ends the others badly; a
    collective of the devices has time limits of its own.
    """
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))  # named, it is a barrier of the coordinator, not of the devices
        multihost.sync_global_processes(f"deit_jax/{name}/{next(calls)}", timeout=A_MONTH, processes=everyone)
