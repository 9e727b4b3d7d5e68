"""Orbax checkpoints of a run.

    WORKDIR/checkpoints/STEP/    params, ema ({"params", "batch_stats"} each), rest (step, optimizer, …), meta (JSON)
                                 checksums.json: of each file, see deit_jax/weights/integrity.py
                                 scores.json: its evaluation, which comes after saving
    WORKDIR/damaged/STEP/        what could not be used to resume

The newest `checkpoint.keep` are kept, and the best by top-1. Any mesh reads any mesh's checkpoint. What is read is
verified first; a damaged checkpoint is set aside and the one before it used. A save that fails loses no training: it is
said in one line, and the next save tries again.
"""

import contextlib
import functools
import logging
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Bool, Integer
from orbax.checkpoint import checkpoint_managers as policies

from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage
from deit_jax.runtime.processes import from_process_0
from deit_jax.weights import integrity
from deit_jax.weights.orbax import SCORES, read_meta, saved_shapes

LARGEST_WEIGHT = 1e6  # a parameter beyond it belongs to a run that has diverged, though no value is infinite yet

# what older checkpoints call these entries of the state
FORMER_NAMES = {"batch_stats": "stats", "nonfinite": "bad"}


@jax.jit
def is_healthy(params: dict, nonfinite_in_row: Integer[Array, ""]) -> Bool[Array, ""]:
    """Whether parameters are finite and bounded, and the last step was not skipped."""
    bounded = [(jnp.abs(x) <= LARGEST_WEIGHT).all() for x in jax.tree.leaves(params)]  # False for NaN
    return jnp.stack(bounded).all() & (nonfinite_in_row == 0)


class KeepBest(policies.PreservationPolicy):
    """Keeps the checkpoint of the highest top-1, the newest of several. scores: {step: evaluation}, which may grow."""

    def __init__(self, scores: dict[int, dict[str, Any]]):
        self.scores = scores

    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: policies.PreservationContext
    ) -> Sequence[bool]:
        scored = [c.step for c in checkpoints if c.step in self.scores]
        best = max(scored, key=lambda step: (self.scores[step]["top1"], step), default=None)
        return [c.step == best for c in checkpoints]


def say(text: str) -> None:
    """A line from process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous; `close` waits for it.

    Opening sets aside what is damaged, until the newest one is intact. Raises UserError where all are damaged, or the
    folder cannot be written.
    """

    def __init__(self, workdir: Path, keep: int = 2):
        self.directory, self.keep = storage.place(workdir) / "checkpoints", keep
        self.scores: dict[int, dict[str, Any]] = {}
        self.saving: int | None = None
        self.failure: UserError | None = None  # of the last save, until one succeeds
        self.stale = False  # whether Orbax still counts a step that was not saved
        from_process_0(lambda: set_damaged_aside(self.directory))
        silence_save_threads()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), KeepBest(self.scores)]),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self.sum_files),
        )
        try:
            self.manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise atomic.write_error(self.directory, error) from error
        self.known = set(self.manager.all_steps())  # steps that are saved, as last seen
        evaluated = {step: self.meta(step).get("metrics") for step in self.manager.all_steps()}
        self.scores |= {step: metrics for step, metrics in evaluated.items() if metrics}

    def sum_files(self) -> None:
        """Write the checksums of the step that is being saved: all its files are there, its final name is not."""
        for folder in self.unfinished():
            integrity.write_sums(folder)

    def unfinished(self) -> list[Path]:
        """The folders of the step that is being saved, or was when that failed."""
        if storage.is_bucket(self.directory):
            folder = self.folder(self.saving or 0)
            return [] if self.saving is None or integrity.is_complete(folder) else [folder]
        return list(self.directory.glob(f"{self.saving}.*"))

    def latest(self) -> int | None:
        """The newest step, or None where nothing is saved."""
        return self.manager.latest_step()

    def folder(self, step: int) -> Path:
        """The folder of a step."""
        return self.directory / str(step)

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON beside the arrays of a committed step; {} where the step is not there or its metadata is damaged."""
        try:
            return read_meta(self.folder(step))
        except UserError:
            return {}

    def score(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the evaluation of a step, before or after it is saved; the best step by top-1 is kept."""
        self.scores[step] = metrics
        if step in self.manager.all_steps():
            self.settle()
            if jax.process_index() == 0:
                try:
                    if self.folder(step).is_dir():
                        integrity.write_record(self.folder(step) / SCORES, metrics)
                except (UserError, OSError) as error:
                    say(f"warning: {error}")

    def scored(self, step: int) -> bool:
        """Whether the evaluation of a step is recorded."""
        return step in self.scores

    def forecast(self, shapes: dict) -> str:
        """One line: the disk space that the run's checkpoints will take, and what is free. shapes: the state's."""
        each, free = state_bytes(shapes), atomic.free_space(self.directory)
        count = self.keep + 2  # the best, and the one being written
        if storage.is_bucket(self.directory):
            return f"checkpoints: {atomic.readable(each)} each, {count} at most, in {self.directory}"
        there = sum(storage.files(self.directory).values())
        short = count * each - there > free
        return f"checkpoints: {atomic.readable(each)} each, {count} at most; {atomic.readable(free)} free" + (
            f" in {self.directory}: that may not be enough" if short else ""
        )

    def save(self, state: dict, meta: dict, metrics: dict | None = None) -> bool:
        """Start to save the state as its step; a step that is already there is left alone.

        metrics: as `score`, if known. Returns whether it was started: a full disk, or one that cannot be written, is
        said in one line and is not an error: training continues and the next save tries again.
        """
        self.settle()
        step = int(state["step"])
        try:
            self.refresh()
        except OSError as error:
            self.saving = step
            self.fail(error)
            return False
        if step in self.manager.all_steps():
            return True
        if metrics:
            self.scores[step] = metrics
        items = {
            "params": ocp.args.StandardSave({"params": state["params"], "batch_stats": state["batch_stats"]}),
            "rest": ocp.args.StandardSave(
                {k: v for k, v in state.items() if k not in ("params", "batch_stats", "ema")}
            ),
            "meta": ocp.args.JsonSave(
                meta
                | {
                    "step": step,
                    "metrics": self.scores.get(step, {}),
                    "healthy": bool(is_healthy(state["params"], state["nonfinite"]["in_row"])),
                }
            ),
        }
        if state["ema"]:
            items["ema"] = ocp.args.StandardSave(state["ema"])
        needed = state_bytes(state)
        self.saving = step
        try:
            from_process_0(lambda: check_space(self.directory, needed))
            if not (storage.is_bucket(self.directory) or self.directory.is_dir()):
                say(f"warning: {self.directory} was removed or moved while the run was writing to it: it is recreated")
                self.manager.reload()
            self.manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            self.fail(error, needed)
            return False
        return True

    def settle(self) -> None:
        """Wait for the running save; one that failed is said in one line, and its remains are removed."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            self.fail(error)
        else:
            with contextlib.suppress(OSError):  # a bucket that does not answer
                if self.saving is not None and integrity.is_complete(self.folder(self.saving)):
                    self.failure = None
                    self.known.add(self.saving)

    def fail(self, error: Exception, needed: int = 0) -> None:
        """Note and say that a save failed for want of a disk to write to; raise any other error again."""
        if isinstance(error, UserError):
            failure = error
        elif atomic.is_disk_error(error):
            failure = atomic.write_error(self.folder(self.saving or 0), error, needed)
        else:
            raise error
        self.failure = failure
        if jax.process_index() == 0 or not isinstance(error, UserError):  # each process its own disk's
            what = f"warning: step {self.saving} is not saved: {failure}"
            print(f"{what}; training continues, and the next save tries again", flush=True)
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # a bucket that does not answer: the next start removes them
                for remains in self.unfinished():
                    storage.remove(remains)
        self.stale = True  # it counts the step as saved
        with contextlib.suppress(OSError):
            self.refresh()

    def refresh(self) -> None:
        """Have Orbax see which steps are there, where a save failed. Raises OSError where the disk does not answer."""
        if self.stale:
            self.manager.reload()
            self.stale = False

    def restore(self, shapes: dict, step: int | None = None) -> dict:
        """The state at `step` (default newest). shapes: the state as ShapeDtypeStructs with the shardings wanted.

        A checkpoint from before checksums whose damage shows only here is set aside, and the one before it restored.
        """
        chosen = self.latest() if step is None else step
        if chosen is None:
            raise UserError(f"{self.directory} holds no checkpoint")
        try:
            return self.read(shapes, chosen)
        except Exception as error:
            steps = [s for s in self.manager.all_steps() if s < chosen]
            if integrity.has_sums(self.folder(chosen)) or not steps or jax.process_count() > 1:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
                raise UserError(
                    f"checkpoint {self.folder(chosen)} cannot be read ({reason}): move it out of the folder, and the"
                    " same command resumes from the one before"
                ) from error
            place = integrity.set_aside(self.folder(chosen))
            say(f"checkpoint {self.folder(chosen)} cannot be read: set aside in {place}, going on from {max(steps)}")
            self.manager.reload()
            return self.restore(shapes, max(steps))

    def read(self, shapes: dict, step: int) -> dict:
        """As `restore`, of one step."""
        trees = {
            "params": {k: shapes[k] for k in ("params", "batch_stats")},
            "rest": {k: v for k, v in shapes.items() if k not in ("params", "batch_stats", "ema")},
        }
        if shapes["ema"]:
            trees["ema"] = shapes["ema"]
        saved = {item: saved_shapes(self.folder(step) / item) for item in trees}
        names = {item: {k: k if k in saved[item] else FORMER_NAMES.get(k, k) for k in trees[item]} for item in trees}
        items = {
            item: ocp.args.StandardRestore({names[item][k]: v for k, v in tree.items()}) for item, tree in trees.items()
        }
        got = self.manager.restore(step, args=ocp.args.Composite(**items))
        got = {item: {k: got[item][names[item][k]] for k in tree} for item, tree in trees.items()}
        return {**got["rest"], **got["params"], "ema": got.get("ema", {})}

    def last_good(self) -> int | None:
        """The newest intact step that was saved with finite, bounded parameters and no skipped step just before it."""
        self.settle()  # a step that is still being written has no metadata yet
        healthy = [step for step in sorted(self.manager.all_steps(), reverse=True) if self.meta(step).get("healthy")]
        found = from_process_0(lambda: next((s for s in healthy if integrity.damage(self.folder(s)) is None), -1))
        return None if found < 0 else found

    def discard_after(self, step: int) -> None:
        """Delete what was saved after `step`, so that the run can save there again."""
        self.settle()
        for later in [s for s in self.manager.all_steps() if s > step]:
            self.manager.delete(later)
        self.known = {s for s in self.known if s <= step}
        for later in [s for s in self.scores if s > step]:
            del self.scores[later]

    def roll_back(self, step: int, shapes: dict) -> dict:
        """The state at `step`, after `discard_after` it."""
        self.discard_after(step)
        return self.restore(shapes, step)

    def newest_saved(self) -> str:
        """What a message says is saved; asked of the disk, as it may be said in the middle of a save.

        A bucket is not asked: it may not answer for a minute, and the message may be a signal's.
        """
        in_bucket = storage.is_bucket(self.directory)
        steps = self.known if in_bucket else {int(p.name) for p in integrity.steps_in(self.directory)}
        newest = max(steps, default=None)
        return "nothing" if newest is None else f"step {newest}"

    def close(self) -> None:
        """Wait for the running save. Raises UserError where the last one failed: the run's end is not on the disk."""
        self.settle()
        self.manager.close()
        if self.failure is not None:
            raise UserError(f"{self.failure}; last saved: {self.newest_saved()}; the same command resumes from there")


@functools.cache
def silence_save_threads() -> None:
    """Leave the report of a failed save to `Checkpoints.fail`: Orbax prints a traceback per thread that it uses."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.exc_info is None)
    report = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        frames = traceback.extract_tb(arguments.exc_traceback)
        if error is None or not atomic.is_disk_error(error) or not any("orbax" in f.filename for f in frames):
            report(arguments)

    threading.excepthook = hook


def set_damaged_aside(directory: Path) -> None:
    """Set aside the newest checkpoints until one is intact, with a line about each; raise UserError if none is."""
    steps = sorted(integrity.steps_in(directory), key=lambda p: -int(p.name))
    damaged: list[tuple[Path, str]] = []
    for step in steps:
        found = integrity.damage(step)
        if found is None:
            break
        damaged.append((step, found))
    if damaged and len(damaged) == len(steps):
        step, found = damaged[0]
        raise UserError(
            f"no checkpoint in {directory} is intact ({step.name}/{found}): restore a copy of one, or train again in"
            " another --workdir"
        )
    for step, found in damaged:
        place = integrity.set_aside(step)
        say(f"checkpoint {step} is damaged ({found}): set aside in {place}")


def state_bytes(state: dict) -> int:
    """Bytes of a state's arrays, or of their shapes."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))


def check_space(directory: Path, needed: int) -> None:
    """Raise UserError where a checkpoint of `needed` bytes does not fit, or nothing can be written."""
    if storage.is_bucket(directory) or directory.is_dir():  # else it is recreated
        try:
            (directory / ".writable").touch()
            (directory / ".writable").unlink()
        except OSError as error:
            raise atomic.write_error(directory / ".writable", error) from error
    free = atomic.free_space(directory)
    if free < needed:
        raise UserError(
            f"{directory} has no room ({atomic.readable(free)} free, {atomic.readable(needed)} needed): make room there"
        )
