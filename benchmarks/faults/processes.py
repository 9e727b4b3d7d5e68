"""Several processes: of the same run, or of the same command twice; and signals to one."""

import collections
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import toys
from benchmarks.faults.kills import whole_run
from benchmarks.faults.starts import (
    Start,
    come_to,
    command,
    draw_moment,
    in_child,
    small_run,
    state_bits,
)
from benchmarks.faults.table import Outcome

SOON = 60  # seconds within which a signal or a loss must have ended a process
SMALL_LABELS = [
    "--mode=label",
    "--config=configs/digits.py",
    "--config.teacher.epochs=1",
    "--config.batch_size=16",
    "--config.steps=1024",
    "--config.data.limit=160",
    "--config.log.tensorboard=False",
]
Work = Callable[..., Callable[[], None]]  # (folder, environment) → what a start does


def small_labels(workdir: Path, environment: dict[str, str] | None = None) -> Callable[[], None]:
    """Labelling 16 chunks of digits by a RegNetY that is trained first, where it is not there."""
    return command(*SMALL_LABELS, f"--workdir={workdir}", environment=environment)


def fresh(whole: Path, run: Path) -> None:
    """A folder to start in; the teacher of labels is there already."""
    shutil.rmtree(run, ignore_errors=True)
    if (whole / "teacher").exists():
        shutil.copytree(whole / "teacher", run / "teacher")


def doubles(count: int, folder: Path, rng: random.Random) -> Outcome:
    """The same command twice: one trains to the end, undisturbed; the other names it and ends with code 2."""
    truth = whole_run(small_run, state_bits, folder / "whole")
    outcome, run = Outcome(), folder / "run"
    for _ in range(count):
        shutil.rmtree(run, ignore_errors=True)
        first = Start(small_run(run), folder / "first.log")
        first.wait(rng.uniform(0, 5))
        second = Start(small_run(run), folder / "second.log", slot=1)
        codes = [first.wait(), second.wait()]
        refused = [s for s in (first, second) if s.code == 2]
        said = len(refused) == 1 and "is in use by another process" in refused[0].lines()[-1]
        same = sorted(map(str, codes)) == ["0", "2"] and in_child(lambda: state_bits(run), folder) == truth
        outcome.add(said and same, f"{codes}, same: {same}: {first.lines()[-1:]} {second.lines()[-1:]}", kept=run)
    outcome.seen = "0 to 5 s apart"
    return outcome


def signals(count: int, folder: Path, rng: random.Random) -> Outcome:
    """SIGTERM or SIGINT at a random moment: exit code 130 in training; the finished run compared bit for bit."""
    outcome, slowest, places = Outcome(), 0.0, collections.Counter()
    cases = [
        (small_run, state_bits, {"start-up": 3.0}, 3),
        (small_run, state_bits, {"step": 1.5, "evaluation": 0.5}, 6),
        (small_run, state_bits, {"report": 3.0}, 3),
        (small_labels, toys.label_bits, {"start-up": 3.0, "label write": 1.0}, 3),
    ]
    runs = [("train", cases[:3]), ("label", cases[3:])]
    while outcome.tried < count:
        for mode, parts in runs:
            work, compare = parts[0][:2]
            whole, run = folder / f"{mode}-whole", folder / f"{mode}-run"
            truth = whole_run(work, compare, whole)
            fresh(whole, run)
            for phases in [part[2] for part in parts for _ in range(part[3])]:
                if outcome.tried >= count:
                    break
                start = Start(work(run), folder / "run.log")
                if not come_to(start, draw_moment(rng, phases)):
                    continue
                begun = time.monotonic()
                saving = any(run.glob("checkpoints/*.*"))
                places["save" if saving else f"{start.place()}"] += 1
                start.send(rng.choice([signal.SIGINT, signal.SIGTERM]))
                code = start.wait(SOON)
                slowest = max(slowest, time.monotonic() - begun)
                lines = start.lines()
                early = start.place() in ("start-up", "report") and code == -signal.SIGTERM  # the default effect
                plain = (early or code in (0, 130)) and not any("Traceback" in line for line in lines)
                plain &= (
                    early or code == 0 or any("stopped" in line or "resumes from there" in line for line in lines[-2:])
                )
                start.kill()
                outcome.add(plain, f"{mode}, {start.place()}: exit code {code}: {lines[-3:]}")
            code = Start(work(run), folder / "run.log").wait()
            if code != 0 or in_child(lambda c=compare, r=run: c(r), folder) != truth:
                outcome.add(False, f"{mode} resumed: exit code {code}", kept=run)
    outcome.seen = ", ".join(f"{n} in {name}" for name, n in places.most_common()) + f"; slowest end {slowest:.1f} s"
    return outcome
