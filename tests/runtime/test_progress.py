"""The progress line of evaluations and tools."""

import io
import sys
import time

from deit_jax.runtime.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, **options) -> str:
    """What a terminal gets to see of three batches."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in track(range(3), "batches", 3, **options):
        time.sleep(0.21)
    return terminal.getvalue()


def test_the_line_tells_how_much_is_done_and_how_long_the_rest_takes(monkeypatch):
    lines = shown(monkeypatch).split("\r")
    assert any("2/3 [00:00<00:00" in line and "batches/s" in line for line in lines), lines


def test_what_is_short_shows_no_line(monkeypatch):
    assert shown(monkeypatch, after=60.0) == ""
