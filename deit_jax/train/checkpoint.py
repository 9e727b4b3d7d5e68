"""Orbax checkpoints of a run.

    WORKDIR/checkpoints/STEP/    params, ema ({"params", "batch_stats"} each), rest (step, optimizer, …), meta (JSON)
                                 checksums.json: of each file, see deit_jax/weights/integrity.py
                                 scores.json: its evaluation, which comes after saving
    WORKDIR/damaged/STEP/        a damaged checkpoint, which was moved here

The newest `checkpoint.keep` are kept, and the best by top-1. Any mesh reads any mesh's checkpoint. If the newest one is
damaged, the one before it is used. A failed save ends the run; the next start removes what is left of it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, Bool, Integer
from orbax.checkpoint import checkpoint_managers as policies

from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage
from deit_jax.runtime.processes import from_process_0, print_once
from deit_jax.weights import integrity
from deit_jax.weights.orbax import SCORES, read_meta

LARGEST_WEIGHT = 1e6  # a parameter beyond it belongs to a run that has diverged, though no value is infinite yet


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


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous: a failure is a UserError of the next call.

    Opening moves damaged checkpoints away, until the newest one is intact. Raises UserError if all are damaged.
    """

    def __init__(self, workdir: Path, keep: int = 2):
        self.directory = storage.as_path(workdir) / "checkpoints"
        self.scores: dict[int, dict[str, Any]] = {}
        self.step_in_progress = 0
        from_process_0(lambda: set_damaged_aside(self.directory))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), KeepBest(self.scores)]),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self.write_checksums),
        )
        self.manager = ocp.CheckpointManager(self.directory, options=options)
        evaluated = {step: self.meta(step).get("metrics") for step in self.manager.all_steps()}
        self.scores |= {step: metrics for step, metrics in evaluated.items() if metrics}

    def write_checksums(self) -> None:
        """Write the checksums of the step that is being saved: it has all its files, and not yet its final name."""
        if storage.is_bucket(self.directory):
            integrity.write_sums(self.folder(self.step_in_progress))
        else:
            integrity.write_sums(next(self.directory.glob(f"{self.step_in_progress}.*")))

    def latest(self) -> int | None:
        """The newest step, or None if nothing is saved."""
        return self.manager.latest_step()

    def folder(self, step: int) -> Path:
        """The folder of a step."""
        return self.directory / str(step)

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON beside the arrays of a committed step; {} if the step is missing or its metadata is damaged."""
        try:
            return read_meta(self.folder(step))
        except UserError:
            return {}

    def score(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the evaluation of a step, before or after it is saved; the best step by top-1 is kept."""
        self.scores[step] = metrics
        if step in self.manager.all_steps():
            self.wait_for_save()
            if jax.process_index() == 0:
                atomic.write_json(self.folder(step) / SCORES, metrics)

    def save(self, state: dict, meta: dict) -> None:
        """Start to save the state as its step; an existing step is left alone."""
        self.wait_for_save()
        step = int(state["step"])
        if step in self.manager.all_steps():
            return
        healthy = bool(is_healthy(state["params"], state["nonfinite"]["in_row"]))
        more = {"step": step, "metrics": self.scores.get(step, {}), "healthy": healthy}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in split_items(state).items()}
        items["meta"] = ocp.args.JsonSave(meta | more)
        self.step_in_progress = step
        with self.saving():
            self.manager.save(step, args=ocp.args.Composite(**items))

    def wait_for_save(self) -> None:
        """Wait for the running save. Raises UserError where it failed."""
        with self.saving():
            self.manager.wait_until_finished()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Within, a failure is a UserError: the file, the reason, and the step from which the same command resumes."""
        try:
            yield
        except Exception as error:  # TensorStore and gcsfs have errors of their own
            last = next((path.name for path in integrity.steps_in(self.directory)), "none")
            failure = atomic.write_error(self.folder(self.step_in_progress), error)
            raise UserError(f"{failure}; the last saved step is {last}: the same command resumes from there") from error

    def restore(self, shapes: dict, step: int) -> dict:
        """The state at `step`. shapes: the state as ShapeDtypeStructs with the shardings wanted."""
        items = {name: ocp.args.StandardRestore(tree) for name, tree in split_items(shapes).items()}
        got = self.manager.restore(step, args=ocp.args.Composite(**items))
        return {**got["rest"], **got["params"], "ema": got.get("ema", {})}

    def last_good(self) -> int | None:
        """The newest intact step that was saved with finite, bounded parameters and no skipped step just before it."""
        self.wait_for_save()  # a step that is still being written has no metadata yet
        healthy = [s for s in sorted(self.manager.all_steps(), reverse=True) if self.meta(s).get("healthy")]
        found = from_process_0(lambda: next((s for s in healthy if integrity.damage(self.folder(s)) is None), -1))
        return None if found < 0 else found

    def discard_after(self, step: int) -> None:
        """Delete what was saved after `step`, so that the run can save there again."""
        self.wait_for_save()
        for later in [s for s in self.manager.all_steps() if s > step]:
            self.manager.delete(later)
        for later in [s for s in self.scores if s > step]:
            del self.scores[later]

    def close(self) -> None:
        """Wait for the running save, and end the saver's threads."""
        try:
            self.wait_for_save()
        finally:
            self.manager.close()


def split_items(state: dict) -> dict[str, dict]:
    """A state as the items of a checkpoint: {"params", "rest", "ema" if there is one}."""
    rest = {name: value for name, value in state.items() if name not in ("params", "batch_stats", "ema")}
    items = {"params": {name: state[name] for name in ("params", "batch_stats")}, "rest": rest}
    return items | ({"ema": state["ema"]} if state["ema"] else {})


def set_damaged_aside(directory: Path) -> None:
    """Move the newest checkpoints away until one is intact, with a line about each; raise UserError if none is."""
    intact, damaged = integrity.first_intact(integrity.steps_in(directory))
    if damaged and intact is None:
        step, found = next(iter(damaged.items()))
        raise UserError(
            f"no checkpoint in {directory} is intact ({step.name}/{found}): restore one from a copy, or train again in"
            " another --workdir"
        )
    for step, found in damaged.items():
        place = integrity.set_aside(step)
        print_once(
            f"checkpoint {step} is damaged ({found}): "
            + ("no longer used" if place == step else f"set aside in {place}")
        )
