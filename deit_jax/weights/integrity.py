"""Checksums of a checkpoint, and whether its files are still what was saved: STEP/checksums.json has the BLAKE2 sum of
every file, written before Orbax gives the folder its name."""

import concurrent.futures
import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path

from deit_jax.runtime import atomic, storage

SUMS = "checksums.json"
COMMITTED = "commit_success.txt"
DIGEST_BYTES = 16
# written by Orbax after the sums are taken, and not needed to read the arrays
UNSUMMED = {SUMS, COMMITTED, "_CHECKPOINT_METADATA"}


def is_complete(step: Path) -> bool:
    """Whether the folder of a step was saved to its end: in a bucket, where none can be renamed, Orbax marks it."""
    return (step / COMMITTED).is_file() if storage.is_bucket(step) else step.is_dir()


def steps_in(directory: Path) -> list[Path]:
    """The complete checkpoints in a run's `checkpoints`, newest first."""
    steps = [path for path in directory.glob("*") if path.name.isdigit() and is_complete(path)]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def file_sums(folder: Path, names: Collection[str]) -> dict[str, str]:
    """{name: BLAKE2b of the bytes, in hex; "" where the file cannot be read} of files in a folder."""

    def file_sum(name: str) -> str:
        try:
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
        except OSError:
            return ""

    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(file_sum, names), strict=True))


def write_sums(folder: Path) -> None:
    """Write checksums.json of all files in a checkpoint's folder. Raises UserError if the disk is full."""
    names = [path.relative_to(folder).as_posix() for path in storage.files(folder)]
    sums = file_sums(folder, [name for name in names if name not in UNSUMMED])
    atomic.write_json(folder / SUMS, {"algorithm": "blake2b-128", "files": sums})


def damage(folder: Path, items: Collection[str] | None = None) -> str | None:
    """The first damaged file of a checkpoint and what is wrong with it; None if the checkpoint is intact.

    items: the parts that will be read ("params", "meta", …); None checks all of them.
    """
    try:
        sums = json.loads((folder / SUMS).read_text())["files"]
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SUMS} cannot be read"
    wanted = [name for name in sums if items is None or name.split("/")[0] in items]
    found = file_sums(folder, wanted)
    changed = next((name for name in wanted if found[name] != sums[name]), None)
    if changed is None:
        return None
    return f"{changed} " + ("does not hold the bytes that were saved" if (folder / changed).exists() else "is missing")


def first_intact(steps: Iterable[Path], items: Collection[str] | None = None) -> tuple[Path | None, dict[Path, str]]:
    """(the first intact checkpoint or None, {damaged checkpoint before it: what is wrong})."""
    damaged = {}
    for step in steps:
        if (found := damage(step, items)) is None:
            return step, damaged
        damaged[step] = found
    return None, damaged


def set_aside(step: Path) -> Path:
    """Move a damaged checkpoint WORKDIR/checkpoints/STEP to WORKDIR/damaged/STEP, and return its new path.

    In a bucket, where a move is a copy, it only loses the marker of a complete checkpoint.
    """
    place = step.parent.parent / "damaged" / step.name
    try:
        if storage.is_bucket(step):
            (step / COMMITTED).unlink()
            return step
        storage.remove(place)
        place.parent.mkdir(exist_ok=True)
        return step.rename(place)
    except OSError as error:
        raise atomic.write_error(place, error) from error
