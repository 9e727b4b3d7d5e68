"""Ending a run by a signal without losing it."""

import signal

import jax


class Interrupted(Exception):
    """A signal asked the run to end; its state is saved."""


class Stop:
    """While active, SIGINT and SIGTERM are noted in `signal` instead of ending the process; a second one ends it.

    Of several processes none may stop alone: there SIGTERM is left to jax, which has all of them agree on a step.
    """

    signal: int | None = None

    def __enter__(self):
        noted = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
        self.before = {s: signal.signal(s, self.note) for s in noted}
        return self

    def asked(self, manager, step: int) -> bool:
        """Whether the run shall end after `step`. manager: the run's orbax CheckpointManager."""
        return self.signal is not None or (jax.process_count() > 1 and manager.reached_preemption(step))

    def note(self, number, frame):
        if self.signal is not None:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)
        self.signal = number

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
