"""Runs killed again and again must end as the uninterrupted one, bit for bit."""

import collections
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults import toys
from benchmarks.faults.starts import LONGEST, Start, come_to, draw_moment, in_child, small_run, state_bits
from benchmarks.faults.table import Outcome


def whole_run(work: Callable[[Path], Callable], compare: Callable, folder: Path) -> Any:
    """What an uninterrupted run leaves; it also fills the compilation cache."""
    if not folder.exists():
        start = Start(work(folder), folder.with_suffix(".log"))
        if start.wait() != 0:
            raise RuntimeError("\n".join(start.lines()[-5:]))
    return in_child(lambda: compare(folder), folder.parent)


def kill(
    count: int,
    folder: Path,
    rng: random.Random,
    work: Callable,
    compare: Callable,
    phases: list[dict[str, float]],
    per_run: int,
) -> Outcome:
    """Kill runs at random moments and let them finish.

    Args:
        count: of kills.
        work: (folder) → what a start does.
        compare: (folder) → what must be equal.
        phases: where to kill, as `draw_moment`'s; the kills of a run are spread over the list in its order.
        per_run: kills of one run, which then is let finish.
    """
    truth = whole_run(work, compare, folder / "whole")
    outcome, places = Outcome(), collections.Counter()
    run, log = folder / "run", folder / "run.log"
    while outcome.tried < count:
        mine = done = 0
        shutil.rmtree(run, ignore_errors=True)
        for number in range(min(per_run, count - outcome.tried)):
            moment = draw_moment(rng, phases[number * len(phases) // per_run])
            start = Start(work(run), log, moment.rename)
            if moment.phase == "rename":
                start.wait()
            elif come_to(start, moment):
                start.kill()
            if start.code == 0:  # it was done first
                done += 1
                if done == 3:
                    break
                continue
            if start.code != -signal.SIGKILL:
                outcome.add(False, f"exit code {start.code} before the kill: {start.lines()[-2:]}")
                break
            mine += 1
            saving = start.place() in ("step", "evaluation") and any(run.glob("checkpoints/*.*"))
            places["save" if saving else start.place()] += 1
        start = Start(work(run), log)
        code = start.wait(LONGEST)
        found = in_child(lambda run=run: compare(run), folder) if code == 0 else {}
        differ = sorted(name for name in truth | found if truth.get(name) != found.get(name))
        outcome.add(not differ, f"exit code {code}, not equal: {differ}, {start.lines()[-2:]}", kept=run, times=mine)
    outcome.seen = ", ".join(f"{n} in {name}" for name, n in places.most_common())
    return outcome


def kills(count: int, folder: Path, rng: random.Random) -> Outcome:
    """`kill -9` of training on digits; the finished run compared bit for bit."""
    training = {"start-up": 2.0, "step": 1.5, "evaluation": 0.5, "rename": 6}
    phases = [training, training, training, {"report": 2.0, "rename": 9}]
    return kill(count, folder, rng, small_run, state_bits, phases, per_run=16)


def saves(count: int, folder: Path, rng: random.Random) -> Outcome:
    """`kill -9` of a run that saves after every step; the finished run compared bit for bit."""
    return kill(
        count, folder, rng, toys.toy_run, state_bits, [{"start-up": 0.1, "step": 0.25, "rename": 6}], per_run=25
    )


def labels(count: int, folder: Path, rng: random.Random) -> Outcome:
    """`kill -9` while labels are written; the finished store compared bit for bit."""
    return kill(
        count, folder, rng, toys.toy_labels, toys.label_bits, [{"step": 0.005, "label write": 0.01}], per_run=50
    )
