"""How a command ends: its exit code, its last line, and output that cannot be written."""

import os
import subprocess
import sys

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
    for line in range(20000):
        print("line", line, "caf\\xe9")
    print("progress", file=sys.stderr)
    open(sys.argv[1], "w").write("whole")

main()
"""


def run(tmp_path, shell: str, **variables: str) -> subprocess.CompletedProcess:
    """Run PROGRAM by a line of the shell that names it $PROGRAM, its file $FILE."""
    (tmp_path / "program.py").write_text(PROGRAM)
    names = {"PROGRAM": f"{sys.executable} {tmp_path / 'program.py'}", "FILE": str(tmp_path / "file"), **variables}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | names
    return subprocess.run(["bash", "-c", shell], env=environment, capture_output=True)


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("$PROGRAM $FILE | head -1; exit ${PIPESTATUS[0]}", 141),
        ("$PROGRAM $FILE 2>&1 | head -1; exit ${PIPESTATUS[0]}", 141),
        ("$PROGRAM $FILE > /dev/full", 1),
    ],
)
def test_output_that_cannot_be_written_ends_silently_after_the_work(tmp_path, shell, code):
    done = run(tmp_path, shell)
    assert done.returncode == code
    assert done.stderr in (b"", b"progress\n")
    assert done.stdout in (b"", b"line 0 caf\xc3\xa9\n", b"line 0 caf?\n")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_terminal_that_lacks_a_character_gets_a_replacement(tmp_path):
    done = run(tmp_path, "$PROGRAM $FILE | tail -1", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.stdout, done.stderr) == (b"line 19999 caf?\n", b"progress\n")
