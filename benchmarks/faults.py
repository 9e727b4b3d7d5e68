"""Break runs in every way that is promised to be survived, and print how many of each were.

    python benchmarks/faults.py [--kills=20] [--saves=100] [--labels=50] [--damaged=100] [--flips=200] [--full=20]
                                [--doubles=5] [--signals=10] [--lost=4] [--seed=0] [--folder=DIR]

A start is a fork of a process that has imported everything and touched no device, with a compilation cache of its own,
so that it costs what tracing and loading cost. `kills`, `doubles` and `signals` start the digits config (no teacher);
`saves`, `labels` and `full` use the same checkpoints and label store with a step that costs nothing; `lost` kills one
of two processes that stay in step. Full disks need the right to mount a tmpfs. 0 leaves a row out.
"""

import argparse
import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
import orbax.checkpoint
from etils import epath

import main as command
from deit_jax import evaluate, run  # noqa: F401
from deit_jax.distill.label_store import CHUNK, LabelStore, digest
from deit_jax.errors import UserError
from deit_jax.report.log import read_log
from deit_jax.runtime import interrupt, peers
from deit_jax.train.checkpoint import Checkpoints
from deit_jax.weights import integrity

STEPS = 36  # of the digits config, three epochs with a checkpoint and an evaluation each
TOY_STEPS = 20
DIGITS = [
    "main.py", "--config=configs/digits.py:distill=none", f"--config.steps={STEPS}", "--config.checkpoint.every=1",
    "--config.evaluate.every=1", "--config.log.every=1", "--config.log.tensorboard=False",
]  # fmt: skip
Row = tuple[int, int, str]  # tried, held, what was seen
LONGEST = 1800  # seconds for one start


class Start:
    """A forked process that does `work` with its output in a file."""

    def __init__(self, work: Callable[[], None], log: Path):
        self.log, self.begun = log, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                with open(log, "wb", buffering=0) as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
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

    def wait(self, seconds: float = LONGEST) -> int | None:
        """The exit code, negative for a signal; None where the process has not ended in that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return None

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def lines(self) -> list[str]:
        """What it has printed."""
        return self.log.read_text(errors="replace").splitlines()


def digits(workdir: Path) -> Callable[[], None]:
    """The training command on digits."""

    def work() -> None:
        sys.argv = [*DIGITS, f"--workdir={workdir}"]
        command.entry()

    return work


def toy(workdir: Path) -> Callable[[], None]:
    """A run whose step costs nothing and that saves after each: state k + 1 follows from state k alone."""

    def work() -> None:
        checkpoints = Checkpoints(workdir, keep=2)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), toy_state(0))
        state = toy_state(0) if checkpoints.latest() is None else checkpoints.restore(shapes)
        for step in range(int(state["step"]) + 1, TOY_STEPS + 1):
            kernel = np.asarray(state["params"]["kernel"])
            state = toy_state(step, np.float32(0.9) * kernel + np.float32(step))
            checkpoints.save(state, {"model": {}})
        checkpoints.close()

    return work


def toy_state(step: int, kernel: np.ndarray | None = None) -> dict[str, Any]:
    kernel = np.zeros((256, 64), np.float32) if kernel is None else kernel
    return {
        "step": np.int32(step), "params": {"kernel": kernel}, "batch_stats": {}, "ema": {},
        "nonfinite": {"in_row": np.int32(0)},
    }  # fmt: skip


def toy_labels(folder: Path) -> Callable[[], None]:
    """Fill a store, one chunk after the other."""

    def work() -> None:
        both = {"images": {"data.classes": 10}, "teacher": {}}
        header = {"kind": "hard", "k": 1, "dtype": "uint16", "tau": 1.0, "batch_size": 64, "hash": digest(both), **both}
        folder.mkdir(exist_ok=True)
        store = LabelStore.create(folder, header, 30 * CHUNK)
        for chunk in store.damaged():
            store.remove(chunk)
        for chunk in store.missing(30 * CHUNK):
            rows = np.random.default_rng(chunk).integers(0, 10, (CHUNK, 64)).astype(np.uint16)
            for write in store.write(chunk, {"decision": rows}):
                write.result()

    return work


def bits(folder: Path) -> dict[str, Any]:
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
    speed = ("images_per_second", "wait_share")
    found["log"] = [{k: v for k, v in record.items() if k not in speed} for record in read_log(folder)]
    results = folder / "results.json"
    found["results"] = (
        {k: v for k, v in json.loads(results.read_text()).items() if k != "seconds"} if results.exists() else None
    )
    return found | {"step": newest.name, "damage": integrity.damage(newest)}


def label_bits(folder: Path) -> dict[str, Any]:
    """The content of a label store."""
    return {"labels": LabelStore(folder).read_steps(0, 30 * CHUNK)["decision"].tobytes()}


def keep(place: Path, value: Any) -> None:
    """Write a value for `in_child`."""
    place.write_bytes(pickle.dumps(value))


def in_child(work: Callable[[], Any], folder: Path) -> Any:
    """work() in a fork, so that this process touches no device; its result must be picklable."""
    place = folder / "result.pickle"
    place.unlink(missing_ok=True)
    start = Start(lambda: keep(place, work()), folder / "result.log")
    if start.wait() != 0:
        raise RuntimeError("\n".join(start.lines()[-5:]))
    return pickle.loads(place.read_bytes())


class Campaign:
    """Runs the rows and counts. Each row returns (tried, held, what was seen)."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)

    def killed(self, count: int, work: Callable[[Path], Callable], compare: Callable, name: str) -> Row:
        """Kill runs at random moments until they end; each finished run must be the uninterrupted one, bit for bit."""
        whole = self.folder / f"{name}-whole"
        seconds = 0.0
        for _ in range(2):  # the second start knows what the first compiled
            shutil.rmtree(whole, ignore_errors=True)
            start = Start(work(whole), self.folder / f"{name}.log")
            if start.wait() != 0:
                raise RuntimeError("\n".join(start.lines()[-5:]))
            seconds = time.monotonic() - start.begun
        truth = in_child(lambda: compare(whole), self.folder)
        kills = runs = same = 0
        while kills < count:
            folder = self.folder / f"{name}-{runs}"
            mine = 0
            while True:
                start = Start(work(folder), self.folder / f"{name}.log")
                limit = self.random.uniform(0, seconds) if mine < 12 else LONGEST
                code = start.wait(limit)
                if code is not None:
                    break
                start.send(signal.SIGKILL)
                start.wait()
                mine += 1
            kills, runs = kills + mine, runs + 1
            if code == 0 and in_child(lambda f=folder: compare(f), self.folder) == truth:
                same += mine
                shutil.rmtree(folder)
            else:
                print(f"  kept for inspection: {folder}, exit code {code}: {start.lines()[-3:]}")
        return kills, same, f"{runs} runs, one start {seconds:.1f} s"

    def kills(self, count: int) -> Row:
        """Training on digits: steps, saves, evaluations, reports."""
        return self.killed(count, digits, bits, "kills")

    def saves(self, count: int) -> Row:
        """Saving all the time."""
        return self.killed(count, toy, bits, "saves")

    def labels(self, count: int) -> Row:
        """Writing labels all the time."""
        return self.killed(count, toy_labels, label_bits, "labels")

    def toy_run(self) -> Path:
        folder = self.folder / "toy"
        if not folder.exists():
            Start(toy(folder), self.folder / "toy.log").wait()
        return folder

    def damaged(self, count: int) -> Row:
        """Newest checkpoint damaged: resuming must set it aside and use the one before."""
        source = self.toy_run()
        truth = in_child(lambda: bits(source), self.folder)

        def work() -> int:
            held = 0
            for _ in range(count):
                folder = self.folder / "damaged"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder)
                newest = folder / f"checkpoints/{TOY_STEPS}"
                files = [p for p in newest.rglob("*") if p.is_file() and p.name not in integrity.UNSUMMED]
                victim, kind = self.random.choice(files), self.random.randrange(4)
                if kind == 3:
                    shutil.rmtree(self.random.choice([p for p in newest.iterdir() if p.is_dir()]))
                elif kind == 2:
                    victim.unlink()
                else:
                    victim.write_bytes(victim.read_bytes()[: kind * victim.stat().st_size // 2])
                toy(folder)()
                held += bits(folder) == truth and (folder / f"damaged/{TOY_STEPS}").is_dir()
            return held

        return count, in_child(work, self.folder), "cut, emptied, deleted, an item's folder deleted"

    def flips(self, count: int) -> Row:
        """One bit of a checkpoint or of a label chunk flipped: must be noticed."""
        run_folder, labels = self.toy_run(), self.folder / "flip-labels"
        Start(toy_labels(labels), self.folder / "labels.log").wait()

        def work() -> int:
            step = run_folder / f"checkpoints/{TOY_STEPS}"
            files = [p for p in step.rglob("*") if p.is_file() and p.name not in integrity.UNSUMMED]
            files += [step / integrity.SUMS, *labels.glob("decision/c/*/0")]
            noticed = 0
            for _ in range(count):
                path = self.random.choice(files)
                whole = path.read_bytes()
                bit = self.random.randrange(8 * len(whole))
                changed = bytearray(whole)
                changed[bit // 8] ^= 1 << bit % 8
                path.write_bytes(changed)
                is_label = labels in path.parents
                noticed += bool(LabelStore(labels).damaged() if is_label else integrity.damage(step))
                path.write_bytes(whole)
            return noticed

        return count, in_child(work, self.folder), "checkpoint files, checksums.json, label chunks"

    def full(self, count: int) -> Row:
        """Disk full while saving: one line each, training goes on, and saves work again once there is room."""
        place = self.folder / "small"
        place.mkdir(exist_ok=True)
        held = 0
        for number in range(count):
            if subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True
            ).returncode:
                return 0, 0, "not run: no right to mount a tmpfs"
            try:
                (place / "filler").write_bytes(bytes(self.random.randrange(600_000, 1_000_000)))
                start = Start(toy(place / "run"), self.folder / "full.log")
                code = start.wait()
                lines = start.lines()
                short = all("Traceback" not in line for line in lines) and len(lines) < 3 * TOY_STEPS
                (place / "filler").unlink()
                again = Start(toy(place / "run"), self.folder / "full-again.log").wait()
                complete = in_child(lambda: bits(place / "run")["step"], self.folder) == str(TOY_STEPS)
                held += code in (0, 70) and short and again == 0 and complete
                if not (code in (0, 70) and short and again == 0 and complete):
                    print(f"  full disk {number}: exit codes {code}, {again}: {lines[-2:]}")
            finally:
                subprocess.run(["umount", place], check=True)
        return count, held, "1 MB tmpfs with random room"

    def doubles(self, count: int) -> Row:
        """The same command twice: one trains, the other says which process has the folder and ends with code 2."""
        held = 0
        for number in range(count):
            folder = self.folder / f"double-{number}"
            first = Start(digits(folder), self.folder / "first.log")
            time.sleep(self.random.uniform(0, 3))
            second = Start(digits(folder), self.folder / "second.log")
            codes = [first.wait(), second.wait()]
            refused = [s for s, code in zip((first, second), codes, strict=True) if code == 2]
            said = bool(refused) and "is in use by process" in refused[0].lines()[-1]
            held += codes in ([0, 2], [2, 0]) and said
            if not said:
                print(f"  double start {number}: exit codes {codes}: {first.lines()[-1:]} {second.lines()[-1:]}")
        return count, held, "second start 0 to 3 s after the first"

    def signals(self, count: int) -> Row:
        """SIGTERM or SIGINT at a random moment: ends within 60 s with code 130 and a line, resumes bit for bit."""
        whole = self.folder / "kills-whole"
        if not whole.exists():
            Start(digits(whole), self.folder / "signals.log").wait()
        truth = in_child(lambda: bits(whole), self.folder)
        held, slowest = 0, 0.0
        for number in range(count):
            folder = self.folder / f"signal-{number}"
            start = Start(digits(folder), self.folder / "signals.log")
            code = start.wait(self.random.uniform(0.5, 20))
            if code is None:
                begun = time.monotonic()
                start.send(self.random.choice([signal.SIGINT, signal.SIGTERM]))
                code = start.wait(60)
                slowest = max(slowest, time.monotonic() - begun)
            lines = start.lines()
            plain = code in (0, 130) and not any("Traceback" in line for line in lines)
            finished = Start(digits(folder), self.folder / "signals-again.log").wait()
            same = finished == 0 and in_child(lambda f=folder: bits(f), self.folder) == truth
            held += plain and same
            if not (plain and same):
                print(f"  signal {number}: exit codes {code}, {finished}, same: {same}: {lines[-2:]}")
        return count, held, f"slowest end {slowest:.1f} s"

    def lost(self, count: int) -> Row:
        """One of two processes killed: the other ends with code 75 and one line."""
        held = 0
        for number in range(count):
            with socket.create_server(("localhost", 0)) as server:
                port = server.getsockname()[1]
            starts = [Start(in_step(port, i), self.folder / f"lost-{i}.log") for i in range(2)]
            while not all(s.lines() and "in step" in s.lines()[-1] for s in starts):
                time.sleep(0.1)
            time.sleep(self.random.uniform(0, 3))
            victim = number % 2
            starts[victim].send(signal.SIGKILL)
            starts[victim].wait()
            code = starts[1 - victim].wait(120)
            line = starts[1 - victim].lines()[-1]
            held += code == 75 and f"process {victim} of 2 was lost" in line
            if code != 75:
                print(f"  lost process {victim}: exit code {code}: {line}")
        return count, held, "process 0 and 1 in turn, 10 s without a sign of life"


def in_step(port: int, index: int) -> Callable[[], None]:
    """A process that meets the other one in every step."""

    def work() -> None:
        from jax.experimental import multihost_utils

        with interrupt.listen():
            jax.distributed.initialize(f"localhost:{port}", 2, index)
            with peers.watch(10.0), interrupt.Stop() as stop:
                for step in range(10_000):
                    multihost_utils.broadcast_one_to_all(np.int32(step))
                    if step == 1:
                        print("in step", flush=True)
                    time.sleep(0.05)
                    if stop.asked(step):
                        return

    return work


@contextlib.contextmanager
def working_folder(given: str) -> Iterator[Path]:
    """The folder that is asked for, or a temporary one."""
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        yield Path(folder)


def first_line(work: Callable) -> str:
    """What a row is, from its docstring."""
    return (work.__doc__ or "").split("\n")[0]


ROWS = {
    "kills": 20, "saves": 100, "labels": 50, "damaged": 100, "flips": 200, "full": 20, "doubles": 5, "signals": 10,
    "lost": 4,
}  # fmt: skip


def campaign(counts: dict[str, int], folder: Path, seed: int = 0) -> bool:
    """Run the rows whose count is not 0 and print the table; returns whether all held."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    compiled = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    rows = Campaign(folder, seed)
    print("| fault | tried | held | |\n|---|---|---|---|", flush=True)
    every = True
    for name, count in counts.items():
        if not count:
            continue
        work = getattr(rows, name)
        begun = time.monotonic()
        try:
            tried, held, seen = work(count)
        except (RuntimeError, UserError) as error:
            tried, held, seen = count, 0, f"could not be run: {error}"
        every &= tried == held
        what = first_line(work).rstrip(".")
        print(f"| {what} | {tried} | {held} | {seen}; {time.monotonic() - begun:.0f} s |", flush=True)
    return every


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Break runs and count what they survive.")
    for name, count in ROWS.items():
        parser.add_argument(
            f"--{name}", type=int, default=count, help=(getattr(Campaign, name).__doc__ or "").split("\n")[0]
        )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments, files and bits")
    parser.add_argument("--folder", default="", help="where to work; kept. Default: a temporary one")
    arguments = vars(parser.parse_args())
    seed, given = arguments.pop("seed"), arguments.pop("folder")
    with working_folder(given) as chosen:
        sys.exit(0 if campaign(arguments, chosen, seed) else 1)
