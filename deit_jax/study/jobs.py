"""The runs of a study, shared out: the same command, started several times, takes the next run that nobody is at. A run
that ended badly is taken up again by whoever comes next.

Each start has its own core (`taskset -c 0`, `-c 1`, …) or GPU (`CUDA_VISIBLE_DEVICES=0`, `=1`, …).
"""

import contextlib
import datetime
import functools
import json
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from deit_jax.runtime import atomic, hardware, lock
from deit_jax.runtime.processes import wait_for_process_0

POLL = 2.0  # seconds between looks at what others are doing


class Job(NamedTuple):
    """One run. work: () → its result (JSON); needs: folders of the jobs that come before it."""

    folder: Path
    needs: tuple[Path, ...]
    work: Callable[[], dict[str, Any]]


def result(folder: Path) -> dict[str, Any] | None:
    """What the job of `folder` found, the `seconds` it took and `where` it ran; None where it is not done."""
    try:
        return json.loads((folder / "done.json").read_text())
    except FileNotFoundError:
        return None


def finish(job: Job) -> None:
    """Do the job and write done.json; the seconds of a run in several pieces add up."""
    spent, begun = job.folder / "seconds.json", time.perf_counter()
    before = json.loads(spent.read_text()) if spent.exists() else 0.0
    found = None
    try:
        found = job.work()
    finally:
        seconds = round(before + time.perf_counter() - begun, 1)
        if jax.process_index() == 0 and job.folder.exists():
            atomic.write_json(spent, seconds)
    if jax.process_index() == 0:
        atomic.write_json(job.folder / "done.json", {**found, "seconds": seconds, "where": where()})


@functools.cache
def where() -> str:
    """Day, machine, jax and commit of what runs here."""
    device = jax.devices()[0]
    cores = hardware.cores()
    machine = f"{jax.device_count()} x {device.device_kind}"
    if device.platform == "cpu":
        machine = f"{cores} CPU core{'s' * (cores > 1)}"
    at = commit()
    return f"{datetime.date.today()}, {machine}, jax {jax.__version__}" + (f", commit {at}" if at else "")


def commit() -> str:
    """The commit of this checkout, "" where the package lies in none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def at_most_every(seconds: float, function: Callable[[], Any]) -> Callable[[], None]:
    """`function`, but calls within `seconds` of the last one that ran do nothing."""
    last = -math.inf

    def limited() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            function()
            last = time.monotonic()

    return limited


def run_jobs(jobs: list[Job], after: Callable[[], None]) -> None:
    """Do what is not done, in order where needs and other processes allow; returns when all is done, by whomever.

    after: called after each job of this process. The processes of one multi-process run stay together, job by job.
    """
    if jax.process_count() > 1:
        done = np.array([result(job.folder) is not None for job in jobs])
        done = multihost_utils.broadcast_one_to_all(done)  # a network disk may show it late
        for job in (job for job, d in zip(jobs, done, strict=True) if not d):
            finish(job)
            if jax.process_index() == 0:
                after()
            wait_for_process_0("job")  # which records and reports alone
        return
    todo = list(jobs)
    while todo := [job for job in todo if result(job.folder) is None]:
        for job in todo:
            if all(result(folder) is not None for folder in job.needs):
                with lock.try_hold(job.folder) as other:
                    if other is None and result(job.folder) is None:
                        finish(job)
                        after()
                        break  # look again from the first: what this one was needed for comes next
        else:
            time.sleep(POLL)
