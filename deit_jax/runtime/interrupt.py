"""Ending a run by a signal without losing it.

SIGINT and SIGTERM are heard from the start of a command to its end. While a run has something to save (`Stop`), the
first one is noted and the run ends when it has saved; elsewhere it ends the command within seconds. The second one ends
the process at once. A thread hears them too, as Python's own handlers wait for a compilation or a device to return.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130  # as the shell's for SIGINT
EXIT_LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later
GRACE = 5.0  # seconds that the main thread has to end by itself where nothing has to be saved
REPEAT = 0.5  # seconds within which launchers and terminals may deliver the same signal twice
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the command to end; what had to be saved is saved. As KeyboardInterrupt, no Exception."""


class Stop:
    """While active, a signal is noted in `signal` instead of ending the process.

    Of several processes none may stop alone: there `asked` is true after the same step on all of them, whichever got
    the signal (`deit_jax.runtime.peers`).
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.last: int | None = None  # the step after which all processes stop
        self.step = 0  # that `asked` was last called with
        self.lock = threading.Lock()
        self.listening = contextlib.ExitStack()

    def __enter__(self) -> "Stop":
        self.listening.enter_context(listen())
        STATE.stops.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        STATE.stops.remove(self)
        self.listening.close()

    def asked(self, step: int) -> bool:
        """Whether the run shall end after `step`; to be called after every step, in order."""
        if not STATE.several:
            return self.signal is not None
        with self.lock:  # held while the processes agree on a step
            self.step = step
            return self.last is not None and step >= self.last


class State:
    """What has been heard in this process."""

    def __init__(self) -> None:
        self.stops: list[Stop] = []  # active ones, the innermost last
        self.count = 0  # signals
        self.noted = False  # whether one was noted by a Stop
        self.listening = False
        self.several = False  # whether `peers` has processes agree
        self.saved: Callable[[], str] | None = None  # what a run has saved, for messages; None: nothing to save


STATE = State()


def end_on_signal() -> None:
    """Have a signal end the process with a line until `listen`: for the imports of a command, which take seconds."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: end_now("stopped", EXIT_INTERRUPTED))


@contextlib.contextmanager
def listen() -> Iterator[None]:
    """Hear signals while the block lasts; nested blocks and other threads than the main one change nothing."""
    if STATE.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    closed = threading.Event()
    STATE.listening, STATE.count, STATE.noted, STATE.saved = True, 0, False, None
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda found: end_in_callback(found, unraisable)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    take_signals()
    threading.Thread(target=hear, args=(ours, closed), name="signals", daemon=True).start()
    try:
        yield
    finally:
        closed.set()  # what is heard late, and a timer that runs, must not end what comes after this block
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        STATE.listening = False
        theirs.close()


def take_signals() -> None:
    """Install the handlers; again after jax.distributed, which takes SIGTERM for itself."""
    for number in SIGNALS:
        signal.signal(number, note)


def ignore_signals() -> None:
    """Let the rest of a `listen` block hear nothing; in other threads than the main one it changes nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def note(number: int, frame: FrameType | None) -> None:
    """Python's handler, in the main thread: note the signal where there is something to save, else end the command."""
    if STATE.stops:
        STATE.noted = True
        for stop in STATE.stops:
            stop.signal = number
    else:
        raise Interrupted(stopped())


def stopped() -> str:
    """The line of a command that a signal ended outside its steps: at its start, in its report."""
    return f"stopped; last saved: {saved()}; the same command resumes from there" if STATE.saved else "stopped"


def saved() -> str:
    """What is saved, for a message that has to be said: where the disk cannot be asked, no more than that."""
    try:
        return STATE.saved() if STATE.saved else "what was saved before"
    except Exception:
        return "what was saved before"


def end_in_callback(found: Any, others: Callable[[Any], object]) -> None:
    """Python's hook for errors that nobody can catch: a signal heard in a destructor or a callback ends the command."""
    if isinstance(found.exc_value, Interrupted):
        end_now(stopped(), EXIT_INTERRUPTED)
    else:
        others(found)


def hear(signals: socket.socket, closed: threading.Event) -> None:
    """The listening thread: one byte per signal, as soon as it comes; ends with the block that it listens for."""
    last = -REPEAT
    with signals:
        while (received := signals.recv(1)) and not closed.is_set():
            now = time.monotonic()
            if received[0] not in SIGNALS or now - last < REPEAT:
                continue
            last = now
            STATE.count += 1
            if STATE.count > 1:
                end_now("stopped at once, without saving", EXIT_INTERRUPTED)
            elif STATE.noted or STATE.stops:
                print("stopping after this step, saving first; a second signal quits without saving", file=sys.stderr)
            else:
                end = threading.Timer(GRACE, end_unless_noted, (closed,))
                end.daemon = True
                end.start()


def end_unless_noted(closed: threading.Event) -> None:
    """End the process where its main thread has not left the block, and nothing has to be saved."""
    if not closed.is_set() and not STATE.noted:
        end_now(stopped(), EXIT_INTERRUPTED)


def end_now(text: str, code: int) -> None:
    """Say a line, the last one, and end the process and its workers, whatever its other threads do."""
    print(text, file=sys.stderr, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a thread of jax may be about to print its stack
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)
