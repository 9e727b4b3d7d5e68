"""Verify the checkpoints and stored labels of a run: `python -m deit_jax.check RUN`.

Every checkpoint below RUN (its own, its teacher's, …) is compared with the checksums that were saved with it, every
chunk of stored labels with its own. Nothing is changed. The exit code is 0 where all is intact, 1 where something is
damaged, 2 where there is nothing to check.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deit_jax.command import command
from deit_jax.distill.label_store import LabelStore
from deit_jax.errors import UserError
from deit_jax.runtime import storage
from deit_jax.weights import integrity


class Finding(NamedTuple):
    """One thing that was checked. damage: None where it is intact."""

    path: Path
    what: str
    damage: str | None


def check(folder: Path) -> Iterator[Finding]:
    """Check everything below `folder`, one finding per checkpoint and label store."""
    files = storage.files(folder)
    parents = {parent for path in files for parent in path.parents if folder in parent.parents}
    steps = [path for path in parents if path.parent.name == "checkpoints" and path.name.isdigit()]
    if not steps and (folder / "params").is_dir():
        steps = [folder]
    for step in sorted(steps, key=lambda path: (path.parent, path.name.zfill(12))):
        found = integrity.damage(step)
        if integrity.is_complete(step):  # a run that trains meanwhile removes its older steps
            yield Finding(step, f"checkpoint, {sum(step in path.parents for path in files)} files", found)
    for path in files:
        if path.name == "labels.json":
            yield check_labels(path.parent)


def check_labels(folder: Path) -> Finding:
    """Read every chunk of a label store."""
    try:
        store = LabelStore(folder)
        damaged = "; ".join(f"chunk {chunk}: {found}" for chunk, found in store.damaged().items())
        return Finding(folder, f"labels, {store.steps_done()} steps", damaged or None)
    except UserError as error:
        return Finding(folder, "labels", str(error))


@command
def main(arguments: list[str] | None = None) -> int:
    """Print a line per finding; returns 1 where something is damaged."""
    parser = argparse.ArgumentParser(prog="python -m deit_jax.check", description="Check what a run has written.")
    parser.add_argument("run", metavar="RUN", help="folder of a run, of labels, or of one checkpoint")
    folder, findings = storage.as_path(parser.parse_args(arguments).run), []
    for finding in check(folder):
        findings.append(finding)
        state, reason = ("DAMAGED", f": {finding.damage}") if finding.damage else ("intact ", "")
        print(f"{state}  {finding.path} ({finding.what}){reason}", flush=True)
    if not findings:
        raise UserError(f"{folder} holds nothing to check: give the folder of a run")
    damaged = sum(finding.damage is not None for finding in findings)
    print(f"{len(findings)} checked, {damaged} damaged")
    return 1 if damaged else 0


if __name__ == "__main__":
    main()
