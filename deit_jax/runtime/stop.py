"""Stop on SIGINT or SIGTERM after the current step or batch, so that its result can be saved first."""

import os
import signal
import threading
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """While this context is active, the first SIGINT or SIGTERM requests a stop; a second one has its default effect.

    With several processes, SIGTERM is handled by jax, which makes all processes stop after the same poll, and SIGINT is
    passed on as SIGTERM. All processes must enter at the same point and poll equally often between collectives.

    Attributes:
        requested: whether the work should end now; updated by `poll`.
    """

    polls = 0  # of all contexts in this process: jax's counter must never go back

    def __init__(self) -> None:
        self.requested = self.received = False

    def __enter__(self) -> "Stop":
        self.several = jax.process_count() > 1
        if self.several:  # processes that labelled different numbers of batches have different counts
            Stop.polls = int(multihost_utils.process_allgather(np.int32(Stop.polls)).max())
        main = threading.current_thread() is threading.main_thread()  # others cannot install handlers
        handled = () if not main else (signal.SIGINT,) if self.several else SIGNALS
        self.previous = {number: signal.signal(number, self.receive) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Reinstall the handlers found on entry."""
        while self.previous:
            signal.signal(*self.previous.popitem())

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)
        self.received = True
        self.restore_handlers()

    def poll(self) -> bool:
        """Update and return `requested`; call after each step and each evaluation or label batch."""
        Stop.polls += 1
        reached = multihost_utils.reached_preemption_sync_point(Stop.polls) if self.several else self.received
        self.requested = self.requested or reached
        return self.requested
