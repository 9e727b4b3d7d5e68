"""Verify the checkpoints, stored labels and logs of a run: `python -m deit_jax.check RUN`.

Every checkpoint below RUN (its own, its teacher's, …) is compared with the checksums that were saved with it, every
chunk of stored labels with its own, and the run's records are read. Nothing is changed. The exit code is 0 where all
is intact, 1 where something is damaged, 2 where there is nothing to check.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deit_jax.command import command
from deit_jax.distill.label_store import LabelStore
from deit_jax.errors import UserError
from deit_jax.runtime import storage
from deit_jax.weights import integrity

RECORDS = ("config.json", "results.json", "chain.json", "done.json")


class Finding(NamedTuple):
    """One thing that was checked. damage: None where it is intact."""

    path: Path
    what: str
    damage: str | None


def check(folder: Path) -> Iterator[Finding]:
    """Check everything below `folder`, one finding per checkpoint, label store and record."""
    files = storage.files(folder)
    parents = {folder, *(parent for path in files for parent in path.parents if folder in parent.parents)}
    steps = {path for path in parents if path.parent.name == "checkpoints" and path.name.isdigit()}
    if not steps and (folder / "params").is_dir():
        steps = {folder}
    for step in sorted(steps, key=lambda path: (path.parent, int(path.name) if path.name.isdigit() else 0)):
        found = integrity.damage(step)
        if integrity.is_complete(step):  # a run that trains meanwhile removes its older steps
            yield Finding(step, f"checkpoint, {sum(step in path.parents for path in files)} files", found)
    for header in [p for p in files if p.name == "labels.json"]:
        yield check_labels(header.parent)
    for record in [p for p in files if p.name in RECORDS]:
        yield Finding(record, "record", unreadable(record.read_bytes()))
    for log in [p for p in files if p.name == "log.jsonl"]:
        lines = log.read_bytes().splitlines()
        bad = [i for i, line in enumerate(lines, 1) if unreadable(line)]
        yield Finding(log, f"log, {len(lines)} lines", f"line {bad[0]} is not JSON" if bad else None)


def check_labels(folder: Path) -> Finding:
    """Read every chunk of a label store."""
    try:
        store = LabelStore(folder)
        damaged = store.damaged()
        steps = store.steps_done()
    except UserError as error:
        return Finding(folder, "labels", str(error))
    first = next((f"chunk {chunk}: {found}" for chunk, found in damaged.items()), None)
    more = f"; and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return Finding(folder, f"labels, {steps} steps", first and first + more)


def unreadable(content: bytes) -> str | None:
    """Why bytes are not JSON, or None."""
    try:
        json.loads(content)
    except ValueError as error:
        return f"not JSON ({error})"
    return None


@command
def main(arguments: list[str] | None = None) -> int:
    """Print a line per finding; returns 1 where something is damaged."""
    parser = argparse.ArgumentParser(prog="python -m deit_jax.check", description="Check what a run has written.")
    parser.add_argument("run", metavar="RUN", help="folder of a run, of labels, or of one checkpoint")
    folder, findings = storage.as_path(parser.parse_args(arguments).run), []
    for finding in check(folder):
        findings.append(finding)
        print(
            f"{'intact ' if finding.damage is None else 'DAMAGED'}  {finding.path} ({finding.what})"
            + (f": {finding.damage}" if finding.damage else ""),
            flush=True,
        )
    if not findings:
        raise UserError(f"{folder} holds nothing to check: give the folder of a run")
    damaged = sum(finding.damage is not None for finding in findings)
    print(f"{len(findings)} checked, {damaged} damaged")
    return 1 if damaged else 0


if __name__ == "__main__":
    main()
