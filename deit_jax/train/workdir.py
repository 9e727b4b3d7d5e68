"""The folder of a run: claimed for one run, whose settings and data it records.

WORKDIR/config.json    the settings the run began with, and the fingerprint of its data
"""

import json
import os
from pathlib import Path
from typing import Any

import jax

from deit_jax.config import Config, differences, flat
from deit_jax.config.derived import trains_teacher
from deit_jax.errors import UserError
from deit_jax.runtime import atomic


def claim_workdir(workdir: str | os.PathLike, config: Config, fingerprint: str) -> Path:
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
            mend = longer_command(folder, config, theirs, changed) or "choose another --workdir"
            raise UserError(f"workdir {workdir} holds a run of another config ({shown}{more}): {mend}")
        if seen != fingerprint:
            raise UserError(f"the training data changed since the run in {workdir} began: choose another --workdir")
    elif jax.process_index() == 0:
        atomic.write_json(record, ours | {"data.fingerprint": fingerprint})
    return folder


def longer_command(folder: Path, config: Config, theirs: dict[str, Any], changed: list[str]) -> str:
    """How to train a run on that differs in its length alone: from its last weights, with a schedule of its own.

    theirs: the settings it began with. "" where more than its length differs, or nothing is saved yet.
    """
    steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
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
