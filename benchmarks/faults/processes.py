"""Several processes: of the same run, or of the same command twice; and signals to one."""

import collections
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import toys
from benchmarks.faults.kills import whole_run
from benchmarks.faults.starts import (
    SMALL_RUN,
    Moment,
    Start,
    cluster,
    come_to,
    command,
    draw_moment,
    in_child,
    small_run,
    state_bits,
)
from benchmarks.faults.table import Outcome
from deit_jax.distill.label_store import LabelStore
from deit_jax.train.log import read_log

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
    lost = f"--config.processes.lost_after={toys.LOST_AFTER}"
    return command(*SMALL_LABELS, lost, f"--workdir={workdir}", environment=environment)


def training(workdir: Path, environment: dict[str, str] | None = None) -> Callable[[], None]:
    """The small training run, for one of several processes."""
    lost = f"--config.processes.lost_after={toys.LOST_AFTER}"
    return command(*SMALL_RUN, "--config.steps=60", lost, f"--workdir={workdir}", environment=environment)


def stored_labels(folder: Path) -> dict[str, bytes]:
    """The labels of a finished store."""
    store = LabelStore(folder)
    return {"labels": store.read_steps(0, store.array("decision").shape[0])["decision"].tobytes()}


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step."""
    return {record["step"]: record["loss"] for record in read_log(folder) if "loss" in record}


def alike(found: dict, truth: dict) -> bool:
    """Whether two results are equal; numbers to 1e-5, as other numbers of processes take sums in another order."""
    return found.keys() == truth.keys() and all(
        abs(value - truth[key]) <= 1e-5 * abs(truth[key]) if isinstance(value, float) else value == truth[key]
        for key, value in found.items()
    )


# name: what a start does, what must be equal, where it can be disturbed
REAL = {"train": (training, losses, "step"), "label": (small_labels, stored_labels, "label write")}
TOYS = {
    "train": (toys.several_saving, state_bits, "step"),
    "label": (toys.several_labelling, stored_labels, "label write"),
}


def fresh(whole: Path, run: Path) -> None:
    """A folder to start in; the teacher of labels is there already."""
    shutil.rmtree(run, ignore_errors=True)
    if (whole / "teacher").exists():
        shutil.copytree(whole / "teacher", run / "teacher")


def start_several(work: Work, run: Path, count: int) -> list[Start]:
    """The processes of one run."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    logs = [run.with_name(f"process-{i}.log") for i in range(count)]
    return [Start(work(run, cluster(port, i, count)), logs[i], slot=i) for i in range(count)]


def end_all(starts: list[Start]) -> None:
    """End what still runs."""
    for start in starts:
        start.kill()


def disturb(
    modes: dict[str, tuple],
    count: int,
    folder: Path,
    rng: random.Random,
    number: int,
    judge: Callable,
    sizes: list[int],
) -> Outcome:
    """Send a signal to one of several processes again and again, until runs end; training and labelling in turn.

    judge: (starts, index of the one that got it) → what is wrong, or "".
    """
    outcome, slowest, sorts = Outcome(), 0.0, collections.Counter()
    for mode, (work, compare, phase) in modes.items():
        whole, run = folder / f"{mode}-whole", folder / f"{mode}-run"
        truth = whole_run(work, compare, whole)
        for several in sorted(set(sizes)):  # undisturbed, which also fills the compilation cache
            fresh(whole, run)
            codes = [start.wait() for start in start_several(work, run, several)]
            if any(codes) or not alike(in_child(lambda c=compare, r=run: c(r), folder), truth):
                outcome.add(False, f"{mode}, {several} processes undisturbed: {codes}", kept=run)
        mine = 0
        while mine < count // 2:
            fresh(whole, run)
            for _ in range(4):
                several = sizes[mine % len(sizes)]
                starts = start_several(work, run, several)
                victim = rng.randrange(several)
                moment = Moment(*rng.choice([(phase, rng.uniform(0, 2))] * 3 + [("end", rng.uniform(0, 1))]))
                if not all(come_to(s, Moment(phase)) for s in starts) or not come_to(starts[victim], moment):
                    codes = [s.wait(SOON) for s in starts]
                    end_all(starts)
                    if any(codes):
                        outcome.add(False, f"{mode} ended before the signal: {codes}, {starts[0].lines()[-2:]}")
                        mine += 1
                    break  # it was done first
                begun, at_end = time.monotonic(), starts[victim].place() == "end"
                starts[victim].send(number)
                codes = [s.wait(max(0.0, begun + SOON - time.monotonic())) for s in starts]
                if sum(code != 0 for code in codes) <= at_end:
                    break  # all were done just before the signal came
                slowest = max(slowest, time.monotonic() - begun)
                wrong = judge(starts, victim)
                end_all(starts)
                outcome.add(not wrong, f"{mode}, {several} processes, {codes}: {wrong}")
                sorts[f"{mode} with {several}" + (", at the end" if at_end else "")] += 1
                mine += 1
                if wrong or mine >= count // 2:
                    break
            code = Start(work(run), folder / "run.log").wait()
            same = code == 0 and alike(in_child(lambda c=compare, r=run: c(r), folder), truth)
            if not same:
                outcome.add(False, f"{mode} resumed by one process: exit code {code}, same: {same}", kept=run)
                mine += 1
    outcome.seen = ", ".join(f"{n} {sort}" for sort, n in sorts.items()) + f"; slowest end {slowest:.0f} s"
    return outcome


def named(starts: list[Start], victim: int) -> str:
    """What is wrong with how the others ended after a process was killed."""
    text = f"process {victim} of {len(starts)} was lost"
    said = [text in "\n".join(s.lines()[-3:]) for i, s in enumerate(starts) if i != victim]
    codes = [s.code for i, s in enumerate(starts) if i != victim]
    return "" if set(codes) == {75} and all(said) else f"{codes} {[s.lines()[-2:] for s in starts]}"


def lost(count: int, folder: Path, rng: random.Random) -> Outcome:
    """One of several processes killed: the others name it, exit code 75; another number of processes resumes."""
    return disturb(TOYS, count, folder, rng, signal.SIGKILL, named, [2, 4])


def lost_real(count: int, folder: Path, rng: random.Random) -> Outcome:
    """The same of training and labelling digits, where each process compiles."""
    return disturb(REAL, count, folder, rng, signal.SIGKILL, named, [2])


def stopped(starts: list[Start], victim: int) -> str:
    """What is wrong with how all ended after one got a signal. Where the work of all was done, some may have left."""
    said = "stopped" in "\n".join(s.lines()[-1] for s in starts if s.code == 130)  # what is saved is added
    left = {0} if all(s.place() == "end" for s in starts) else set()
    codes = {s.code for s in starts} - left
    return "" if codes == {130} and said else f"{codes} {[s.lines()[-2:] for s in starts]}"


def stops(count: int, folder: Path, rng: random.Random) -> Outcome:
    """SIGTERM to one of several processes: all end saved, exit code 130; the same command resumes."""
    return disturb(TOYS, count, folder, rng, signal.SIGTERM, stopped, [2, 4])


def stops_real(count: int, folder: Path, rng: random.Random) -> Outcome:
    """The same of training and labelling digits, where each process compiles."""
    return disturb(REAL, count, folder, rng, signal.SIGTERM, stopped, [2])


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
        said = len(refused) == 1 and "is in use by process" in refused[0].lines()[-1]
        same = sorted(map(str, codes)) == ["0", "2"] and in_child(lambda: state_bits(run), folder) == truth
        outcome.add(said and same, f"{codes}, same: {same}: {first.lines()[-1:]} {second.lines()[-1:]}", kept=run)
    outcome.seen = "0 to 5 s apart"
    return outcome


def signals(count: int, folder: Path, rng: random.Random) -> Outcome:
    """SIGTERM or SIGINT at a random moment: one line, exit code 130; the finished run compared bit for bit."""
    outcome, slowest, places = Outcome(), 0.0, collections.Counter()
    cases = [
        (small_run, state_bits, {"start-up": 3.0}, 3),
        (small_run, state_bits, {"step": 1.5, "evaluation": 0.5}, 6),
        (small_run, state_bits, {"report": 3.0}, 3),
        (small_labels, stored_labels, {"start-up": 3.0, "label write": 1.0}, 3),
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
                plain = code in (0, 130) and not any("Traceback" in line for line in lines)
                plain &= code == 0 or any("stopped" in line or "resumes from there" in line for line in lines[-2:])
                start.kill()
                outcome.add(plain, f"{mode}, {start.place()}: exit code {code}: {lines[-3:]}")
            code = Start(work(run), folder / "run.log").wait()
            if code != 0 or in_child(lambda c=compare, r=run: c(r), folder) != truth:
                outcome.add(False, f"{mode} resumed: exit code {code}", kept=run)
    outcome.seen = ", ".join(f"{n} in {name}" for name, n in places.most_common()) + f"; slowest end {slowest:.1f} s"
    return outcome
