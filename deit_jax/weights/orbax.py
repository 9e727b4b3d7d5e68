"""Weights in an Orbax checkpoint of a run, or of `deit_jax.convert`: which step, its metadata, its arrays."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from deit_jax.errors import UserError
from deit_jax.own import is_own
from deit_jax.runtime import storage
from deit_jax.weights import integrity
from deit_jax.weights.metadata import read_object
from deit_jax.weights.names import PROJECTION, Own, Timm, entries
from deit_jax.weights.weight_files import Tensors

SCORES = "scores.json"  # in a step's folder: its evaluation, where that came after saving


def best_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The checkpoint a folder stands for: itself, or the best (else newest) of a workdir or its `checkpoints`; None for
    what is no folder, or holds none."""
    return next(iter(checkpoints_of(storage.as_path(folder))), None)


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints that a folder may stand for, the first choice first: itself, or a workdir's steps, best first."""
    if (folder / "params").is_dir():
        return [folder]
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    return sorted(integrity.steps_in(folder), key=lambda p: (top1(p), int(p.name)), reverse=True)


def top1(step: Path) -> float:
    """Top-1 of a step's evaluation, in percent; -1 where it has none, or its record is damaged."""
    try:
        return float(read_meta(step)["metrics"]["top1"])
    except (UserError, KeyError, TypeError, ValueError):
        return -1.0


def intact_checkpoint(folder: str | os.PathLike, weights: str = "params") -> Path:
    """As `best_checkpoint`, of those that are intact; a line on stderr says which was passed over, and why.

    Raises UserError where there is no checkpoint, or no intact one.
    """
    steps = checkpoints_of(storage.as_path(folder))
    if not steps:
        raise UserError(f"{folder} holds no checkpoint: give a workdir, or one of its checkpoints/STEP folders")
    chosen, damaged = integrity.first_intact(steps, (weights, "meta"))
    if chosen is None:
        raise UserError(f"checkpoint {steps[0]} is damaged ({damaged[steps[0]]}), and there is no intact one beside it")
    if not (chosen / weights).is_dir():
        raise UserError(f"checkpoint {chosen} has no {weights} weights: it was saved without averaging")
    for step, found in damaged.items():
        print(f"checkpoint {step} is damaged ({found}): using step {chosen.name} instead", file=sys.stderr)
    return chosen


def read_meta(step_folder: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint's arrays: model, step, metrics, config. Raises UserError where it is damaged."""
    meta = read_object(step_folder / "meta" / "metadata")
    with contextlib.suppress(UserError):
        meta["metrics"] = read_object(step_folder / SCORES)
    return meta


def read_weights(folder: str | os.PathLike, weights: str = "params") -> tuple[dict, dict]:
    """(meta, {"params", "batch_stats"}) of a checkpoint, as numpy arrays on this host.

    folder: a workdir, its `checkpoints`, one step, or a weights-only folder of `deit_jax.convert`. weights: "params",
    or "ema" for the EMA. Of a workdir, the best intact step. Raises UserError where there is none.
    """
    step = intact_checkpoint(folder, weights)
    handler = ocp.PyTreeCheckpointHandler()
    shapes = handler.metadata(epath.Path(step / weights)).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    arrays = handler.restore(
        epath.Path(step / weights), args=ocp.args.PyTreeRestore(item=shapes, restore_args=as_numpy)
    )
    return read_meta(step), {"params": arrays["params"], "batch_stats": arrays.get("batch_stats", {})}


def open_checkpoint(folder: str, weights: str) -> tuple[Tensors, dict[str, Any]]:
    """(the arrays of a checkpoint under timm's names, its JSON); see `read_weights`."""
    meta, tree = read_weights(folder, weights)
    if is_own(meta["model"]["name"] or ""):
        return Tensors({entry.key: entry.view(tree) for entry in entries(tree, Own())}), meta
    tree["params"].pop(PROJECTION, None)
    return Tensors({entry.key: entry.view(tree) for entry in entries(tree, Timm())}), meta
