"""The progress line of evaluations and tools."""

import io
import sys
import time

import pytest

from deit_jax.runtime.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("after", "shown"), [(0.0, True), (60.0, False)])
def test_a_line_with_the_time_that_is_left_where_it_takes_long(monkeypatch, after, shown):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for _ in track(range(3), "batches", 3, after=after):
        time.sleep(0.21)
    assert ("2/3 [00:0" in terminal.getvalue()) == shown
