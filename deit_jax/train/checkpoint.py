"""Orbax checkpoints of a run.

    WORKDIR/checkpoints/STEP/    params, ema ({"params", "batch_stats"} each), rest (step, optimizer, …), meta (JSON)
                                 scores.json: its evaluation, which comes after saving

The newest `checkpoint.keep` are kept, and the best by top-1. Any mesh reads any mesh's checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from deit_jax.runtime import atomic
from deit_jax.weights.orbax import SCORES, read_meta, saved_shapes

LARGEST_WEIGHT = 1e6  # a parameter beyond it belongs to a run that has diverged, though no value is infinite yet

# what older checkpoints call these entries of the state
FORMER_NAMES = {"batch_stats": "stats", "nonfinite": "bad"}


@jax.jit
def is_healthy(params: dict, nonfinite_in_row: jax.Array) -> jax.Array:
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
    """The checkpoints of one run. Saving is asynchronous; `close` waits for it."""

    def __init__(self, workdir: Path, keep: int = 2):
        self.scores: dict[int, dict[str, Any]] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), KeepBest(self.scores)]),
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(workdir / "checkpoints", options=options)
        evaluated = {step: self.meta(step).get("metrics") for step in self.manager.all_steps()}
        self.scores |= {step: metrics for step, metrics in evaluated.items() if metrics}

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def folder(self, step: int) -> Path:
        return Path(self.manager.directory) / str(step)

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON beside the arrays of a committed step; {} where the step is not there."""
        return read_meta(self.folder(step)) if self.folder(step).is_dir() else {}

    def score(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the evaluation of a step, before or after it is saved; the best step by top-1 is kept."""
        self.scores[step] = metrics
        if step in self.manager.all_steps():
            self.manager.wait_until_finished()
            if jax.process_index() == 0:
                atomic.write_json(self.folder(step) / SCORES, metrics)

    def scored(self, step: int) -> bool:
        """Whether the evaluation of a step is recorded."""
        return step in self.scores

    def save(self, state: dict, meta: dict, metrics: dict | None = None) -> None:
        """Save the state as its step; a step that is already there is left alone. metrics: as `score`, if known."""
        step = int(state["step"])
        if step in self.manager.all_steps():
            return
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
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, shapes: dict, step: int | None = None) -> dict:
        """The state at `step` (default newest). shapes: the state as ShapeDtypeStructs with the shardings wanted."""
        step = self.latest() if step is None else step
        trees = {
            "params": {k: shapes[k] for k in ("params", "batch_stats")},
            "rest": {k: v for k, v in shapes.items() if k not in ("params", "batch_stats", "ema")},
        }
        if shapes["ema"]:
            trees["ema"] = shapes["ema"]
        folder = Path(self.manager.directory) / str(step)
        saved = {item: saved_shapes(folder / item) for item in trees}
        names = {item: {k: k if k in saved[item] else FORMER_NAMES.get(k, k) for k in trees[item]} for item in trees}
        items = {
            item: ocp.args.StandardRestore({names[item][k]: v for k, v in tree.items()}) for item, tree in trees.items()
        }
        got = self.manager.restore(step, args=ocp.args.Composite(**items))
        got = {item: {k: got[item][names[item][k]] for k in tree} for item, tree in trees.items()}
        return {**got["rest"], **got["params"], "ema": got.get("ema", {})}

    def last_good(self) -> int | None:
        """The newest step that was saved with finite, bounded parameters and no non-finite step just before it."""
        self.manager.wait_until_finished()  # a step that is still being written has no metadata yet
        steps = sorted(self.manager.all_steps(), reverse=True)
        return next((step for step in steps if self.meta(step)["healthy"]), None)

    def discard_after(self, step: int) -> None:
        """Delete what was saved after `step`, so that the run can save there again."""
        self.manager.wait_until_finished()
        for later in [s for s in self.manager.all_steps() if s > step]:
            self.manager.delete(later)
        for later in [s for s in self.scores if s > step]:
            del self.scores[later]

    def roll_back(self, step: int, shapes: dict) -> dict:
        """The state at `step`, after `discard_after` it."""
        self.discard_after(step)
        return self.restore(shapes, step)

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()
