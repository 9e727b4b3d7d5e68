"""Ending a run by a signal without losing it."""

import signal


class Interrupted(Exception):
    """A signal asked the run to end; its state is saved."""


class Stop:
    """While active, SIGINT and SIGTERM are noted in `signal` instead of ending the process; a second one ends it."""

    signal: int | None = None

    def __enter__(self):
        self.before = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number, frame):
        if self.signal is not None:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)
        self.signal = number

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
