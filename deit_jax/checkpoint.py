"""Orbax checkpoints of a run, and the folder they lie in.

    WORKDIR/config.json             the settings the run began with, and its data's fingerprint
    WORKDIR/checkpoints/STEP/       params, ema ({"params", "stats"} each), rest (step, optimizer, …), meta (JSON)

The newest `checkpoint.keep` are kept, and the best by top-1. Any mesh reads any mesh's checkpoint.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from deit_jax.config import differences, flat
from deit_jax.errors import UserError


def claim_workdir(workdir: str | os.PathLike, config, fingerprint: str) -> Path:
    """Make the folder, or check that the run it holds is this one. Returns its path.

    config: resolved. fingerprint: of the training data. Raises UserError where the folder cannot be written or belongs
    to a run of other settings or other data; nothing in it is changed then.
    """
    folder = Path(workdir).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written ({error.strerror}): choose another --workdir") from error
    record = folder / "config.json"
    ours = json.loads(json.dumps(flat(config)))
    if record.exists():
        try:
            theirs = json.loads(record.read_text())
            seen = theirs.pop("data.fingerprint")
        except (ValueError, KeyError, AttributeError):
            raise UserError(
                f"workdir {workdir} holds a config.json that is no run's: choose another --workdir"
            ) from None
        changed = differences(ours, theirs)
        if changed:
            shown = "; ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} now" for k in changed[:4])
            more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise UserError(
                f"workdir {workdir} holds a run of another config ({shown}{more}): choose another --workdir"
            )
        if seen != fingerprint:
            raise UserError(f"the training data changed since the run in {workdir} began: choose another --workdir")
    elif jax.process_index() == 0:
        written = record.with_suffix(f".{os.getpid()}.part")  # several may begin at once
        written.write_text(json.dumps(ours | {"data.fingerprint": fingerprint}, indent=1))
        written.replace(record)  # a killed process leaves no half a record
    return folder


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
            "params": ocp.args.StandardSave({"params": state["params"], "stats": state["stats"]}),
            "rest": ocp.args.StandardSave({k: v for k, v in state.items() if k not in ("params", "stats", "ema")}),
            "meta": ocp.args.JsonSave(
                meta | {"step": step, "metrics": metrics or {}, "healthy": int(state["bad"]["in_row"]) == 0}
            ),
        }
        if state["ema"]:
            items["ema"] = ocp.args.StandardSave(state["ema"])
        scores = {"top1": metrics["top1"]} if metrics else None
        self.manager.save(step, args=ocp.args.Composite(**items), metrics=scores)

    def restore(self, shapes: dict, step: int | None = None) -> dict:
        """The state at `step` (default newest). shapes: the state as ShapeDtypeStructs with the shardings wanted."""
        step = self.latest() if step is None else step
        items = {
            "params": ocp.args.StandardRestore({"params": shapes["params"], "stats": shapes["stats"]}),
            "rest": ocp.args.StandardRestore({k: v for k, v in shapes.items() if k not in ("params", "stats", "ema")}),
        }
        if shapes["ema"]:
            items["ema"] = ocp.args.StandardRestore(shapes["ema"])
        got = self.manager.restore(step, args=ocp.args.Composite(**items))
        return {**got["rest"], **got["params"], "ema": got["ema"] if shapes["ema"] else {}}

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


def find_step(folder: Path) -> Path | None:
    """The checkpoint a folder stands for: itself, or the best (else newest) of a workdir or its `checkpoints`."""
    if (folder / "params").is_dir():
        return folder
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    steps = [p for p in folder.iterdir() if p.name.isdigit() and (p / "params").is_dir()] if folder.is_dir() else []
    if not steps:
        return None
    return max(steps, key=lambda p: (read_meta(p).get("metrics", {}).get("top1", -1.0), int(p.name)))


def read_meta(step_folder: Path) -> dict:
    """The JSON beside a checkpoint's arrays: model, step, metrics, config."""
    return json.loads((step_folder / "meta" / "metadata").read_text())


def read_weights(folder: str | os.PathLike, weights: str = "params") -> tuple[dict, dict]:
    """(meta, {"params", "stats"}) of a checkpoint, as numpy arrays on this host.

    folder: a workdir, its `checkpoints`, one step, or a weights-only folder of `deit_jax.convert`. weights: "params",
    or "ema" for the averaged ones. Raises UserError where there is no such checkpoint.
    """
    step = find_step(Path(folder).absolute())
    if step is None:
        raise UserError(f"{folder} holds no checkpoint: give a workdir, or one of its checkpoints/STEP folders")
    if not (step / weights).is_dir():
        raise UserError(f"checkpoint {step} has no {weights} weights: it was saved without averaging")
    handler = ocp.PyTreeCheckpointHandler()
    shapes = handler.metadata(epath.Path(step / weights)).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    arrays = handler.restore(
        epath.Path(step / weights), args=ocp.args.PyTreeRestore(item=shapes, restore_args=as_numpy)
    )
    return read_meta(step), {"params": arrays["params"], "stats": arrays.get("stats", {})}
