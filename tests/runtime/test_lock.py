"""One process at a time in a folder: the second is told who has it, and a dead process has nothing."""

import os
import signal
import subprocess
import sys

import pytest

from deit_jax.errors import UserError
from deit_jax.runtime import lock

HOLD = """
import sys, time
from deit_jax.runtime import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_who_has_the_folder_and_a_dead_one_has_it_no_longer(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"in use by process {first.pid} on .* since 20..-.* UTC"),
            lock.hold(tmp_path),
        ):
            pass
        with lock.try_hold(tmp_path) as other:
            assert other is not None
            assert f"process {first.pid} on" in other
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with lock.hold(tmp_path):
        assert lock.holder(tmp_path).startswith(f"process {os.getpid()} on")


def test_the_holder_may_hold_again(tmp_path):
    with lock.hold(tmp_path), lock.hold(tmp_path):
        pass
    with lock.try_hold(tmp_path) as other:
        assert other is None


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), lock.hold(tmp_path / "file" / "run"):
        pass
