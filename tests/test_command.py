"""How a command ends: its exit code and its last line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from deit_jax.command import command
from deit_jax.errors import Interrupted, UserError


@pytest.mark.parametrize(
    ("raised", "code", "out", "err"),
    [
        (UserError("x is 1: use 2"), 2, "", "error: x is 1: use 2\n"),
        (Interrupted("saved at step 3"), 130, "saved at step 3\n", ""),
        (KeyboardInterrupt(), 130, "stopped\n", ""),
        (OSError(5, "no answer", "gs://bucket/x"), 2, "", "error: gs://bucket/x: no answer\n"),
    ],
)
def test_what_a_command_raises_is_one_line(raised, code, out, err, capsys):
    @command
    def main():
        raise raised

    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, *capsys.readouterr()) == (code, out, err)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 // 0)()


def test_the_exit_code_is_what_main_returns():
    command(lambda: None)()
    command(lambda: 0)()
    with pytest.raises(SystemExit, match="^3$"):
        command(lambda: command(lambda: 3)())()


PROGRAM = """
import sys
from deit_jax.command import command

@command
def main():
    for line in range(int(sys.argv[1])):
        print("line", line, "caf\\xe9")

main()
"""


@pytest.mark.parametrize(
    ("shell", "code", "out"),
    [
        ("python -c '{}' 20000 | head -1; exit ${{PIPESTATUS[0]}}", 141, "line 0 caf?\n"),
        ("python -c '{}' 1 | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("python -c '{}' 1", 0, "line 0 caf?\n"),
    ],
)
def test_a_reader_that_is_gone_and_a_terminal_that_lacks_a_character(shell, code, out):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", shell.format(PROGRAM)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, "")
