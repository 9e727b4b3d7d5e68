"""The first signal requests a stop after the current step, a second one has its default effect; processes stop
together."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from helpers import ROOT, held_port

from deit_jax.runtime.stop import Stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_requests_a_stop_and_the_handlers_are_restored(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with Stop() as stop:
        assert not stop.poll()
        signal.raise_signal(number)
        assert not stop.requested
        assert stop.poll()
        assert stop.poll()
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    with Stop() as stop:
        assert not stop.poll()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_has_its_default_effect():
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    with Stop():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, found)


PROGRAM = """
import sys, time
from deit_jax.runtime import sharding
from deit_jax.runtime.stop import Stop
sharding.start_processes(int(sys.argv[1]))
import jax
with Stop() as stop:  # as labelling, in which processes may have different numbers of batches
    for _ in range(10 * jax.process_index()):
        stop.poll()
with Stop() as stop:
    print("ready", flush=True)
    step = 0
    while not stop.poll():
        step += 1
        time.sleep(0.02)
print(step, stop.requested, flush=True)
"""


@contextlib.contextmanager
def two_processes(heartbeat_timeout: int = 1500) -> Iterator[list[subprocess.Popen]]:
    """Two processes of one run, both of which poll until they are told to stop."""
    common = {**os.environ, "JAX_NUM_PROCESSES": "2", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PROGRAM, str(heartbeat_timeout)]
    with held_port() as port:
        common["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
        started = [subprocess.Popen(command, env=common | {"JAX_PROCESS_ID": str(i)}, **pipes) for i in range(2)]
        try:
            for process in started:
                assert "ready\n" in iter(process.stdout.readline, "")
            yield started
        finally:
            for process in started:
                process.kill()
                process.wait()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step():
    with two_processes() as processes:
        processes[1].send_signal(signal.SIGTERM)
        found = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    assert found[0][0] == found[1][0]
    assert found[0][0].endswith("True\n")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_ends_the_other_after_the_heartbeat_timeout(killed):
    with two_processes(heartbeat_timeout=10) as processes:
        processes[killed].kill()
        processes[1 - killed].communicate()
    assert processes[1 - killed].returncode == -signal.SIGABRT
