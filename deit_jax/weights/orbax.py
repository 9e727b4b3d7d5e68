"""Weights in an Orbax checkpoint of a run, or of `deit_jax.convert`: which step, its metadata, its arrays."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from deit_jax.errors import UserError


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


def saved_shapes(item: Path) -> dict:
    """The tree of one item of a checkpoint (STEP/params, …), as Orbax's metadata has it."""
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(item)).tree


def read_weights(folder: str | os.PathLike, weights: str = "params") -> tuple[dict, dict]:
    """(meta, {"params", "batch_stats"}) of a checkpoint, as numpy arrays on this host.

    folder: a workdir, its `checkpoints`, one step, or a weights-only folder of `deit_jax.convert`. weights: "params",
    or "ema" for the averaged ones. Raises UserError where there is no such checkpoint.
    """
    step = find_step(Path(folder).absolute())
    if step is None:
        raise UserError(f"{folder} holds no checkpoint: give a workdir, or one of its checkpoints/STEP folders")
    if not (step / weights).is_dir():
        raise UserError(f"checkpoint {step} has no {weights} weights: it was saved without averaging")
    handler = ocp.PyTreeCheckpointHandler()
    shapes = saved_shapes(step / weights)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    arrays = handler.restore(
        epath.Path(step / weights), args=ocp.args.PyTreeRestore(item=shapes, restore_args=as_numpy)
    )
    return read_meta(step), {
        "params": arrays["params"],
        "batch_stats": arrays.get("batch_stats", arrays.get("stats", {})),
    }
