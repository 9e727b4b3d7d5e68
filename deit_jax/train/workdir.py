"""The folder of a run: claimed for one run, whose settings and data it records.

WORKDIR/config.json      the settings the run began with, and the fingerprint of its data
WORKDIR/images.txt.gz    the image files it began with, to name those that are gone
"""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from deit_jax.config import Config, differences, flat
from deit_jax.config.derived import trains_teacher
from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage
from deit_jax.weights import integrity, split_sources

FILES = "images.txt.gz"
SOURCES = ("init", "teacher.init")  # settings that may name files and folders


def claim_workdir(
    workdir: str | os.PathLike,
    config: Config,
    fingerprint: str,
    eval_fingerprint: str = "",
    files: Sequence[str] = (),
) -> Path:
    """Make the folder, or check that the run it holds is this one.

    Args:
        workdir: the folder.
        config: resolved.
        fingerprint, eval_fingerprint: of the training and the evaluation data ("": not compared).
        files: that the training images are read from; a later start names those that are gone.

    Returns its path.

    Raises:
        UserError: where the folder cannot be written or belongs to a run of other settings or other data; nothing in
            it is changed then.
    """
    folder = storage.as_path(workdir)
    try:
        atomic.check_writable(folder)
    except UserError as error:
        raise UserError(f"workdir: {error}, or choose another --workdir") from error
    record = folder / "config.json"
    ours = json.loads(json.dumps(flat(config)))
    if record.exists():
        try:
            theirs = json.loads(record.read_text())
            seen, evaluated = theirs.pop("data.fingerprint"), theirs.pop("data.eval_fingerprint", "")
        except (ValueError, KeyError, AttributeError):
            raise UserError(
                f"workdir {workdir} holds a config.json that does not record a run: choose another --workdir"
            ) from None
        changed = [k for k in differences(ours, theirs) if not same_sources(k, ours.get(k), theirs.get(k))]
        if changed:
            shown = "; ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} now" for k in changed[:4])
            more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
            fix = longer_command(folder, config, theirs, changed) or "choose another --workdir"
            raise UserError(f"workdir {workdir} holds a run of another config ({shown}{more}): {fix}")
        if seen != fingerprint:
            raise UserError(
                f"the training data changed since the run in {workdir} began{missing_files(folder, files)}: put back"
                " what it was, or begin a new folder with another --workdir"
            )
        same_limit = theirs.get("evaluate.limit", 0) == ours["evaluate.limit"]
        if evaluated and eval_fingerprint and same_limit and evaluated != eval_fingerprint:
            raise UserError(
                f"the evaluation data changed since the run in {workdir} began, so that its scores would be of other"
                " images: restore it, or choose another --workdir"
            )
    elif jax.process_index() == 0:
        if files:
            names = "\0".join(files).encode("utf-8", "surrogateescape")
            atomic.write_bytes(folder / FILES, gzip.compress(names, 1))
        located = {key: absolute(ours[key]) for key in SOURCES}
        atomic.write_json(
            record, ours | located | {"data.fingerprint": fingerprint, "data.eval_fingerprint": eval_fingerprint}
        )
    return folder


def missing_files(folder: Path, files: Sequence[str]) -> str:
    """ " (2 of its files are gone: a.png, b.png)", of the files a run began with; "" where none is gone or known."""
    record = folder / FILES
    if not record.exists():
        return ""
    began = gzip.decompress(record.read_bytes()).decode("utf-8", "surrogateescape").split("\0")
    gone = sorted(set(began) - set(files))
    return f" ({len(gone)} of its files are gone: {', '.join(gone[:3])}{', …' * (len(gone) > 3)})" if gone else ""


def absolute(sources: str) -> str:
    """A setting that names weights, with the files and folders of this machine by their absolute names."""
    parts = [storage.as_path(part) for part in split_sources(sources)]
    return ",".join(
        str(path) if part and path.exists() else part for part, path in zip(split_sources(sources), parts, strict=True)
    )


def same_sources(key: str, ours: Any, theirs: Any) -> bool:
    """Whether a setting names the same weights, by relative names in one and absolute names in the other."""
    if key not in SOURCES or not isinstance(ours, str) or not isinstance(theirs, str):
        return False
    a, b = ([storage.as_path(part) for part in split_sources(text)] for text in (ours, theirs))
    return bool(ours) and bool(theirs) and a == b


def longer_command(folder: Path, config: Config, theirs: dict[str, Any], changed: list[str]) -> str:
    """How to train a run on that differs in its length alone: from its last weights, with a schedule of its own.

    theirs: the settings it began with. "" where more than its length differs, or nothing is saved yet.
    """
    steps = [int(p.name) for p in integrity.steps_in(folder / "checkpoints")]
    if not steps or set(changed) - {"epochs", "steps"}:
        return ""
    unit = "steps" if config.steps else "epochs"
    same_unit = bool(config.steps) == bool(theirs.get("steps"))
    more = config[unit] - theirs.get(unit, 0) if same_unit else config[unit]
    flags = {
        "init": folder / "checkpoints" / str(max(steps)),
        unit: more if more > 0 else config[unit],
    }
    if trains_teacher(config):
        flags |= {"teacher.init": folder / "teacher", "teacher.epochs": 0}
    shown = " ".join(f"--config.{name}={value}" for name, value in flags.items())
    return (
        f"a finished run keeps its schedule; to train on from its last weights, use the same command with"
        f" {shown} --workdir={folder}-longer"
    )
