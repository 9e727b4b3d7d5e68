"""What a person sees of a run: the progress line, JSON lines, TensorBoard events, and `report.md`."""

import contextlib
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from deit_jax.config import recipe_differences
from deit_jax.report import plots
from deit_jax.report.tables import duration


def read_log(workdir: str | Path) -> list[dict]:
    """The records of a run's log.jsonl, in order; [] where there is none."""
    path = Path(workdir) / "log.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a killed process may leave half a last line
            records.append(json.loads(line))
    return records


class Log:
    """Follows one run. Only process 0 prints and writes.

    A resumed run drops what was logged past its checkpoint, so that the curve has each step once.
    """

    def __init__(self, workdir: Path, *, title: str, config, start: int, total: int, per_epoch: int):
        self.workdir, self.title, self.config = workdir, title, config
        self.start, self.total, self.per_epoch = start, total, per_epoch
        self.writes = jax.process_index() == 0
        self.tty = sys.stdout.isatty()
        self.waited, self.mark, self.mark_step = 0.0, time.perf_counter(), start
        self.first = None
        self.broken = 0  # training images that could not be read and were replaced, so far
        self.events = None
        if self.writes:
            self.rewind(start)
            if config.log.tensorboard:
                from tensorboardX import SummaryWriter

                self.events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def rewind(self, step: int) -> None:
        """Drop what was logged past `step`, in a way that a kill at any moment leaves a whole log."""
        kept = [r for r in read_log(self.workdir) if r["step"] <= step]
        part, whole = self.workdir / "log.jsonl.part", self.workdir / "log.jsonl"
        part.write_text("".join(json.dumps(r) + "\n" for r in kept))
        part.replace(whole)
        self.file = open(whole, "a", buffering=1)  # noqa: SIM115  lives as long as the run

    def say(self, text: str, *, passing: bool = False) -> None:
        """Print a line; a `passing` one is overwritten by the next on a terminal."""
        if self.writes:
            clear = "\r\x1b[K" if self.tty else ""
            print(clear + text, end="" if passing and self.tty else "\n", flush=True)

    def write(self, step: int, **values) -> None:
        if not self.writes:
            return
        self.file.write(json.dumps({"step": step, "epoch": round(step / self.per_epoch, 4), **values}) + "\n")
        if self.events:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(name, value, step)

    def begin(self, student, params, *, teacher: str, notes: list[str], mesh) -> None:
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
        c = self.config
        distil = f", {c.distill.kind} distillation" if c.distill.kind != "none" else ""
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
            done = "complete, evaluating again" if self.start >= self.total else f"going on from step {self.start}"
            self.say(f"{self.title}: {done}")
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self):
        """Around the taking of a batch: time that the devices may stand idle for the input."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def step(self, step: int, metrics: dict) -> dict[str, float] | None:
        """After each step; every `log.every` steps reads the metrics from the device, shows and returns them."""
        if self.first is None:  # the first step holds the compilation: it says nothing about speed
            jax.block_until_ready(metrics["loss"])
            self.first = time.perf_counter() - self.mark
            self.say(f"{self.title}: first step after {self.first:.1f} s, compilation included", passing=True)
            self.reset(step)
        if step % self.config.log.every and step != self.total:
            return None
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
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
        broken = {"broken_images": self.broken} if self.broken else {}
        self.write(step, **values, **speed, **broken)
        self.reset(step)
        return values

    def reset(self, step: int) -> None:
        self.waited, self.mark, self.mark_step = 0.0, time.perf_counter(), step

    def evaluation(self, step: int, results: dict) -> None:
        values = {}
        for weights, result in results.items():
            prefix = "eval" if weights == "params" else f"eval_{weights}"
            values |= {f"{prefix}/{k}": result[k] for k in ("top1", "top5", "loss")}
            values |= {f"{prefix}/{head}/top1": r["top1"] for head, r in result["heads"].items()}
        self.write(step, **values)
        if self.events:
            self.events.flush()
        ema = f"  (averaged weights {results['ema']['top1']:.2f} %)" if "ema" in results else ""
        at = f"step {step}/{self.total}"
        self.say(f"{self.title}  {at}  top-1 {results['params']['top1']:.2f} %{ema}", passing=step != self.total)
        self.reset(step)

    def rolled_back(self, step: int, to: int) -> None:
        bad = self.config.stability.patience
        self.say(f"{self.title}: {bad} non-finite steps in a row at step {step}: back to step {to}, with other data")
        if self.writes:
            self.file.close()
            self.rewind(to)
        self.write(to, rolled_back_from=step)
        self.reset(to)

    def end(self) -> None:
        if not self.writes:
            return
        plots.curves(self.workdir / "curves.png", {self.title: read_log(self.workdir)})
        self.close()

    def close(self) -> None:
        if self.writes:
            self.file.close()
        if self.events:
            self.events.close()
