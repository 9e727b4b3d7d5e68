"""How long a function of the devices takes."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from deit_jax.runtime.processes import from_process_0


class Timing(NamedTuple):
    """Seconds per call: minimum, median and maximum over the timed stretches."""

    minimum: float
    median: float
    maximum: float


def time_once(call: Callable[[], Any], count: int = 1) -> float:
    """Seconds per call, of `count` calls in a row whose results are awaited once, at the end."""
    out, begun = None, time.perf_counter()
    for _ in range(count):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - begun) / count


def calls_within(call: Callable[[], Any], seconds: float) -> int:
    """How many calls take about that many seconds, by process 0's clock: a call may wait for all processes, so that all
    must make as many. The first call, which compiles, is not counted."""
    time_once(call)
    one = time_once(call)
    return from_process_0(lambda: max(1, round(seconds / max(one, 1e-6))))


def time_calls(call: Callable[[], Any], samples: int = 5, seconds: float = 1.0) -> Timing:
    """Time a function that returns arrays of the devices, in `samples` stretches of about that many seconds each."""
    count = calls_within(call, seconds)
    times = [time_once(call, count) for _ in range(samples)]
    return Timing(min(times), statistics.median(times), max(times))
