"""Run logging: console, log.jsonl, TensorBoard, curves.png."""

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
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime import atomic, storage

# metrics of which a line has the mean over its interval; of the others it has the last step's value
AVERAGED = ("loss", "class_loss", "distillation_loss", "cls_agreement", "dist_agreement")


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


def json_line(record: dict[str, Any]) -> bytes:
    """A record as a line of log.jsonl."""
    return (json.dumps(to_json(record), allow_nan=False) + "\n").encode()


class Log:
    """Follows one run. Only process 0 prints and writes; a file that cannot be written ends with one line on the
    console, and training continues.

    A resumed run drops what was logged past its checkpoint, so that the curve has each step once. In a bucket, where
    nothing can be appended, log.jsonl is written whole at each checkpoint and evaluation.

    Args:
        workdir: of the run; log.jsonl, tensorboard/ and curves.png go there.
        title: what its lines begin with.
        config: resolved.
        start: the step it begins or resumes at.
        total: steps of the run.
        per_epoch: steps of an epoch.
        evaluated: False where the evaluation of step `start` is not recorded, and will be logged (again).
        losses: of the steps before `start` that no line has averaged yet, of `interval_losses`.
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
        losses: Sequence[dict[str, float]] = (),
    ):
        self.workdir, self.title, self.config = workdir, title, config
        self.start, self.total, self.per_epoch = start, total, per_epoch
        self.path, self.writes = workdir / "log.jsonl", jax.process_index() == 0
        self.waited, self.mark, self.mark_step = 0.0, time.perf_counter(), start
        self.first_step_seconds: float | None = None
        self.losses: list[dict[str, Any]] = list(losses)  # of each step since the last line, on the device if just made
        self.file: Any = None
        self.bucket_lines: list[bytes] = []
        self.events: Any = None
        if self.writes:
            with self.ending("file"):
                self.rewind(start, evaluated)
            if config.log.tensorboard:
                with self.ending("events"):
                    self.events = open_events(workdir / "tensorboard", start)

    def rewind(self, step: int, evaluated: bool = True) -> None:
        """Drop what was logged past `step`, and its evaluation unless `evaluated`; a kill leaves the old log whole."""
        if self.file:
            self.file.close()
        kept = [
            r
            for r in read_log(self.workdir)
            if r["step"] < step or (r["step"] == step and (evaluated or "eval/top1" not in r))
        ]
        lines = [json_line(r) for r in kept]
        atomic.write_bytes(self.path, b"".join(lines))
        if storage.is_bucket(self.path):
            self.bucket_lines = lines
        else:
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115  lives as long as the run

    def sync(self) -> None:
        """Bring log.jsonl up to date; called before a checkpoint, which must not be ahead of the log."""
        if self.bucket_lines:
            with self.ending("bucket_lines"):
                atomic.write_bytes(self.path, b"".join(self.bucket_lines))

    @contextlib.contextmanager
    def ending(self, what: str) -> Iterator[None]:
        """Within, an output that cannot be written ends: it is set to None, which is reported in one line."""
        try:
            yield
        except (OSError, UserError) as error:
            setattr(self, what, None)
            name = "the TensorBoard log" if what == "events" else "log.jsonl"
            self.print(f"{self.title}: {name} cannot be written, and ends here ({error}): training continues")

    def print(self, text: str, *, transient: bool = False) -> None:
        """Print a line; a transient one is overwritten by the next on a terminal."""
        if self.writes:
            terminal = sys.stdout.isatty()
            clear = "\r\x1b[K" if terminal else ""
            with contextlib.suppress(OSError):  # the terminal is gone, or the disk of a redirected output full
                print(clear + text, end="" if transient and terminal else "\n", flush=True)

    def write(self, step: int, **values: Any) -> None:
        """Log values at a step, to log.jsonl and TensorBoard."""
        line = json_line({"step": step, "epoch": round(step / self.per_epoch, 4), **values})
        if self.file:
            with self.ending("file"):
                self.file.write(line)
        elif self.bucket_lines is not None and storage.is_bucket(self.path):
            self.bucket_lines.append(line)
        if self.events:
            with self.ending("events"):
                scalars = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
                write_events(self.events, step, scalars)

    def begin(self, student, params: dict, *, teacher: str, notes: Sequence[str], mesh) -> None:
        """Introduce the run. teacher: the live teacher's name or ""; notes: more lines."""
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
        c = self.config
        distil = f", {OBJECTIVES[c.distill.kind].title}" if c.distill.kind != "none" else ""
        distil += f" from {teacher}" if teacher else (" from stored labels" if c.distill.labels else "")
        devices = f"{mesh.devices.size} {mesh.devices.flat[0].device_kind} device{'s' if mesh.devices.size > 1 else ''}"
        self.print(
            f"{self.title}: {c.model.name}, {count:,} parameters, {student.img_size} px, {student.num_classes} classes"
            f"{distil}; {self.total} steps of {c.batch_size} on {devices}"
        )
        for note in notes:
            self.print(f"  {note}")
        if student.num_classes == 1000:  # ImageNet: what is compared with published numbers
            for line in recipe_differences(c):
                self.print(f"  {line}")
        if self.start:
            done = "complete, evaluating again" if self.start >= self.total else f"resuming from step {self.start}"
            self.print(f"{self.title}: {done}")
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the taking of a batch: time that the devices may stand idle for the input."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def step(self, step: int, metrics: dict[str, jax.Array], *, broken: int = 0) -> dict[str, float] | None:
        """Follow one step; every `log.every` steps read the metrics from the device, show and return them.

        The metrics of AVERAGED are means over the finite values since the last line; the others are the last step's.
        broken: training images so far that could not be read and were replaced.
        """
        self.losses.append({name: metrics[name] for name in AVERAGED if name in metrics})
        if self.first_step_seconds is None:  # the first step holds the compilation: it says nothing about speed
            jax.block_until_ready(metrics["loss"])
            self.first_step_seconds = time.perf_counter() - self.mark
            text = f"first step after {self.first_step_seconds:.1f} s, compilation included"
            self.print(f"{self.title}: {text}", transient=True)
            self.reset(step)
        if step % self.config.log.every and step != self.total:
            return None
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        interval = self.interval_losses()
        values |= {name: mean_of_finite([one[name] for one in interval if name in one]) for name in interval[-1]}
        self.losses = []
        elapsed, steps = time.perf_counter() - self.mark, step - self.mark_step
        speed = {}
        if steps:
            rate = steps * self.config.batch_size / elapsed
            speed = {"images_per_second": round(rate, 1), "wait_share": round(self.waited / elapsed, 4)}
            left = duration((self.total - step) * elapsed / steps)
            epochs = self.total / self.per_epoch
            self.print(
                f"{self.title}  epoch {step / self.per_epoch:.1f}/{epochs:.1f}  step {step}/{self.total}  "
                f"{describe_loss(values)}  {rate:,.0f} images/s  {left} left  "
                f"waiting for data {100 * speed['wait_share']:.0f} %",
                transient=True,
            )
        self.write(step, **values, **speed, **({"broken_images": broken} if broken else {}))
        self.reset(step)
        return values

    def interval_losses(self) -> list[dict[str, float]]:
        """The AVERAGED metrics of each step since the last line: part of a checkpoint, so that a resumed run logs the
        same means."""
        self.losses = [{k: float(v) for k, v in one.items()} for one in jax.device_get(self.losses)]
        return list(self.losses)

    def reset(self, step: int) -> None:
        """Measure speed from here on."""
        self.waited, self.mark, self.mark_step = 0.0, time.perf_counter(), step

    def evaluation(self, step: int, results: dict[str, dict]) -> None:
        """Log the results of `evaluate_sets` at a step."""
        values = {}
        for weights, result in results.items():
            prefix = "eval" if weights == "params" else f"eval_{weights}"
            values |= {f"{prefix}/{k}": result[k] for k in ("top1", "top5", "loss")}
            values |= {f"{prefix}/{head}/top1": r["top1"] for head, r in result["heads"].items()}
        self.write(step, **values)
        self.sync()
        if self.events:
            with self.ending("events"):
                self.events.flush()
        ema = f"  (EMA {results['ema']['top1']:.2f} %)" if "ema" in results else ""
        at = f"step {step}/{self.total}"
        top1 = results["params"]["top1"]
        self.print(f"{self.title}  {at}  top-1 {top1:.2f} %{ema}", transient=step != self.total)
        self.reset(step)

    def rolled_back(self, step: int, to: int, losses: Sequence[dict[str, float]] = ()) -> None:
        """Log that the run went back from `step` to `to`. losses: as at the start."""
        patience = self.config.stability.patience
        self.print(
            f"{self.title}: {patience} non-finite steps in a row at step {step}: back to step {to}, with other data"
        )
        if self.writes:
            with self.ending("file"):
                self.rewind(to)
        self.write(to, rolled_back_from=step)
        self.losses = list(losses)
        self.reset(to)

    def end(self) -> None:
        """Draw the curves of a finished run. A failure is a printed line: the run's weights are what counts."""
        if not self.writes:
            return
        self.sync()
        try:
            plots.curves(self.workdir / "curves.png", {self.title: read_log(self.workdir)})
        except Exception as error:
            self.print(f"{self.title}: curves.png could not be drawn ({type(error).__name__}: {error!s:.160})")

    def close(self) -> None:
        """Close the files."""
        for output in (self.file, self.events):
            if output:
                with contextlib.suppress(OSError):  # what a full disk refuses is lost
                    output.close()


def describe_loss(values: dict[str, float]) -> str:
    """The losses and agreements of a line, in short."""
    text = f"loss {values['loss']:.4f}"
    if "distillation_loss" in values:
        text += f" (class {values['class_loss']:.3f}, distillation {values['distillation_loss']:.3f})"
    agreements = [f"{100 * values[name]:.0f}" for name in ("cls_agreement", "dist_agreement") if name in values]
    return text + (f"  agreement {'/'.join(agreements)} %" if agreements else "")


def mean_of_finite(values: Sequence[float]) -> float:
    """Their mean without those that are not finite (skipped steps, counted elsewhere); NaN where none is."""
    finite = [x for x in values if math.isfinite(x)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def open_events(folder: Path, start: int) -> Any:
    """tensorboardX's synchronous writer: that of `SummaryWriter` waits for ever for its thread, which a full disk ends.

    What a former start wrote past step `start` is hidden.
    """
    from tensorboardX.event_file_writer import EventsWriter  # here: 0.3 s, and only process 0 needs it
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"))
    messages: Any = event_pb2  # made at run time: its classes are unknown to type checkers
    session = messages.SessionLog(status=messages.SessionLog.START)
    writer.write_event(messages.Event(step=start + 1, session_log=session))
    return writer


def write_events(writer: Any, step: int, scalars: dict[str, float]) -> None:
    """Add scalars at a step to a writer of `open_events`."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar

    messages: Any = event_pb2
    for name, value in scalars.items():
        writer.write_event(messages.Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
