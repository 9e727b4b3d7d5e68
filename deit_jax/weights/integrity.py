"""Whether a checkpoint is what was saved: which files may be read, what is verified, what is said.

    STEP/checksums.json   size and BLAKE2 sum of every file, written before Orbax gives the folder its name

A checkpoint is complete when its folder has its final name and every file that checksums.json lists is there with its
sum. On a disk, Orbax's own marker, commit_success.txt, does not decide: it is written before the name is given, so it
says nothing that the name does not, and a copy that lost it is still whole. In a bucket no folder can be renamed, and a
checkpoint has its name from its first file on: there commit_success.txt decides, which is written last. A checkpoint
without checksums.json (older ones, or of `deit_jax.convert`) is read when its metadata can be: damage to its arrays
then shows only where Orbax finds it.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage

SUMS = "checksums.json"
COMMITTED = "commit_success.txt"
DIGEST_BYTES = 16
# what Orbax writes after the sums are taken, and none of which is needed to read the arrays
UNSUMMED = {SUMS, COMMITTED, "_CHECKPOINT_METADATA"}


def is_complete(step: Path) -> bool:
    """Whether the folder of a step is a checkpoint that was saved to its end."""
    return (step / COMMITTED).is_file() if storage.is_bucket(step) else step.is_dir()


def steps_in(directory: Path) -> list[Path]:
    """The checkpoints that were saved to their end in a run's `checkpoints`, in any order."""
    if storage.is_bucket(directory):
        found = [path.parent for path in directory.glob(f"*/{COMMITTED}")]
    else:
        found = [path for path in directory.glob("*") if path.is_dir()]
    return [path for path in found if path.name.isdigit()]


def file_sum(path: Path) -> str:
    """BLAKE2b of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def value_sum(value: Any) -> str:
    """BLAKE2b of a JSON value, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def write_sums(folder: Path) -> None:
    """Write checksums.json of all files in a checkpoint's folder. Raises UserError where the disk is full."""
    files = storage.files(folder)
    names = [path.relative_to(folder).as_posix() for path in files]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets other threads run
        sums = pool.map(file_sum, files)
        found = {
            name: {"bytes": size, "sum": value}
            for name, size, value in zip(names, files.values(), sums, strict=True)
            if name not in UNSUMMED
        }
    atomic.write_json(folder / SUMS, {"algorithm": "blake2b-128", "files": found, "sum": value_sum(found)})


def has_sums(folder: Path) -> bool:
    """Whether a checkpoint was saved with checksums."""
    return (folder / SUMS).exists()


def damage(folder: Path, items: Collection[str] | None = None) -> str | None:
    """What is wrong with a checkpoint, naming the file: "params/manifest.ocdbt is empty"; None where it is intact.

    items: the parts that will be read ("params", "meta", …); None checks all of them. Without checksums, only what can
    be told from names and metadata is found.
    """
    if not has_sums(folder):
        return missing_metadata(folder, items)
    try:
        record = json.loads((folder / SUMS).read_text())
        files = record["files"]
        intact = record["sum"] == value_sum(files)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SUMS} cannot be read"
    if not intact:
        return f"{SUMS} was changed"
    wanted = {name: entry for name, entry in files.items() if items is None or name.split("/")[0] in items}
    there = storage.sizes(folder, wanted)
    for name, entry in wanted.items():  # sizes first: they cost nothing
        if (size := there.get(name)) is None:
            return f"{name} is missing"
        if size != entry["bytes"]:
            return f"{name} is empty" if size == 0 else f"{name} has {size} bytes, {entry['bytes']} were saved"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sums = pool.map(lambda name: safe_sum(folder / name), wanted)
        changed = (name for name, value in zip(wanted, sums, strict=True) if value != wanted[name]["sum"])
        first = next(changed, None)
    return f"{first} does not hold the bytes that were saved" if first else None


def safe_sum(path: Path) -> str:
    """`file_sum`, or "" where the disk cannot give the file back."""
    try:
        return file_sum(path)
    except OSError:
        return ""


def missing_metadata(folder: Path, items: Collection[str] | None) -> str | None:
    """As `damage`, for a checkpoint without checksums."""
    meta = folder / "meta" / "metadata"
    try:
        json.loads(meta.read_text())
    except OSError:
        return "meta/metadata is missing"
    except ValueError:
        return "meta/metadata is not JSON"
    present = {path.name for path in folder.iterdir() if path.is_dir()}  # whether there are averages depends on the run
    for item in sorted((present if items is None else present & set(items)) - {"meta"} | {"params"}):
        for name in ("_METADATA", "manifest.ocdbt"):
            path = folder / item / name
            if not path.is_file() or path.stat().st_size == 0:
                return f"{item}/{name} is {'empty' if path.is_file() else 'missing'}"
    return None


def set_aside(step: Path) -> Path:
    """Move a damaged checkpoint WORKDIR/checkpoints/STEP to WORKDIR/damaged/STEP, and return where it is now."""
    folder = step.parent.parent / "damaged"
    try:
        if storage.is_bucket(step):
            (step / COMMITTED).unlink(missing_ok=True)  # first: a move that is cut short leaves no checkpoint
        folder.mkdir(exist_ok=True)
        place = next(p for n in range(1000) if not (p := folder / (step.name + (f"-{n}" if n else ""))).exists())
        return step.rename(place)
    except OSError as error:
        raise atomic.write_error(folder, error) from error


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its own sum. Raises UserError where the disk is full."""
    atomic.write_json(path, {"value": value, "sum": value_sum(value)})


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote, or None where it is not there or damaged."""
    try:
        record = json.loads(path.read_text())
        return record["value"] if record["sum"] == value_sum(record["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises UserError naming the file where it is not there or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): the checkpoint is damaged") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: the checkpoint is damaged")
    return found
