"""Of several processes all stop after the same step, and one that is gone is named; on a store in place of jax's."""

import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from deit_jax.runtime import peers
from deit_jax.runtime.interrupt import STATE, Stop
from deit_jax.runtime.peers import ALIVE, Peers


class Store:
    """jax's key-value store, for processes that are threads."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        return self.values[key]

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

    def blocking_key_value_get(self, key, timeout_ms):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, timeout_ms / 1000)
            return self.values[key]


def one_of(count: int, index: int, store: Store, lost_after: float = 5.0) -> Peers:
    found = Peers(lost_after)
    found.client, found.index, found.count = store, index, count
    found.seen = {str(i): ("", 0.0) for i in range(count)}
    return found


def test_all_processes_stop_after_the_same_step_which_none_has_passed():
    store, stops = Store(), [Stop(), Stop(), Stop()]
    for stop, step in zip(stops, (4, 6, 5), strict=True):
        stop.step = step
    threads = [threading.Thread(target=one_of(3, i, store).agree, args=(stop,)) for i, stop in enumerate(stops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [stop.last for stop in stops] == [7, 7, 7]
    assert all(stop.signal for stop in stops)


def test_a_run_of_several_stops_at_the_agreed_step(monkeypatch):
    monkeypatch.setattr(STATE, "several", True)
    with Stop() as stop:
        assert not stop.asked(1)
        stop.last = 3
        assert [stop.asked(2), stop.asked(3)] == [False, True]


def test_a_silent_process_is_lost_and_one_that_said_goodbye_is_not(monkeypatch):
    ended = []
    monkeypatch.setattr(peers, "end_now", lambda text, code: ended.append((text, code)))
    monkeypatch.setattr(STATE, "saved", lambda: "step 40")
    mine = one_of(3, 0, Store())
    for second in range(1, 8):
        mine.look({f"{ALIVE}0": str(second), f"{ALIVE}1": str(second), f"{ALIVE}2": "done"}, float(second))
    assert ended == []
    mine.look({f"{ALIVE}0": "8", f"{ALIVE}1": "7", f"{ALIVE}2": "done"}, 11.9)
    assert ended == []
    mine.look({f"{ALIVE}0": "9", f"{ALIVE}1": "7", f"{ALIVE}2": "done"}, 12.1)
    ((text, code),) = ended
    assert code == 75
    assert text.startswith(
        "process 1 of 3 was lost (no sign of life for 5 s); last saved: step 40; the same command resumes"
    )


def test_a_process_whose_connection_ended_is_lost_soon_unless_it_still_lives(monkeypatch):
    ended = []
    monkeypatch.setattr(peers, "end_now", lambda text, code: ended.append(text))
    mine = one_of(3, 0, Store(), lost_after=100.0)
    mine.cut_off = {"1", "2"}
    for second in range(1, 11):
        mine.look({f"{ALIVE}0": str(second), f"{ALIVE}1": str(second), f"{ALIVE}2": str(second)}, float(second))
    assert ended == []
    for second in range(11, 16):
        mine.look({f"{ALIVE}0": str(second), f"{ALIVE}1": str(second), f"{ALIVE}2": "10"}, float(second))
    assert len(ended) == 1
    assert ended[0].startswith("process 2 of 3 was lost (no sign of life for 4 s)")


def test_a_process_that_failed_is_named_after_the_one_that_may_be_the_cause(monkeypatch):
    ended = []
    monkeypatch.setattr(peers, "end_now", lambda text, code: ended.append(text))
    mine = one_of(3, 0, Store())
    for second in (1, 2, 5, 6.5, 10.5):
        mine.look({f"{ALIVE}0": str(second), f"{ALIVE}1": peers.FAILED, f"{ALIVE}2": str(second)}, float(second))
    assert ended == []
    mine.look({f"{ALIVE}0": "12", f"{ALIVE}1": peers.FAILED, f"{ALIVE}2": "12"}, 12.0)
    assert [text.partition(";")[0] for text in ended] == ["process 1 of 3 was lost (it failed)"]


@pytest.fixture
def two(monkeypatch):
    """Two processes that watch each other, and how often jax was shut down."""
    shut_down = []
    monkeypatch.setattr(peers, "POLL", 0.05)
    monkeypatch.setattr(peers.jax.distributed, "shutdown", lambda: shut_down.append(1))
    store = Store()
    both = [one_of(2, i, store) for i in range(2)]
    for one in both:
        one.seen = {name: ("", time.monotonic()) for name in one.seen}
        one.thread.start()
    yield both, shut_down
    for one in both:
        one.closed.set()


@pytest.mark.parametrize("failed", [False, True])
def test_processes_leave_together(two, failed):
    (first, second), shut_down = two
    leaving = threading.Thread(target=first.close, args=(failed,))
    leaving.start()
    leaving.join(0.5)
    assert leaving.is_alive(), "the other still works"
    second.close(False)
    leaving.join(10)
    assert not leaving.is_alive()
    assert len(shut_down) == 2


def test_a_process_that_failed_does_not_wait_for_ever(two, monkeypatch):
    (first, _), shut_down = two
    state = SimpleNamespace(client="client", service="service", preemption_sync_manager=None)
    monkeypatch.setattr(peers.distributed, "global_state", state)
    first.lost_after = 0.2
    first.close(True)
    assert (shut_down, state.client, state.service) == ([], None, None)


def test_a_process_that_is_lost_while_all_shut_down_is_named(two, monkeypatch):
    (first, second), _ = two
    ended, lost = [], threading.Event()
    monkeypatch.setattr(peers, "end_now", lambda text, code: (ended.append(text), lost.set()))
    monkeypatch.setattr(peers.jax.distributed, "shutdown", lambda: lost.wait(10))
    leaving = [threading.Thread(target=one.close, args=(False,)) for one in (first, second)]
    for thread in leaving:
        thread.start()
    assert first.all_ended.wait(10)
    first.cut_off.add("1")
    assert lost.wait(10)
    assert ended[0].startswith("process 1 of 2 was lost (its connection ended); last saved: what was saved before")


def connected(mine: Peers, first: bytes) -> socket.socket:
    """The other end of a connection to process 0, which has been told `first`."""
    ours, theirs = socket.socketpair()
    theirs.sendall(first)
    threading.Thread(target=mine.attend, args=(ours, "secret"), daemon=True).start()
    return theirs


@pytest.mark.parametrize(("said", "cut_off"), [(b"", {"2"}), (peers.GOODBYE, set())])
def test_a_connection_that_ends_without_a_goodbye_is_noted(said, cut_off):
    mine = one_of(3, 0, Store())
    theirs = connected(mine, b"2 secret")
    while not mine.lines:
        time.sleep(0.01)
    mine.tell(b"1")
    assert theirs.recv(64) == b"1"
    theirs.sendall(said)
    theirs.close()
    time.sleep(0.2)
    assert mine.cut_off == cut_off


@pytest.mark.parametrize("said", [b"", b"2 wrong", b"GET / HTTP/1.1", b"\xff\xff", b"7 secret"])
def test_a_stranger_who_connects_changes_nothing(said):
    mine = one_of(3, 0, Store())
    theirs = connected(mine, said)
    theirs.shutdown(socket.SHUT_WR)
    assert theirs.recv(64) == b""
    assert (mine.lines, mine.cut_off) == ([], set())


ABORTING = """
import ctypes, os, threading
from deit_jax.runtime import peers
with peers.slow_abort():
    threading.Timer(0.5, os._exit, (75,)).start()
    ctypes.CDLL(None).abort()  # without the interpreter's lock, as a thread of jax
"""


def test_an_abort_leaves_time_to_end_with_a_code_of_its_own():
    assert subprocess.run([sys.executable, "-c", ABORTING], timeout=60).returncode == 75


def test_a_single_process_has_no_peers():
    with peers.watch(1.0):
        assert not STATE.several
        with pytest.raises(ZeroDivisionError), peers.watch(1.0):
            raise ZeroDivisionError
