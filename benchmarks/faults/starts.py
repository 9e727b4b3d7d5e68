"""Starts of the program as forks of this process, ended at a chosen place, and what they leave behind.

A fork of a process that has imported everything and touched no device costs tracing and loading alone. A start tells
through shared memory where it is, so that it can be ended there; `rename` means inside a call of os.rename.
"""

import contextlib
import functools
import json
import mmap
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint
from etils import epath

from deit_jax import experiment, label
from deit_jax.__main__ import main
from deit_jax.train import loop
from deit_jax.train.log import read_log
from deit_jax.weights import integrity

LONGEST = 900  # seconds for one start
PHASES = ("start-up", "step", "evaluation", "save", "rename", "label write", "report", "end")
SLOTS = mmap.mmap(-1, 16)  # shared with the forks: where the start of each slot is, as index of PHASES

SMALL_RUN = [
    "--config=configs/digits.py:distill=none",
    "--config.steps=30",
    "--config.batch_size=16",
    "--config.data.limit=160",
    "--config.checkpoint.every=1",
    "--config.evaluate.every=1",
    "--config.log.every=1",
    "--config.log.tensorboard=False",
]
SPEEDS = ("images_per_second", "wait_share", "seconds")  # what a log holds that differs between two equal runs


current = {"slot": 0}  # of this process


def at(phase: str) -> None:
    """Say where this start is."""
    SLOTS[current["slot"]] = PHASES.index(phase)


CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
crashed: list[str] = []  # what is known of processes that ended so


class Start:
    """A forked process that does `work` with its output in a file.

    rename: end it by SIGKILL in its so-many-th os.rename; 0 for none. slot: its own among those that run together.
    """

    def __init__(self, work: Callable[[], Any], log: Path, rename: int = 0, slot: int = 0):
        self.log, self.slot, self.begun, self.seconds = log, slot, time.monotonic(), 0.0
        self.code: int | None = None
        SLOTS[slot] = 0
        self.pid = os.fork()
        if self.pid == 0:
            code, current["slot"] = 70, slot
            try:
                with open(log, "wb", buffering=0) as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                if rename:
                    die_in_rename(rename)
                work()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                os._exit(code)

    def wait(self, seconds: float = LONGEST, until: Callable[[], bool] = lambda: False) -> int | None:
        """The exit code, negative for a signal; None where it has not ended in that time, or `until` became true."""
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.begun
                if self.code in CRASHES:
                    crashed.append(f"{signal.Signals(-self.code).name} in {self.place()}: {self.lines()[-5:]}")
            elif time.monotonic() >= end or until():
                break
            else:
                time.sleep(0.003)
        return self.code

    def place(self) -> str:
        """Where it is."""
        return PHASES[SLOTS[self.slot]]

    def send(self, number: int) -> None:
        """Send a signal."""
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> int | None:
        """End it at once; returns the exit code."""
        self.send(signal.SIGKILL)
        return self.wait()

    def lines(self) -> list[str]:
        """What it has printed."""
        return self.log.read_text(errors="replace").splitlines()


def die_in_rename(count: int) -> None:
    """End this process by SIGKILL in its `count`-th os.rename: before it, or, for even counts, at what follows it."""
    seen = 0

    def hook(event: str, _: tuple) -> None:
        nonlocal seen
        seen += event == "os.rename"
        if seen == count if count % 2 else seen >= count and event != "os.rename":
            seen = -sys.maxsize  # os.kill is an event, too
            at("rename")
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Moment(NamedTuple):
    """When to end a start: so many seconds after it came to a place, or in a rename."""

    phase: str
    delay: float = 0.0
    rename: int = 0


def draw_moment(rng: random.Random, phases: dict[str, float]) -> Moment:
    """A random moment. phases: {place: longest delay in seconds}, or how many renames for "rename"."""
    phase = rng.choice(list(phases))
    if phase == "rename":
        return Moment(phase, rename=rng.randint(1, int(phases[phase])))
    return Moment(phase, rng.uniform(0, phases[phase]))


def come_to(start: Start, moment: Moment) -> bool:
    """Wait for the moment to end a start; returns whether it has come before the start ended by itself."""
    if moment.phase != "start-up" and start.wait(until=lambda: start.place() == moment.phase) is not None:
        return False
    return start.wait(moment.delay) is None


def tell(owner: Any, name: str, during: str, after: str) -> None:
    """Have a function say that it runs."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def told(*args, **kwargs):
        at(during)
        result = function(*args, **kwargs)
        at(after)
        return result

    setattr(owner, name, told)


def command(*arguments: Any, environment: dict[str, str] | None = None) -> Callable[[], None]:
    """`python main.py ARGUMENTS`, in this process; says where it is."""

    def work() -> None:
        os.environ.update(environment or {})
        sys.argv = ["main.py", *map(str, arguments)]
        tell(loop, "start_state", "start-up", "step")
        tell(loop, "evaluate_state", "evaluation", "step")
        tell(experiment, "write_report", "report", "end")
        tell(label, "fill", "label write", "end")
        try:
            main()
        finally:
            if jax.distributed.is_initialized():
                jax.distributed.shutdown()  # as at the end of an interpreter, which a fork has not

    return work


def small_run(workdir: Path) -> Callable[[], None]:
    """A training run on digits: 30 steps, a checkpoint and an evaluation after every ten."""
    return command(*SMALL_RUN, f"--workdir={workdir}")


def cluster(port: int, index: int, count: int) -> dict[str, str]:
    """What names process `index` of `count` its place."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def in_child(work: Callable[[], Any], folder: Path) -> Any:
    """work() in a fork, so that this process touches no device; its result must be picklable."""
    result = folder / "result.pickle"
    result.unlink(missing_ok=True)
    start = Start(lambda: result.write_bytes(pickle.dumps(work())), folder / "result.log")
    if start.wait() != 0:
        raise RuntimeError("\n".join(start.lines()[-5:]))
    return pickle.loads(result.read_bytes())


def state_bits(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind and that must not depend on how often it was started."""
    newest = max(folder.glob("checkpoints/[0-9]*"), key=lambda p: int(p.name))
    arrays = {}
    for item in ("params", "ema", "rest"):
        if (newest / item).is_dir():
            handler = orbax.checkpoint.PyTreeCheckpointHandler()
            shapes = handler.metadata(epath.Path(newest / item)).tree
            as_numpy = jax.tree.map(lambda _: orbax.checkpoint.RestoreArgs(restore_type=np.ndarray), shapes)
            arguments = orbax.checkpoint.args.PyTreeRestore(item=shapes, restore_args=as_numpy)
            arrays[item] = handler.restore(epath.Path(newest / item), args=arguments)
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    found: dict[str, Any] = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    found["log"] = [{k: v for k, v in record.items() if k not in SPEEDS} for record in read_log(folder)]
    for path in folder.glob("*es*.json"):  # results.json and classes.json, where there is a report
        found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
    files = [*folder.glob("*"), *folder.glob("checkpoints/*.*")]
    found["files"] = sorted(p.name for p in files if p.name != "damaged" and p.suffix != ".part")
    return found | {"step": newest.name, "damage": integrity.damage(newest)}
