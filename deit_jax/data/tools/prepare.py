"""Turn an image folder or tar files into ArrayRecord shards: `python -m deit_jax.data.prepare SRC DST`.

SRC is a folder of images by class (with or without split folders), a .tar of one, or a folder of .tar files as ImageNet
comes: ILSVRC2012_img_train.tar (a .tar a class) and ILSVRC2012_img_val.tar, whose classes are read from
ILSVRC2012_devkit_t12.tar.gz beside them or from --labels. Interrupted, the same command goes on; images are copied
byte for byte.
"""

import argparse
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from deit_jax.data import shards
from deit_jax.data.folders import EVAL_SPLITS, EXTENSIONS, scan_folder
from deit_jax.data.tools.progress import command, track
from deit_jax.errors import UserError
from deit_jax.runtime import atomic

SPLITS = ("train", *EVAL_SPLITS)
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


@dataclasses.dataclass(frozen=True, order=True)
class Item:
    """One image: its class, its name and the bytes [start, start + size) of a file that hold it."""

    label: str
    name: str
    path: str
    start: int
    size: int


def prepare(source: str | Path, target: str | Path, *, shard_megabytes: int = 256, labels: str = "") -> dict:
    """Write shards and their index to `target`; finished shards are kept. Returns the index.

    Raises UserError for a source without images, a target begun from other images, tar files without classes.
    """
    target = Path(target)
    splits = find_images(Path(source), labels)
    classes = sorted({item.label for items in splits.values() for item in items})
    number = {label: i for i, label in enumerate(classes)}
    plan = {split: cut(items, shard_megabytes << 20) for split, items in splits.items()}
    identity = [[split, [[(i.label, i.name, i.size) for i in part] for part in parts]] for split, parts in plan.items()]
    index = {
        "complete": False,
        "source": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        "classes": classes,
        "splits": {split: [] for split in plan},
    }
    begun = target / shards.INDEX
    if begun.is_file():
        earlier = json.loads(begun.read_text())
        if earlier.get("source") != index["source"]:
            raise UserError(f"{target} was made from other images than {source} holds now: choose another folder")
        index = earlier
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write_missing(target, plan, number, index)
    except OSError as error:
        raise UserError(f"cannot write to {target} or read {source}: {error}") from error
    return index


def _write_missing(target: Path, plan: dict, number: dict[str, int], index: dict) -> None:
    done = [shard for written in index["splits"].values() for shard in written]
    for shard in track(done, "checking finished shards", len(done)):
        path = target / shard["file"]
        if not path.is_file() or checksum(path) != shard["sha256"]:
            for written in index["splits"].values():
                written[:] = [kept for kept in written if kept is not shard]
    have = {shard["file"] for written in index["splits"].values() for shard in written}
    wanted = [
        (split, f"{split}-{i:05}-of-{len(parts):05}.array_record", part)
        for split, parts in plan.items()
        for i, part in enumerate(parts)
    ]
    missing = [job for job in wanted if job[1] not in have]
    images = (job for split, name, part in missing for job in _write(target, index, split, name, part, number))
    for _ in track(images, "images", sum(len(part) for _, _, part in missing)):
        pass
    index["complete"] = True
    _save(target, index)


def _write(target: Path, index: dict, split: str, name: str, part: list[Item], number: dict) -> Iterator[None]:
    """Write one shard, yielding after each image; it gets its name and its line in the index when it is whole."""
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = target / f"{name}.partial"
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    try:
        for path, items in itertools.groupby(part, key=lambda item: item.path):
            with open(path, "rb") as file:
                for item in items:
                    file.seek(item.start)
                    data = file.read(item.size)
                    if len(data) != item.size:
                        raise UserError(f"{path} is shorter than when it was listed: run the command again")
                    writer.write(shards.pack(number[item.label], item.name, data))
                    yield
    finally:
        writer.close()
    partial.rename(target / name)
    runs = [[number[label], len(list(run))] for label, run in itertools.groupby(part, key=lambda item: item.label)]
    written = index["splits"][split]
    written.append(
        {
            "file": name,
            "records": len(part),
            "bytes": (target / name).stat().st_size,
            "sha256": checksum(target / name),
            "labels": runs,
        }
    )
    written.sort(key=lambda shard: shard["file"])
    _save(target, index)


def _save(target: Path, index: dict) -> None:
    atomic.write_json(target / shards.INDEX, index)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut(items: list[Item], limit: int) -> list[list[Item]]:
    """Cut a list into parts of nearly equal length, of about `limit` bytes."""
    count = min(len(items), -(-sum(item.size for item in items) // limit))
    edges = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(edges)]


def find_images(source: Path, labels: str = "") -> dict[str, list[Item]]:
    """{split: images sorted by class and name}."""
    if source.is_dir() and any(source.glob("*.tar")):
        tars = sorted(source.glob("*.tar"))
    elif source.suffix == ".tar" and source.is_file():
        tars = [source]
    elif source.is_dir():
        return _images_of_folder(source)
    else:
        raise UserError(f"{source} is neither a folder nor a .tar file: give one that holds the images")
    splits: dict[str, list[Item]] = {}
    for tar in tars:
        for split, item in _images_of_tar(tar):
            splits.setdefault(split, []).append(item)
    if not splits:
        raise UserError(f"the .tar files of {source} hold no image")
    known = None
    for items in splits.values():
        if any(not item.label for item in items):
            known = known or read_labels(source if source.is_dir() else source.parent, labels)
            items[:] = [item if item.label else _labelled(item, known) for item in items]
        items.sort()
    return splits


def _labelled(item: Item, known: dict[str, str]) -> Item:
    if item.name not in known:
        raise UserError(f"{item.path} holds {item.name}, whose class is not listed: add it to --labels")
    return dataclasses.replace(item, label=known[item.name])


def _images_of_folder(folder: Path) -> dict[str, list[Item]]:
    present = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    splits = [split for split in SPLITS if split in present] if "train" in present else []
    found = {}
    for split, root in [(split, folder / split) for split in splits] or [("train", folder)]:
        files, labels = scan_folder(root)
        found[split] = sorted(
            Item(files.class_names[label], os.fsdecode(name), files.path(i), 0, os.stat(files.path(i)).st_size)
            for i, (name, label) in enumerate(zip(files.names, labels, strict=True))
        )
    return found


def _images_of_tar(tar: Path) -> Iterator[tuple[str, Item]]:
    """(split, image) of a .tar of <split>/<class>/<image>, <class>/<image>, <class>.tar or plain images, whose class
    is left empty. The split is a folder's name, or found in the tar's own name, or train."""
    by_name = next((split for split in SPLITS if split in tar.name.lower()), "train")
    by_name = {"val": "validation"}.get(by_name, by_name)
    try:
        for name, start, size in _members(tar, 0):
            *folders, last = name.split("/")
            if last.endswith(".tar"):
                for inner, offset, length in _members(tar, start):
                    if Path(inner).suffix.lower() in EXTENSIONS:
                        label = last.removesuffix(".tar")
                        yield by_name, Item(label, f"{label}/{Path(inner).name}", str(tar), start + offset, length)
            elif Path(last).suffix.lower() in EXTENSIONS and not last.startswith("."):
                split = next((folder for folder in folders if folder in SPLITS), by_name)
                label = folders[-1] if folders and folders[-1] not in (*SPLITS, ".") else ""
                yield split, Item(label, f"{label}/{last}" if label else last, str(tar), start, size)
    except tarfile.TarError as error:
        raise UserError(f"{tar} is damaged or no .tar file ({error}): fetch it again") from error


def _members(tar: Path, start: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data from `start`, size) of the files of an uncompressed tar that begins at `start`."""
    with open(tar, "rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                if member.isfile():
                    yield member.name, member.offset_data - start, member.size


def read_labels(folder: Path, table: str) -> dict[str, str]:
    """{image name: class} from a table of name,class lines, or from ImageNet's development kit in `folder`."""
    if table:
        with open(table, newline="") as file:
            return {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) == 2}
    if not (folder / DEVKIT).is_file():
        raise UserError(f"images without a class folder need {DEVKIT} beside them, or --labels=TABLE of name,class")
    from scipy.io import loadmat

    with tarfile.open(folder / DEVKIT) as kit:
        files = {Path(name).name: name for name in kit.getnames()}
        synsets = loadmat(io.BytesIO(kit.extractfile(files["meta.mat"]).read()), squeeze_me=True)["synsets"]
        truth = kit.extractfile(files["ILSVRC2012_validation_ground_truth.txt"]).read().split()
    classes = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return {f"ILSVRC2012_val_{i:08}.JPEG": classes[int(one)] for i, one in enumerate(truth, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deit_jax.data.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("--shard_megabytes", type=int, default=256)
    parser.add_argument("--labels", default="", help="table of name,class for images without a class folder")
    flags = parser.parse_args()
    index = prepare(flags.source, flags.target, shard_megabytes=flags.shard_megabytes, labels=flags.labels)
    for split, written in index["splits"].items():
        records = sum(shard["records"] for shard in written)
        print(f"{split}: {records} images in {len(written)} shards, {len(index['classes'])} classes")


if __name__ == "__main__":
    command(main)
