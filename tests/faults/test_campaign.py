"""A small version of the campaign that `python -m benchmarks.faults` runs: a few of the rows that cost little.

The rows that start whole runs (kills of training, double starts, signals) have tests of their own in
tests/test_main.py and tests/runtime.
"""

import json
import subprocess
import sys

import pytest
from helpers import ROOT

COUNTS = {"saves": 4, "labels": 3, "damaged": 5, "flips": 20}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """(what is printed, figures by row)."""
    folder = tmp_path_factory.mktemp("faults")
    counts = [f"--{row}={count}" for row, count in COUNTS.items()]
    command = [sys.executable, "-m", "benchmarks.faults", f"--only={','.join(COUNTS)}", *counts, f"--folder={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout, json.loads((folder / "faults.json").read_text())


@pytest.mark.parametrize("row", COUNTS)
def test_a_few_of_each_hold(campaign, row):
    printed, rows = campaign
    assert rows[row]["failures"] == []
    assert rows[row]["held"] == rows[row]["tried"] >= COUNTS[row]
    assert f"| {rows[row]['what']} | {rows[row]['tried']} |" in printed
