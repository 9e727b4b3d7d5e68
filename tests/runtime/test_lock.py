"""One process at a time in a folder: the second is refused, and a dead process has nothing."""

import signal
import subprocess
import sys

import pytest

from deit_jax.errors import UserError
from deit_jax.runtime import processes

HOLD = """
import sys, time
from pathlib import Path
from deit_jax.runtime import processes
with processes.hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_one_has_the_folder_no_longer(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another process"), processes.hold_folder(tmp_path):
            pass
        with processes.try_hold(tmp_path) as held:
            assert not held
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with processes.try_hold(tmp_path) as held:
        assert held


def test_the_holder_may_hold_again(tmp_path):
    with processes.hold_folder(tmp_path), processes.hold_folder(tmp_path):
        pass
    with processes.try_hold(tmp_path) as held:
        assert held


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), processes.hold_folder(tmp_path / "file" / "run"):
        pass
