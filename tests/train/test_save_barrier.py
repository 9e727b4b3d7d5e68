"""Processes wait for each other while they save, on a store in place of jax's; a real save that fails is in
tests/faults/test_pair.py."""

import concurrent.futures
import threading

import pytest

from deit_jax.train import save_barrier
from deit_jax.train.save_barrier import LAST, LEAVING, PartFailed, SaveBarrier


class Store:
    """jax's key-value store, for processes that are threads."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()

    def key_value_set(self, key, value):
        with self.lock:
            assert key not in self.values
            self.values[key] = value

    def key_value_dir_get(self, folder):
        with self.lock:
            return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def key_value_delete(self, folder):
        with self.lock:
            self.values = {key: value for key, value in self.values.items() if not key.startswith(folder)}


def together(store: Store, *keys: list[str]) -> list[str]:
    """Each process comes to its barriers in order: what became of it."""
    barriers = [SaveBarrier(store, index, len(keys)) for index in range(len(keys))]
    for barrier in barriers:
        barrier.prefix = "saving/"

    def come(barrier: SaveBarrier, own: list[str]) -> str:
        failures = []
        for key in own:
            try:
                barrier(key=key, timeout_ms=2000)
            except (PartFailed, TimeoutError) as error:
                failures.append(f"{type(error).__name__}: {error}")
        return "; ".join(failures)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(come, barriers, keys))


SAVE = [LEAVING, LAST, "async_write_complete.5", "async_commit_complete.5", LEAVING, LAST]


def test_saves_that_succeed_wait_for_each_other_and_leave_little():
    store = Store()
    assert together(store, 3 * SAVE, 3 * SAVE, 3 * SAVE) == ["", "", ""]
    assert len({key.split("/")[1] for key in store.values}) == 1


@pytest.mark.parametrize("reached", [2, 3])
def test_where_one_fails_the_others_hear_of_it_at_once_and_save_again(reached):
    failing = SAVE[:reached] + SAVE[4:] + SAVE
    whole = SAVE + SAVE
    if reached == 2:  # the others then never come to the commit
        whole = SAVE[:3] + SAVE[4:] + SAVE
    found = together(Store(), whole, failing, whole)
    expected = "PartFailed: [Errno 5] process 1 could not write its part"
    assert found == [expected, "", expected]


def test_one_that_never_comes_is_named():
    barrier = SaveBarrier(Store(), 0, 2)
    with pytest.raises(TimeoutError, match="process 1 did not finish saving in 0 s"):
        barrier(key="async_write_complete.5", timeout_ms=50)


def test_a_single_process_waits_for_nobody():
    assert save_barrier.save_barrier() is None
