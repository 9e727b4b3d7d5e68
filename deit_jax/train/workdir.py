"""The folder of a run: claimed for one run, whose settings and data it records.

WORKDIR/config.json    the settings the run began with, and the fingerprint of its data
"""

import json
import os
from pathlib import Path

import jax

from deit_jax.config import differences, flat
from deit_jax.errors import UserError
from deit_jax.runtime import atomic


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
        atomic.write_json(record, ours | {"data.fingerprint": fingerprint})
    return folder
