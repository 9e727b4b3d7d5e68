"""A small version of the campaign that `python benchmarks/faults.py` runs."""

import subprocess
import sys

from helpers import ROOT


def test_a_small_campaign_holds(tmp_path):
    none = [f"--{row}=0" for row in ("kills", "saves", "damaged", "full", "doubles", "signals", "lost")]
    command = [sys.executable, ROOT / "benchmarks/faults.py", "--labels=3", "--flips=20", *none, f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 2
    assert "| 20 | 20 |" in rows[1]
