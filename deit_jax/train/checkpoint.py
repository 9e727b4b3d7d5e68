"""Orbax checkpoints of a run.

    WORKDIR/checkpoints/STEP/    params, ema ({"params", "batch_stats"} each), rest (step, optimizer, …), meta (JSON)

The newest `checkpoint.keep` are kept, and the best by top-1. Any mesh reads any mesh's checkpoint.
"""

from pathlib import Path

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from deit_jax.weights.orbax import read_meta, saved_shapes

# what older checkpoints call these entries of the state
FORMER_NAMES = {"batch_stats": "stats", "nonfinite": "bad"}


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous; `close` waits for it."""

    def __init__(self, workdir: Path, keep: int = 2):
        best = policies.BestN(get_metric_fn=lambda m: m["top1"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(workdir / "checkpoints", options=options)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: dict, meta: dict, metrics: dict | None = None) -> None:
        """Save the state as its step; a step that is already there is left alone."""
        step = int(state["step"])
        if step in self.manager.all_steps():
            return
        items = {
            "params": ocp.args.StandardSave({"params": state["params"], "batch_stats": state["batch_stats"]}),
            "rest": ocp.args.StandardSave(
                {k: v for k, v in state.items() if k not in ("params", "batch_stats", "ema")}
            ),
            "meta": ocp.args.JsonSave(
                meta | {"step": step, "metrics": metrics or {}, "healthy": int(state["nonfinite"]["in_row"]) == 0}
            ),
        }
        if state["ema"]:
            items["ema"] = ocp.args.StandardSave(state["ema"])
        scores = {"top1": metrics["top1"]} if metrics else None
        self.manager.save(step, args=ocp.args.Composite(**items), metrics=scores)

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
        """The newest step that was saved with no non-finite steps just before it."""
        steps = sorted(self.manager.all_steps(), reverse=True)
        return next((s for s in steps if read_meta(Path(self.manager.directory) / str(s))["healthy"]), None)

    def roll_back(self, step: int, shapes: dict) -> dict:
        """The state at `step`; what was saved after it goes, so that the run can save there again."""
        self.manager.wait_until_finished()
        for later in [s for s in self.manager.all_steps() if s > step]:
            self.manager.delete(later)
        return self.restore(shapes, step)

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()
