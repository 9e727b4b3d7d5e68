"""The processes of one run: a signal to one of them stops all after the same step, and a lost one is noticed.

A thread of each process writes a sign of life to jax's key-value store every second and reads the others'. It speaks
while the main thread is in a compilation or waits for a device, and before jax's own check, which ends the process with
its stack. Where hosts allow it, each process also keeps a connection to process 0. The system closes it when a process
ends, so that a killed one is noticed in seconds; a host that freezes or is cut off, after `lost_after`. All
leave together: one that is lost while others still work, or while they shut down, is noticed as well.
"""

import _thread
import contextlib
import ctypes
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # jax has no public name for its key-value store

from deit_jax.runtime import interrupt
from deit_jax.runtime.interrupt import EXIT_INTERRUPTED, EXIT_LOST, STATE, Interrupted, Stop, end_now, saved, stopped

POLL = 1.0  # seconds
POLL_AT_END = 0.1  # seconds
CUT_OFF = 4.0  # seconds without a sign of life that a process whose connection ended is waited for
AGREEMENT = 60  # seconds that all processes have to name their step
STOP, ALIVE, STEP, LINE = "deit_jax/stop", "deit_jax/alive/", "deit_jax/step/", "deit_jax/line"
DONE, FAILED = "done", "failed"  # signs of life that no longer change
GOODBYE = b"goodbye"


class Peers:
    """This process among the others; the thread runs until `close`."""

    def __init__(self, lost_after: float):
        state = distributed.global_state
        self.client: Any = state.client
        self.index, self.count = state.process_id, state.num_processes
        self.host = str(state.coordinator_address).rpartition(":")[0].strip("[]")
        self.lost_after = lost_after
        self.final = ""  # this process's last sign of life, when its work has ended
        self.all_ended = threading.Event()
        self.closed = threading.Event()
        self.agreed = False
        self.seen = {str(i): ("", time.monotonic()) for i in range(self.count)}  # last sign, and when it changed
        self.thread = threading.Thread(target=self.run, name="peers", daemon=True)
        self.lines: list[socket.socket] = []  # process 0's to the others, theirs to process 0
        self.cut_off: set[str] = set()  # those whose connection to process 0 has ended

    def start(self) -> None:
        """Start the threads."""
        self.thread.start()
        threading.Thread(target=self.serve if self.index == 0 else self.follow, name="line", daemon=True).start()

    def serve(self) -> None:
        """Process 0: keep a connection to each of the others. Who connects must know a secret from jax's store."""
        secret = secrets.token_hex(8)
        with socket.create_server(("", 0), backlog=self.count) as server:
            self.client.key_value_set(LINE, f"{server.getsockname()[1]} {secret}", allow_overwrite=True)
            while True:
                line = server.accept()[0]
                threading.Thread(target=self.attend, args=(line, secret), name="line", daemon=True).start()

    def attend(self, line: socket.socket, secret: str) -> None:
        """Process 0: note when the connection of another process ends without a goodbye."""
        with line:
            name = ""
            try:
                line.settimeout(AGREEMENT)
                name, _, said = line.recv(64).decode(errors="replace").partition(" ")
                if said != secret or name not in self.seen:
                    return
                line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                line.settimeout(None)
                self.lines.append(line)
                ended = line.recv(64) != GOODBYE
            except OSError:
                ended = name in self.seen
            if ended:
                self.cut_off.add(name)

    def follow(self) -> None:
        """The others: end when process 0 does, or says who was lost. jax notices, too, but ends this process with its
        stack.

        Where no connection can be made, between hosts that allow none, the signs of life are all there is.
        """
        try:
            port, secret = self.client.blocking_key_value_get(LINE, AGREEMENT * 1000).split()
            line = socket.create_connection((self.host, int(port)), timeout=AGREEMENT)
        except OSError:
            return
        with line:
            try:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                line.settimeout(None)
                line.sendall(f"{self.index} {secret}".encode())
                self.lines.append(line)
                heard = line.recv(64)
            except ConnectionResetError:
                heard = b""
            except OSError:
                return
        if self.closed.is_set() or heard == GOODBYE:
            return
        if heard:
            self.lost(heard.decode(), "process 0 says so")
        else:
            self.lost("0", "its connection ended")

    def run(self) -> None:
        """Give signs of life, look for the others', hear of signals, until the work of all has ended."""
        count, failures = 0, 0
        while not self.closed.wait(POLL_AT_END if self.final else POLL):
            count += 1
            sign = self.final or str(count)
            try:
                self.client.key_value_set(f"{ALIVE}{self.index}", sign, allow_overwrite=True)
                signs = dict(self.client.key_value_dir_get(ALIVE))
                self.hear_stop()
                failures = 0
            except Exception as error:  # jaxlib's, when process 0, which keeps the store, is gone
                failures += 1
                if failures > 1 and not self.closed.is_set():
                    self.lost("0", f"{type(error).__name__}, twice")
                continue
            self.look(signs, time.monotonic())
            if sign in (DONE, FAILED) and all(signs.get(ALIVE + name) in (DONE, FAILED) for name in self.seen):
                break
        self.all_ended.set()
        while not self.closed.wait(POLL_AT_END):  # jax's store is closing: the connections are what can be watched
            for name in sorted(self.cut_off):
                self.tell(name.encode())
                self.lost(name, "its connection ended")

    def look(self, signs: dict[str, str], now: float) -> None:
        """End this process where another has given no new sign for `lost_after` seconds.

        One that failed is given twice as long: the one that is lost may be why it failed, and is the one to name.
        """
        for name, (before, since) in self.seen.items():
            sign = signs.get(f"{ALIVE}{name}", "")
            if sign != before:
                self.seen[name] = (sign, now)
                continue
            patience = min(CUT_OFF, self.lost_after) if name in self.cut_off else self.lost_after
            if sign == FAILED:
                patience *= 2
            if sign != DONE and now - since > patience and name != str(self.index):
                self.tell(name.encode())
                self.lost(name, "it failed" if sign == FAILED else f"no sign of life for {patience:.0f} s")

    def tell(self, message: bytes) -> None:
        """Send a message to all processes that this one has a connection to."""
        for line in self.lines:
            with contextlib.suppress(OSError):
                line.sendall(message)

    def lost(self, name: str, why: str) -> None:
        """Say which process is lost and what is saved, and end this one."""
        if STATE.count and not STATE.noted:  # all were told to end, and one was faster
            end_now(stopped(), EXIT_INTERRUPTED)
        end_now(
            f"process {name} of {self.count} was lost ({why}); last saved: {saved()}; the same command resumes from"
            " there, with any number of processes",
            EXIT_LOST,
        )

    def hear_stop(self) -> None:
        """Tell the others of a signal to this process, hear of one to them, and agree on a step to stop after."""
        if self.agreed:
            return
        if STATE.count:
            self.client.key_value_set(STOP, str(self.index), allow_overwrite=True)
        else:
            try:
                self.client.key_value_try_get(STOP)
            except Exception:  # jaxlib's NOT_FOUND
                return
            _thread.interrupt_main(signal.SIGTERM)
        self.agreed = True
        if STATE.stops:
            self.agree(STATE.stops[-1])
        else:  # out of its steps: the others need not wait for its number
            self.client.key_value_set(f"{STEP}{self.index}", "0")

    def agree(self, stop: Stop) -> None:
        """Let all processes stop after the same step, which none has passed yet."""
        with stop.lock:  # meanwhile no process begins another step
            self.client.key_value_set(f"{STEP}{self.index}", str(stop.step))
            steps = [int(self.client.blocking_key_value_get(f"{STEP}{i}", AGREEMENT * 1000)) for i in range(self.count)]
            stop.last = max(steps) + 1
            stop.signal = stop.signal or signal.SIGTERM

    def close(self, failed: bool) -> None:
        """Leave together with the others, which are watched until the work of all has ended, however long that takes.

        Where this process failed and the others did not, they may be waiting for it: then it leaves alone, after
        `lost_after` seconds in which a lost process, which may be the cause, would be named.
        """
        self.final = FAILED if failed else DONE
        together = self.all_ended.wait(self.lost_after + 2 * POLL if failed else None)
        if together:
            interrupt.ignore_signals()  # all is done and saved: one that left now would be missed by the others
            jax.distributed.shutdown()
        else:
            abandon()
        self.closed.set()
        if together:
            self.tell(GOODBYE)


def abandon() -> None:
    """Leave jax.distributed as it is: shutting it down waits for the others, destroying it ends this process badly."""
    state = distributed.global_state
    for kept in (state.client, state.service, state.preemption_sync_manager):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    state.client = state.service = state.preemption_sync_manager = None


@contextlib.contextmanager
def slow_abort() -> Iterator[None]:
    """Have an abort of this process wait for six seconds while the block lasts.

    When process 0 is gone, a thread of jax aborts, and it may be faster than the one here that says which process was
    lost and ends with an exit code of its own. The handler is C's sleep, called with the signal's number: it needs
    neither Python nor a lock, and abort() goes on when it returns.
    """
    c = ctypes.CDLL(None)
    c.signal.restype, c.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = c.signal(signal.SIGABRT, ctypes.cast(c.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        c.signal(signal.SIGABRT, before)


@contextlib.contextmanager
def watch(lost_after: float) -> Iterator[None]:
    """Watch the other processes while the block lasts, if there are any; jax.distributed has been started.

    lost_after: seconds without a sign of life after which a process counts as lost.
    """
    if distributed.global_state.client is None or distributed.global_state.num_processes == 1:
        yield
        return
    interrupt.take_signals()
    peers = Peers(lost_after)
    STATE.several = True
    peers.start()
    failed = True
    with slow_abort():
        try:
            yield
            failed = False
        except Interrupted:
            failed = False
            raise
        finally:
            peers.close(failed)
            STATE.several = False
