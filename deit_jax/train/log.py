"""What a person sees of a run: the progress line, JSON lines, TensorBoard events."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax import plots
from deit_jax.config import recipe_differences
from deit_jax.errors import UserError
from deit_jax.evaluate.tables import duration
from deit_jax.losses import KINDS
from deit_jax.runtime import atomic, storage
from deit_jax.train.events import Events

MOST_WAITING = 100_000  # log lines kept in memory while they cannot be written


def read_log(workdir: str | Path) -> list[dict[str, Any]]:
    """The records of a run's log.jsonl, in order; [] where there is none. A value that was not finite is NaN."""
    path = storage.as_path(workdir) / "log.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, AttributeError):  # a killed process may leave half a last line
            records.append({k: math.nan if v is None else v for k, v in json.loads(line).items()})
    return records


def to_json(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonLines:
    """Appends records to a file, each as one whole line.

    A record that cannot be written (full disk) stays in memory and is written with the next one.
    """

    def __init__(self, path: Path):
        self.waiting: list[bytes] = []
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115  lives as long as the run
        self.end = self.file.tell()

    def queue(self, record: dict[str, Any]) -> None:
        """Put a record behind those that wait; the oldest go where they are too many."""
        line = json.dumps(to_json(record), allow_nan=False) + "\n"
        self.waiting = [*self.waiting, line.encode()][-MOST_WAITING:]

    def write(self, record: dict[str, Any]) -> None:
        """Raises OSError where the record has to wait; the file ends with a whole line in any case."""
        self.queue(record)
        data = memoryview(b"".join(self.waiting))
        written = 0
        try:
            while written < len(data):
                written += self.file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self.file.truncate(self.end)
            raise
        self.end += len(data)
        self.waiting = []

    def sync(self) -> None:
        """Does nothing here: each record goes to the file as it comes."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()


class ObjectLines(JsonLines):
    """As JsonLines, to an object in a bucket, which cannot be appended to: it is replaced by one with more lines, at
    most every SECONDS and in `sync`. Until then lines are in memory alone."""

    SECONDS = 20.0  # a bucket takes one write per second of an object, and a request takes a tenth of one

    def __init__(self, path: Path):
        self.path, self.waiting, self.written = path, [], time.monotonic()
        self.content = path.read_bytes() if path.exists() else b""

    def write(self, record: dict[str, Any]) -> None:
        """Raises UserError where the records have to wait."""
        self.queue(record)
        if time.monotonic() - self.written >= self.SECONDS:
            self.sync()

    def sync(self) -> None:
        """Write the records that wait. Raises UserError where the bucket fails."""
        if not self.waiting:
            return
        content = self.content + b"".join(self.waiting)
        try:
            atomic.write_bytes(self.path, content)
        finally:
            self.written = time.monotonic()  # after a failed attempt too, which may have taken a minute
        self.content, self.waiting = content, []

    def close(self) -> None:
        with contextlib.suppress(UserError):
            self.sync()


class Log:
    """Follows one run. Only process 0 prints and writes, and nothing that cannot be written stops the run.

    A resumed run drops what was logged past its checkpoint, so that the curve has each step once.

    Args:
        workdir: of the run; log.jsonl, tensorboard/ and curves.png go there.
        title: what its lines begin with.
        config: resolved.
        start: the step it begins or resumes at. total, per_epoch: steps of the run and of an epoch.
        evaluated: False where the evaluation of step `start` is not recorded, and will be logged (again).
        losses: of the steps before `start` that no line has averaged yet, as `interval_losses` gave them.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        title: str,
        config,
        start: int,
        total: int,
        per_epoch: int,
        evaluated: bool = True,
        losses: Sequence[float] = (),
    ):
        self.workdir, self.title, self.config = workdir, title, config
        self.start, self.total, self.per_epoch = start, total, per_epoch
        self.writes = jax.process_index() == 0
        self.tty = sys.stdout.isatty()
        self.waited, self.mark, self.mark_step = 0.0, time.perf_counter(), start
        self.first: float | None = None  # seconds to the first step's end
        self.losses: list[Any] = list(losses)  # of each step since the last line, on the device where just made
        self.lines: JsonLines | None = None
        self.events: Events | None = None
        self.failing = False
        if self.writes:
            self.rewind(start, evaluated)
            if config.log.tensorboard:
                with self.reporting("TensorBoard events"):
                    self.events = Events(workdir / "tensorboard", start)

    def rewind(self, step: int, evaluated: bool = True) -> None:
        """Drop what was logged past `step`, and its evaluation unless `evaluated`; a kill leaves the old log whole."""
        if self.lines:
            self.lines.close()
        kept = [
            r
            for r in read_log(self.workdir)
            if r["step"] < step or (r["step"] == step and (evaluated or "eval/top1" not in r))
        ]
        path = self.workdir / "log.jsonl"
        atomic.write_text(path, "".join(json.dumps(to_json(r)) + "\n" for r in kept))
        self.lines = ObjectLines(path) if storage.is_bucket(path) else JsonLines(path)

    def sync(self) -> None:
        """Write the records that only memory holds; called before a checkpoint, which must not be ahead of the log."""
        if self.lines:
            with self.reporting("log.jsonl"):
                self.lines.sync()

    @contextlib.contextmanager
    def reporting(self, what: str) -> Iterator[None]:
        """Within, a file that cannot be written becomes a printed line, once until writing works again."""
        try:
            yield
            self.failing = self.failing and bool(self.lines and self.lines.waiting)
        except (OSError, UserError) as error:
            if not self.failing:
                self.say(f"{self.title}: {what} cannot be written ({error}): training continues without")
            self.failing = True

    def say(self, text: str, *, passing: bool = False) -> None:
        """Print a line; a `passing` one is overwritten by the next on a terminal."""
        if self.writes:
            clear = "\r\x1b[K" if self.tty else ""
            with contextlib.suppress(OSError):  # the terminal is gone, or the disk of a redirected output full
                print(clear + text, end="" if passing and self.tty else "\n", flush=True)

    def write(self, step: int, **values: Any) -> None:
        """Log values at a step, to log.jsonl and TensorBoard."""
        if not self.writes:
            return
        if self.lines:
            with self.reporting("log.jsonl"):
                self.lines.write({"step": step, "epoch": round(step / self.per_epoch, 4), **values})
        if self.events:
            scalars = {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
            try:
                self.events.write(step, scalars, time.time())
            except OSError as error:
                self.say(f"{self.title}: TensorBoard events end at step {step} ({error}): log.jsonl has the rest")
                self.events.close()
                self.events = None

    def begin(self, student, params: dict, *, teacher: str, notes: Sequence[str], mesh) -> None:
        """Introduce the run. teacher: the live teacher's name or ""; notes: more lines."""
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
        c = self.config
        distil = f", {KINDS[c.distill.kind]}" if c.distill.kind != "none" else ""
        distil += f" from {teacher}" if teacher else (" from stored labels" if c.distill.labels else "")
        devices = f"{mesh.devices.size} {mesh.devices.flat[0].device_kind} device{'s' if mesh.devices.size > 1 else ''}"
        self.say(
            f"{self.title}: {c.model.name}, {count:,} parameters, {student.img_size} px, {student.num_classes} classes"
            f"{distil}; {self.total} steps of {c.batch_size} on {devices}"
        )
        for note in notes:
            self.say(f"  {note}")
        if student.num_classes == 1000:  # ImageNet: what is compared with published numbers
            for line in recipe_differences(c):
                self.say(f"  {line}")
        if self.start:
            done = "complete, evaluating again" if self.start >= self.total else f"resuming from step {self.start}"
            self.say(f"{self.title}: {done}")
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the taking of a batch: time that the devices may stand idle for the input."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def step(self, step: int, metrics: dict[str, jax.Array], *, broken: int = 0) -> dict[str, float] | None:
        """Follow one step; every `log.every` steps read the metrics from the device, show and return them.

        The loss shown is the mean over the finite losses since the last line; the others are the last step's. broken:
        training images so far that could not be read and were replaced.
        """
        self.losses.append(metrics["loss"])
        if self.first is None:  # the first step holds the compilation: it says nothing about speed
            jax.block_until_ready(metrics["loss"])
            self.first = time.perf_counter() - self.mark
            self.say(f"{self.title}: first step after {self.first:.1f} s, compilation included", passing=True)
            self.reset(step)
        if step % self.config.log.every and step != self.total:
            return None
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        values["loss"] = mean_of_finite(self.interval_losses())
        self.losses = []
        elapsed, steps = time.perf_counter() - self.mark, step - self.mark_step
        speed = {}
        if steps:
            rate = steps * self.config.batch_size / elapsed
            speed = {"images_per_second": round(rate, 1), "wait_share": round(self.waited / elapsed, 4)}
            left = duration((self.total - step) * elapsed / steps)
            epochs = self.total / self.per_epoch
            self.say(
                f"{self.title}  epoch {step / self.per_epoch:.1f}/{epochs:.1f}  step {step}/{self.total}  "
                f"loss {values['loss']:.4f}  {rate:,.0f} images/s  {left} left  "
                f"waiting for data {100 * speed['wait_share']:.0f} %",
                passing=True,
            )
        self.write(step, **values, **speed, **({"broken_images": broken} if broken else {}))
        self.reset(step)
        return values

    def interval_losses(self) -> list[float]:
        """The loss of each step since the last line: part of a checkpoint, so that a resumed run logs the same mean."""
        self.losses = [float(x) for x in jax.device_get(self.losses)]
        return list(self.losses)

    def reset(self, step: int) -> None:
        """Measure speed from here on."""
        self.waited, self.mark, self.mark_step = 0.0, time.perf_counter(), step

    def evaluation(self, step: int, results: dict[str, dict]) -> None:
        """Log what `evaluate_sets` found at a step."""
        values = {}
        for weights, result in results.items():
            prefix = "eval" if weights == "params" else f"eval_{weights}"
            values |= {f"{prefix}/{k}": result[k] for k in ("top1", "top5", "loss")}
            values |= {f"{prefix}/{head}/top1": r["top1"] for head, r in result["heads"].items()}
        self.write(step, **values)
        self.sync()
        if self.events:
            with self.reporting("TensorBoard events"):
                self.events.flush()
        ema = f"  (averaged weights {results['ema']['top1']:.2f} %)" if "ema" in results else ""
        at = f"step {step}/{self.total}"
        self.say(f"{self.title}  {at}  top-1 {results['params']['top1']:.2f} %{ema}", passing=step != self.total)
        self.reset(step)

    def rolled_back(self, step: int, to: int, losses: Sequence[float] = ()) -> None:
        """Log that the run went back from `step` to `to`. losses: as at the start."""
        patience = self.config.stability.patience
        self.say(
            f"{self.title}: {patience} non-finite steps in a row at step {step}: back to step {to}, with other data"
        )
        if self.writes:
            with self.reporting("log.jsonl"):
                self.rewind(to)
        self.write(to, rolled_back_from=step)
        self.losses = list(losses)
        self.reset(to)

    def end(self) -> None:
        """Draw the curves of a finished run. What fails is a printed line: the run's weights are what counts."""
        if not self.writes:
            return
        self.sync()
        try:
            plots.curves(self.workdir / "curves.png", {self.title: read_log(self.workdir)})
        except Exception as error:
            self.say(f"{self.title}: curves.png could not be drawn ({type(error).__name__}: {error!s:.160})")

    def close(self) -> None:
        if self.lines:
            self.lines.close()
        if self.events:
            self.events.close()


def mean_of_finite(losses: Sequence[float]) -> float:
    """Their mean without those that are not finite (skipped steps, counted elsewhere); NaN where none is."""
    finite = [x for x in losses if math.isfinite(x)]
    return math.fsum(finite) / len(finite) if finite else math.nan
