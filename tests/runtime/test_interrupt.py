"""A signal is heard within seconds: noted where there is something to save, else the command ends; the second
one is the end at once, whatever the main thread does."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from deit_jax.runtime import interrupt
from deit_jax.runtime.interrupt import STATE, Interrupted, Stop

PROGRAM = """
import contextlib, sys, time
from deit_jax.runtime.interrupt import STATE, Interrupted, Stop, listen
try:
    with listen(), Stop() if "saving" in sys.argv else contextlib.nullcontext():
        print("ready", flush=True)
        while not STATE.count:
            time.sleep(0.01)
        if "slow" in sys.argv:
            time.sleep(30)
        time.sleep(0.2)
        print("saved", flush=True)
except Interrupted as stop:
    print(stop, flush=True)
    sys.exit(130)
"""


def run(*arguments: str, signals: list[int]) -> tuple[int, str, str, float]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    begun = time.perf_counter()
    for number in signals:
        process.send_signal(number)
        time.sleep(1.0)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.perf_counter() - begun


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_is_to_be_saved_the_command_ends(number):
    code, out, err, _ = run(signals=[number])
    assert (code, out, err) == (130, "stopped\n", "")


def test_where_something_is_to_be_saved_it_is_saved_first():
    code, out, err, _ = run("saving", signals=[signal.SIGTERM])
    assert (code, out) == (0, "saved\n")
    assert err == "stopping after this step, saving first; a second signal quits without saving\n"


def test_the_second_signal_ends_at_once():
    code, out, err, seconds = run("saving", "slow", signals=[signal.SIGINT, signal.SIGINT])
    assert (code, out) == (130, "")
    assert err.endswith("stopped at once, without saving\n")
    assert seconds < 20


def test_a_signal_that_the_code_swallows_still_ends_the_command(monkeypatch):
    ended = []
    monkeypatch.setattr(interrupt, "GRACE", 0.05)
    monkeypatch.setattr(interrupt, "end_now", lambda text, code: ended.append((text, code)))
    with interrupt.listen():
        try:
            signal.raise_signal(signal.SIGINT)
        except Interrupted:
            time.sleep(0.5)
    assert ended == [("stopped", 130)]


class Leaving:
    """Its end hears a signal, as any callback may."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_destructor_ends_the_command_in_a_line(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(interrupt, "end_now", lambda text, code: ended.append((text, code)))
    with interrupt.listen():
        leaving = Leaving()
        del leaving
    assert ended == [("stopped", 130)]
    assert capsys.readouterr().err == ""


def test_a_signal_to_one_block_does_not_end_the_next(monkeypatch):
    ended = []
    monkeypatch.setattr(interrupt, "GRACE", 0.2)
    monkeypatch.setattr(interrupt, "end_now", lambda text, code: ended.append((text, code)))
    with pytest.raises(Interrupted), interrupt.listen():
        signal.raise_signal(signal.SIGINT)
    with interrupt.listen():
        time.sleep(0.6)
    assert ended == []


@pytest.mark.parametrize("command", [["main.py"], ["-m", "deit_jax", "train"]])
def test_a_signal_during_the_first_imports_ends_in_a_line(command):
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder, caught = Path(f"/proc/{process.pid}"), 0
    while not caught >> (signal.SIGTERM - 1) & 1:
        caught = int(next(x for x in (folder / "status").read_text().splitlines() if x.startswith("SigCgt:"))[7:], 16)
    assert "jaxlib" not in (folder / "maps").read_text()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"stopped\n")


def test_signals_can_be_ignored_to_the_end_of_a_block_and_no_further():
    before = signal.getsignal(signal.SIGTERM)
    with interrupt.listen():
        interrupt.ignore_signals()
        signal.raise_signal(signal.SIGTERM)
        assert STATE.count == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_outside_the_steps_says_what_is_saved():
    with interrupt.listen():
        assert interrupt.stopped() == "stopped"
        STATE.saved = lambda: "step 30"
        with pytest.raises(Interrupted, match="^stopped; last saved: step 30; the same command resumes from there$"):
            signal.raise_signal(signal.SIGINT)
    with interrupt.listen():
        STATE.saved = lambda: 1 / 0
        assert interrupt.stopped().startswith("stopped; last saved: what was saved before;"), "the disk does not answer"
    with interrupt.listen():
        assert interrupt.stopped() == "stopped", "nothing is kept from the command before"


def test_a_stop_by_itself_hears_and_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop.asked(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked(2)
    assert signal.getsignal(signal.SIGTERM) == before
