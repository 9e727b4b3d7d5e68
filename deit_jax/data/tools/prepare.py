"""Turn an image folder or tar files into ArrayRecord shards: `deit-jax prepare SRC DST`.

SRC is a folder of images by class (with or without split folders), a .tar file of one, .tar files of a WebDataset
(key.jpg with key.cls or key.json), or a folder of .tar files as ImageNet comes: ILSVRC2012_img_train.tar (a .tar per
class) and ILSVRC2012_img_val.tar, whose classes are read from ILSVRC2012_devkit_t12.tar.gz beside them or from
--labels. After an interruption the same command resumes; images are copied byte for byte.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.classes.match import sort_classes
from deit_jax.command import command
from deit_jax.data import shards
from deit_jax.data.folder_layout import SPLIT_NAMES, TRAIN, VALIDATION, read_layout, split_in, split_of
from deit_jax.data.label_files import DEVKIT, read_devkit, read_labels
from deit_jax.data.listing import LABELS, Listing, Span, class_text, is_tar_name, list_images, list_tar
from deit_jax.data.table import plain_labels
from deit_jax.errors import UserError, nearest
from deit_jax.runtime import atomic
from deit_jax.runtime.progress import track

PLAIN_NAMES = ("train", "validation", "val", "test")  # of splits, kept; others become the first of their kind
JSON_LABELS = ("label", "cls", "class", "class_name")  # of a WebDataset's .json, the first that is there


@dataclasses.dataclass(frozen=True, order=True)
class Item:
    """One image: its class, its name and the bytes [start, start + size) of a file that hold it."""

    label: str
    name: str
    path: str
    start: int
    size: int


def prepare(
    source: str | Path, target: str | Path, *, shard_megabytes: int = 256, labels: str = "", layout: str = "auto"
) -> dict[str, Any]:
    """Write shards and their index to `target`; finished shards are kept. Returns the index.

    Raises UserError for a source without images, a target begun from other images, tar files without classes.
    """
    target = Path(target)
    splits = find_images(Path(source), labels, layout)
    classes = sort_classes({item.label for items in splits.values() for item in items})
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
        try:
            earlier = json.loads(begun.read_text())
        except ValueError as error:
            raise UserError(f"{begun} is damaged ({error}): remove {target} and run the command again") from error
        if earlier.get("source") != index["source"]:
            raise UserError(f"{target} was made from other images than {source} holds now: choose another folder")
        index = earlier
    try:
        target.mkdir(parents=True, exist_ok=True)
        number = {label: i for i, label in enumerate(index["classes"])}
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


def find_images(source: Path, labels: str = "", layout: str = "auto") -> dict[str, list[Item]]:
    """Per split, the images of a folder, a tar file or a folder of tar files, sorted by class and name."""
    if source.is_dir():
        tars = sorted(path for path in source.iterdir() if is_tar_name(path) and path.name != DEVKIT and path.is_file())
        if not tars:
            return _items(list_images(source), source, layout)
    elif source.is_file() and is_tar_name(source):
        tars = [source]
    else:
        raise UserError(f"{source} is neither a folder nor a .tar file: give one that holds the images")
    known: dict[str, str] = {}
    whole = Listing()
    for tar in tars:
        listing, split = list_tar(tar), split_in(tar.name)
        if split == VALIDATION:
            split = "validation"
        if any(path.endswith(".cls") for path in listing.labels) or _has_json_labels(listing):
            listing = _web_dataset(listing, tar)
        else:
            listing = _descended(listing)
        if listing.images and all("/" not in path for path in listing.images):
            known = known or _flat_labels(source if source.is_dir() else source.parent, labels)
            listing = _labelled(listing, known, tar)
            split = split or TRAIN
        elif any(split_of(path) for path in listing.folders if "/" not in path):
            split = ""
        for path, span in listing.images.items():
            whole.images[f"{split}/{path}" if split else path] = span
        whole.folders |= {f"{split}/{path}" if split else path for path in listing.folders}
        whole.folders |= {split} if split else set()
        for kind, (count, first) in listing.skipped.items():
            before, earlier = whole.skipped.get(kind, (0, first))
            whole.skipped[kind] = before + count, earlier
    if not whole.images:
        raise UserError(f"the .tar files of {source} hold no image")
    return _items(whole, source, layout)


def _key(path: str) -> str:
    """What WebDataset calls a sample: the path up to the first dot of the file's name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.split(".", 1)[0]


def _has_json_labels(listing: Listing) -> bool:
    keys = {_key(path) for path in listing.labels}
    return bool(listing.images) and all(_key(path) in keys for path in listing.images)


def _web_dataset(listing: Listing, tar: Path) -> Listing:
    """The images of a WebDataset tar in folders of their classes. Raises UserError for an image without a label."""
    labels: dict[str, str] = {}
    for path in sorted(listing.labels, key=lambda path: path.endswith(".cls")):  # .cls counts where there are both
        span = listing.labels[path]
        assert span is not None
        text = span.read().decode("utf-8", "replace").strip()
        if path.endswith(".json"):
            with contextlib.suppress(ValueError, AttributeError):
                entry = json.loads(text)
                text = str(next((entry[name] for name in JSON_LABELS if name in entry), ""))
        labels[_key(path)] = text
    missing = [path for path in listing.images if not labels.get(_key(path))]
    if missing:
        raise UserError(
            f"{tar} holds {missing[0]} without a label ({_key(missing[0])}.cls, or .json with one of"
            f" {', '.join(JSON_LABELS)}): add it, or leave the image out"
        )
    names = plain_labels(set(labels.values()), str(tar))
    bad = next((name for name in names.values() if "/" in name), None)
    if bad is not None:
        raise UserError(f"{tar} has the class '{bad}': a class name holds no '/'")
    images = {f"{names[labels[_key(path)]]}/{tar.stem}/{path}": span for path, span in listing.images.items()}
    kept = {ending: found for ending, found in listing.skipped.items() if ending not in LABELS}
    return Listing(images, {}, {path.split("/", 1)[0] for path in images}, kept)


def _items(listing: Listing, root: Path, layout: str) -> dict[str, list[Item]]:
    """Per split, the images of a listing. Prints what is passed over. Raises UserError for a class without a training
    image."""
    where = str(root)
    read = read_layout(listing, where, layout=layout)
    found: dict[str, list[Item]] = {}
    for split, classes in read.splits.items():
        name = split if split in PLAIN_NAMES else _plain(split or TRAIN)
        if name in found:
            raise UserError(f"{where} has two folders of the {split_in(split)} split: put their images together")
        found[name] = sorted(
            Item(class_text(label), path.removeprefix(f"{split}/" if split else ""), *_span(listing, root, path))
            for label, paths in classes.items()
            for path in paths
        )
    for line in read.unused(list(read.splits)) + listing.describe_skipped():
        print(f"not used: {line}")
    trained = {item.label for item in found.get("train", [])}
    lacking = sorted({item.label for items in found.values() for item in items} - trained)
    if trained and lacking:
        raise UserError(
            f"{lacking[0]} is a class the training images lack{nearest(lacking[0], trained)} ({where}; {len(lacking)}"
            " such): remove its images, or add some to train on"
        )
    return found


def _span(listing: Listing, root: Path, path: str) -> Span:
    where = os.path.join(root, path)
    try:
        return listing.images[path] or Span(where, 0, os.stat(where).st_size)
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}): restore it") from error


def _plain(split: str) -> str:
    return next(name for name, kind in SPLIT_NAMES.items() if kind == split_in(split))


def _descended(listing: Listing) -> Listing:
    """A listing without the one folder that holds all of it, as most tar files are packed; a split or a class stays."""
    while True:
        top = {path.split("/", 1)[0] for path in [*listing.images, *listing.folders]}
        name = next(iter(top), "")
        direct = any(path.count("/") < 2 and path.startswith(f"{name}/") for path in listing.images)
        if len(top) != 1 or split_of(name) or direct or not listing.images:
            return listing
        prefix = f"{name}/"
        listing = Listing(
            {path.removeprefix(prefix): span for path, span in listing.images.items()},
            {},
            {path.removeprefix(prefix) for path in listing.folders if path != name},
            listing.skipped,
        )


def _labelled(listing: Listing, known: dict[str, str], tar: Path) -> Listing:
    """A listing of images without folders, put into folders of their classes. Raises UserError for one not listed."""
    for name in listing.images:
        if name not in known:
            raise UserError(f"{tar} holds {name}, whose class is not listed: add it to --labels")
    images = {f"{known[name]}/{name}": span for name, span in listing.images.items()}
    return Listing(images, {}, {path.split("/", 1)[0] for path in images}, listing.skipped)


def _flat_labels(folder: Path, table: str) -> dict[str, str]:
    """{image name: class} from a table of name,class lines, or from ImageNet's development kit in `folder`."""
    if table:
        return read_labels(Path(table))
    if not (folder / DEVKIT).is_file():
        raise UserError(f"images without a class folder need {DEVKIT} beside them, or --labels=TABLE of name,class")
    return {f"ILSVRC2012_val_{i:08}.JPEG": label for i, label in enumerate(read_devkit(folder / DEVKIT), 1)}


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="deit-jax prepare", description="Make shards of an image folder or tar files."
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("--shard_megabytes", type=int, default=256)
    parser.add_argument("--labels", default="", help="table of name,class for images without a class folder")
    parser.add_argument("--layout", default="auto", choices=("auto", "classes"), help="as data.layout")
    flags = parser.parse_args(arguments)
    index = prepare(
        flags.source,
        flags.target,
        shard_megabytes=flags.shard_megabytes,
        labels=flags.labels,
        layout=flags.layout,
    )
    for split, written in index["splits"].items():
        records = sum(shard["records"] for shard in written)
        print(f"{split}: {records} images in {len(written)} shards, {len(index['classes'])} classes")


if __name__ == "__main__":
    main()
