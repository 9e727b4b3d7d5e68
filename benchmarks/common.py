"""What the benchmark scripts share: settings without ml_collections, contestants in processes that take turns, tables.

A contestant is a process that prepares itself once and then answers, each time it is asked, with the seconds a call
took. So each library has a process of its own: its threads, its allocator, its interpreter. They take turns, and what
other programs disturb is measured again.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class Settings(dict):
    """A resolved config for machines that lack ml_collections: attributes and items, nested."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self:
            raise AttributeError(f"'{name}' is not a setting")
        self[name] = value

    def copy_and_resolve_references(self) -> "Settings":
        return Settings({k: v.copy_and_resolve_references() if isinstance(v, Settings) else v for k, v in self.items()})


def settings(changes: dict[str, Any]) -> Settings:
    """Every setting of deit_jax.config at its default, by the released recipe, then {"model.name": …}."""
    from deit_jax.config import SETTINGS, resolve

    def build(table: dict) -> Settings:
        return Settings({k: build(s) if isinstance(s, dict) else s.default for k, s in table.items()})

    config = resolve(build(SETTINGS))
    for path, value in changes.items():
        group = config
        *groups, name = path.split(".")
        for part in groups:
            group = getattr(group, part)
        setattr(group, name, value)
    return config


def changes_of(texts: list[str]) -> dict[str, Any]:
    """{"model.remat": "dots"} of ["model.remat=dots"]; values as JSON where they are, else text."""
    out = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            out[name] = json.loads(value)
        except json.JSONDecodeError:
            out[name] = value
    return out


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The command line of a script: a flag of each default's name and type."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        found.add_argument(f"--{name}", type=type(value), default=value)
    return found


def on_gpu() -> bool:
    """Whether an NVIDIA GPU is there, found without loading a library that would take hold of it."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def import_timm() -> Any:
    """timm; where torchvision was built for another torch, without its operators, which no ViT needs."""
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm


def answer(prepare: Callable[[], dict[str, Callable[[], Any]]], facts: Callable[[], dict] = dict) -> None:
    """The contestant's side: prepare(), then for each line "NAME SECONDS" on stdin time calls of that name.

    prepare returns {name: a function that makes one call and, called `wait=True`, also waits for its end}.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        begun = time.perf_counter()
        calls = prepare()
        for call in calls.values():
            call(wait=True)
        seconds = time.perf_counter() - begun
        print(json.dumps({"ready": sorted(calls), "prepared_s": seconds, **facts()}), file=out, flush=True)
    except Exception as error:
        print(json.dumps({"missing": f"{type(error).__name__}: {error}"[:300]}), file=out, flush=True)
        raise
    for line in sys.stdin:
        name, seconds = line.split()
        spent = time.process_time()
        value = stretch(calls[name], float(seconds))
        print(json.dumps({"seconds": value, "cpu_s": time.process_time() - spent}), file=out, flush=True)


def stretch(call: Callable, seconds: float) -> float:
    """Seconds a call over a stretch of about so many seconds, waiting for the device only at its end."""
    begun = time.perf_counter()
    call(wait=True)
    count = max(1, round(seconds / max(time.perf_counter() - begun, 1e-6)))
    begun = time.perf_counter()
    for _ in range(count - 1):
        call(wait=False)
    call(wait=True)
    return (time.perf_counter() - begun) / count


class Contestant:
    """A contestant's process, seen from the script that asks."""

    def __init__(self, name: str, command: list[str], log: Path | None = None):
        self.name, self.facts = name, {}
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"} | os.environ
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        errors = open(log, "w") if log else subprocess.DEVNULL  # noqa: SIM115  lives as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )

    def read(self) -> Any:
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def ready(self) -> bool:
        """Wait until it is prepared. False where it cannot be: `facts["missing"]` says why. May be asked again."""
        self.facts = self.facts or self.read() or {"missing": "it ended early"}
        return "missing" not in self.facts

    def time(self, what: str, seconds: float) -> tuple[float, float] | None:
        """(seconds a call, the share of the machine that other programs used meanwhile), or None where it died."""
        busy, begun = busy_seconds(), time.perf_counter()
        with contextlib.suppress(BrokenPipeError):
            print(what, seconds, file=self.process.stdin, flush=True)
        said = self.read()
        if said is None:
            return None
        others = busy_seconds() - busy - said["cpu_s"]
        return said["seconds"], max(0.0, others) / (time.perf_counter() - begun) / cores()

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def take_turns(
    contestants: list[Contestant], what: list[str], rounds: int, seconds: float, patience: float = 0.0
) -> dict[str, dict]:
    """{contestant: {what: [seconds a call, a round each]}}: every round asks all, in an order that alternates.

    One round more comes first and is not counted: what lay idle has lost its memory to the system.
    patience: seconds, in all, to wait for a machine that nobody else uses and to measure again what was disturbed.
    """
    times: dict[str, dict] = {c.name: {w: [] for w in what} for c in contestants}
    until = time.monotonic() + patience
    for turn in range(-1, rounds):
        for c in contestants if turn % 2 == 0 else reversed(contestants):
            for name in set(what) & set(c.facts["ready"]):
                if turn < 0:
                    c.time(name, seconds)
                    continue
                wait_until_idle(until)
                found = c.time(name, seconds)
                while found and found[1] > DISTURBED and time.monotonic() < until:
                    wait_until_idle(until)
                    found = c.time(name, seconds)
                if found:
                    times[c.name][name].append(found[0])
                    c.facts.setdefault("others", []).append(round(found[1], 3))
    return times


DISTURBED = 0.05  # share of the machine


def busy_seconds() -> float:
    """Processor seconds that all programs have used since the machine started; 0 where it does not tell."""
    try:
        user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_until_idle(until: float) -> None:
    """Return once nobody used the machine for half a second, or at `until` (of time.monotonic())."""
    while time.monotonic() < until:
        busy = busy_seconds()
        time.sleep(0.5)
        if (busy_seconds() - busy) / 0.5 / cores() < DISTURBED:
            return


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """theirs / ours, round by round: what the machine did in a round falls on both."""
    return [a / b for a, b in zip(theirs, ours, strict=False)]


def cells(values: list[float], form: str = ".1f") -> list[str]:
    """Minimum, median and maximum, as a table shows them."""
    return [format(value, form) for value in spread(values).values()]


def middle(values: list[float], form: str = ".1f") -> str:
    """median (min .. max)"""
    low, median, high = cells(values, form)
    return f"{median} ({low} .. {high})"


def machine() -> dict[str, Any]:
    """Where and when this was measured."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpus = ""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().replace("\n", ", ")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "cpu": model, "cores": cores(), "gpu": gpus, "python": platform.python_version()}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def save(path: str, **results: Any) -> None:
    """Write results with the machine as JSON, where a path is given."""
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
