"""Runs broken in every way that is promised to be survived: `python -m benchmarks.faults`."""
