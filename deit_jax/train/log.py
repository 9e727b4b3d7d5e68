"""Run logging: console, log.jsonl, trackers."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from deit_jax.errors import UserError
from deit_jax.evaluate.tables import duration
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime import atomic, storage
from deit_jax.train.optimizer import describe_schedule
from deit_jax.train.run import Run
from deit_jax.train.trackers import Trackers

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
    """Follows one run. Only process 0 prints and writes; where a file cannot be written, logging to it
    stops, with one message, and training continues.

    A resumed run drops what was logged past its checkpoint, so that the curve has each step once. In a bucket, where
    nothing can be appended, log.jsonl is written at each checkpoint and evaluation.

    Args:
        run: the run; log.jsonl and tensorboard/ go into its folder.
        start: the step it begins or resumes at.
        evaluated: False where the evaluation of step `start` is not recorded, and will be logged (again).
        interval: metrics of the steps before `start` that no line has averaged yet, of `interval_metrics`.
    """

    def __init__(self, run: Run, start: int, *, evaluated: bool = True, interval: Sequence[dict[str, float]] = ()):
        self.run, self.config, self.start, self.compiled = run, run.config, start, False
        self.writes = jax.process_index() == 0
        self.path: Path | None = run.folder / "log.jsonl" if self.writes else None  # None: not written (any more)
        self.pending: list[bytes] = []  # lines that are not in the file yet
        self.interval: list[dict[str, Any]] = list(interval)  # of each step since the last line
        self.rewind(start, evaluated)
        say = lambda text: self.print(f"{run.title}: {text}")
        self.trackers = Trackers(run, start, say) if self.writes else None
        self.reset(start)

    def rewind(self, step: int, evaluated: bool = True) -> None:
        """Drop what was logged past `step`, and its evaluation unless `evaluated`; a kill leaves the old log."""
        if self.path:
            with self.ending():
                kept = [
                    json_line(r)
                    for r in read_log(self.run.folder)
                    if r["step"] < step or (r["step"] == step and (evaluated or "eval/top1" not in r))
                ]
                atomic.write_bytes(self.path, b"".join(kept))
            self.pending = []

    def sync(self) -> None:
        """Write the pending lines; called before a checkpoint, which must not be ahead of the log."""
        lines, self.pending = b"".join(self.pending), []
        if self.path and lines:
            with self.ending():
                if storage.is_bucket(self.path):
                    atomic.write_bytes(self.path, self.path.read_bytes() + lines)
                else:
                    with self.path.open("ab") as file:
                        file.write(lines)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Within, a log.jsonl that cannot be written ends, which is reported in one line."""
        try:
            yield
        except (OSError, UserError) as error:
            self.path = None
            self.print(f"{self.run.title}: log.jsonl cannot be written, and ends here ({error}): training continues")

    def print(self, text: str, *, transient: bool = False) -> None:
        """Print a line; a transient one is overwritten by the next on a terminal."""
        if self.writes:
            terminal = sys.stdout.isatty()
            clear = "\r\x1b[K" if terminal else ""
            with contextlib.suppress(OSError):  # the terminal is gone, or the disk of a redirected output full
                print(clear + text, end="" if transient and terminal else "\n", flush=True)

    def write(self, step: int, **values: Any) -> None:
        """Log values at a step, to log.jsonl and the trackers."""
        epoch = round(step / self.run.steps_per_epoch, 4)
        self.pending.append(json_line({"step": step, "epoch": epoch, **values}))
        if self.path and not storage.is_bucket(self.path):
            self.sync()
        if self.trackers:
            self.trackers.log(step, values)

    def begin(self, params: dict) -> None:
        """Introduce the run, with a line for each thing that was changed to fit weights, or is unusual."""
        run, c, student, devices = self.run, self.config, self.run.model, self.run.mesh.devices
        count = sum(x.size for x in jax.tree.leaves(params))
        distil = f", {OBJECTIVES[c.distill.kind].title}" if c.distill.kind != "none" else ""
        if run.teacher:
            distil += f" from {c.teacher.name or c.teacher.init}" if run.teacher.models else " from stored labels"
        self.print(
            f"{run.title}: {c.model.name}, {count:,} parameters, {student.img_size} px, {student.num_classes} classes"
            f"{distil}; {run.total_steps} steps of {c.batch_size} on {devices.size} x {devices.flat[0].device_kind}"
        )
        teachers = run.teacher.models if run.teacher else ()
        notes = [*run.init_notes, *(note for model in teachers for note in model.notes)]
        notes += [describe_schedule(c, run.steps_per_epoch)]
        for note in notes:
            self.print(f"  {note}")
        if self.start:
            done = f"resuming from step {self.start}" if self.start < run.total_steps else "complete, evaluating again"
            self.print(f"{run.title}: {done}")
        self.reset(self.start)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the taking of a batch: time that the devices may stand idle for the input."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def record(self, step: int, metrics: dict[str, jax.Array], *, broken: int = 0) -> None:
        """Follow one step; every `log.every` steps, and after the last, read the metrics from the device and show them.

        The metrics of AVERAGED are means over the finite values since the last line; the others are the last step's.
        broken: training images so far that could not be read and were replaced.
        """
        self.interval.append({name: metrics[name] for name in AVERAGED if name in metrics})
        if not self.compiled:  # the first step holds the compilation: it says nothing about speed
            jax.block_until_ready(metrics["loss"])
            seconds, self.compiled = time.perf_counter() - self.mark, True
            self.print(f"{self.run.title}: first step after {seconds:.1f} s, compilation included", transient=True)
            self.reset(step)
        total = self.run.total_steps
        if step % self.config.log.every and step != total:
            return
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        interval = self.interval_metrics()
        values |= {name: mean_of_finite([one[name] for one in interval if name in one]) for name in interval[-1]}
        self.interval = []
        elapsed, steps = time.perf_counter() - self.mark, step - self.mark_step
        speed = {}
        if steps:
            rate = steps * self.config.batch_size / elapsed
            speed = {"images_per_second": round(rate, 1), "wait_share": round(self.waited / elapsed, 4)}
            left, per_epoch = duration((total - step) * elapsed / steps), self.run.steps_per_epoch
            self.print(
                f"{self.run.title}  epoch {step / per_epoch:.1f}/{total / per_epoch:.1f}  step {step}/{total}  "
                f"{describe_loss(values)}  {rate:,.0f} images/s  {left} left  "
                f"waiting for data {100 * speed['wait_share']:.0f} %",
                transient=True,
            )
        self.write(step, **values, **speed, **({"broken_images": broken} if broken else {}))
        self.reset(step)

    def interval_metrics(self) -> list[dict[str, float]]:
        """The AVERAGED metrics of each step since the last line: part of a checkpoint, so that a resumed run logs the
        same means."""
        self.interval = [{k: float(v) for k, v in one.items()} for one in jax.device_get(self.interval)]
        return list(self.interval)

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
        ema = f"  (EMA {results['ema']['top1']:.2f} %)" if "ema" in results else ""
        total, top1 = self.run.total_steps, results["params"]["top1"]
        line = f"{self.run.title}  step {step}/{total}  top-1 {top1:.2f} %{ema}"
        self.print(line, transient=step != total)
        self.reset(step)

    def rolled_back(self, step: int, to: int, in_row: int, interval: Sequence[dict[str, float]] = ()) -> None:
        """Log that the run went back from `step` to `to` after `in_row` non-finite steps. interval: as at the start."""
        self.print(
            f"{self.run.title}: {in_row} non-finite steps in a row at step {step}: back to step {to}, on other data"
        )
        self.rewind(to)
        self.write(to, rolled_back_from=step)
        self.interval = list(interval)
        self.reset(to)

    def close(self) -> None:
        """Write what is pending, and close the trackers."""
        self.sync()
        if self.trackers:
            self.trackers.close()


def describe_loss(values: dict[str, float]) -> str:
    """The losses and agreements of a line, in short."""
    text = f"loss {values['loss']:.4f}"
    if "class_loss" in values and "distillation_loss" in values:
        text += f" (class {values['class_loss']:.3f}, distillation {values['distillation_loss']:.3f})"
    agreements = [f"{100 * values[name]:.0f}" for name in ("cls_agreement", "dist_agreement") if name in values]
    return text + (f"  agreement {'/'.join(agreements)} %" if agreements else "")


def mean_of_finite(values: Sequence[float]) -> float:
    """Their mean without those that are not finite (skipped steps, counted elsewhere); NaN where none is."""
    finite = [x for x in values if math.isfinite(x)]
    return math.fsum(finite) / len(finite) if finite else math.nan
