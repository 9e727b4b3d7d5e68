"""Turn an image folder or tar files into ArrayRecord shards: `deit-jax prepare SRC DST`.

SRC is a folder of images by class (with or without split folders), a .tar file of one, .tar files of a WebDataset
(key.jpg with key.cls or key.json), or a folder of .tar files as ImageNet comes: ILSVRC2012_img_train.tar (a .tar per
class) and ILSVRC2012_img_val.tar, whose classes are read from ILSVRC2012_devkit_t12.tar.gz beside them or from
--labels. After an interruption the same command resumes; images are copied byte for byte.
"""

import argparse
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from deit_jax.command import command
from deit_jax.data import shards
from deit_jax.data.folders import read_layout, split_sources
from deit_jax.data.listing import Span, is_tar_name, list_images
from deit_jax.data.sources import check_every_class_is_trained
from deit_jax.data.splits import TRAIN, split_of
from deit_jax.data.tars import list_tars, tar_files
from deit_jax.errors import UserError
from deit_jax.runtime import atomic, storage
from deit_jax.runtime.progress import track


class Item(NamedTuple):
    """One image: its label, its path below its split, and the bytes that hold it."""

    label: int
    name: str
    span: Span


def prepare(
    source: str | Path, target: str | Path, *, shard_megabytes: float = 256, labels: str = "", layout: str = "auto"
) -> dict[str, Any]:
    """Write shards and their index to `target`; finished shards are kept. Returns the index.

    Raises UserError for a source without images, a target begun from other images, tar files without classes.
    """
    source, target = storage.as_path(source), storage.as_path(target)
    shards.check_place(source, "SRC")
    shards.check_place(target, "DST")
    try:
        classes, images = find_images(source, str(storage.as_path(labels)) if labels else "", layout)
        plan = {
            (split, f"{split}-{i:05}-of-{len(parts):05}.array_record"): part
            for split, items in images.items()
            for parts in [cut(items, shard_megabytes * 2**20)]
            for i, part in enumerate(parts)
        }
        identity = [[*key, [(classes[i.label], i.name, i.span.size) for i in part]] for key, part in plan.items()]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        done = _finished(target, digest)
        index = {"complete": False, "source": digest, "classes": classes, "splits": {}}
        target.mkdir(parents=True, exist_ok=True)
        for (_, name), part in track(plan.items(), "shards", len(plan)):
            if name not in done or not (target / name).is_file() or checksum(target / name) != done[name]["sha256"]:
                done[name] = _write(target / name, part)
                index["splits"] = {split: [done[n] for s, n in plan if s == split and n in done] for split in images}
                atomic.write_json(target / shards.INDEX, index)
    except OSError as error:
        raise UserError(f"cannot write to {target} or read {source}: {error}") from error
    index |= {"complete": True, "splits": {split: [done[n] for s, n in plan if s == split] for split in images}}
    atomic.write_json(target / shards.INDEX, index)
    return index


def find_images(source: Path, labels: str, layout: str) -> tuple[list[str], dict[str, list[Item]]]:
    """The classes and, per split, the images of a folder or of tar files. Prints what is passed over."""
    if source.is_dir() and not tar_files(source):
        listing = list_images(source)
    elif source.is_dir() or (source.is_file() and is_tar_name(source)):
        listing = list_tars(source, labels)
    else:
        raise UserError(f"{source} is neither a folder nor a .tar file: give one that holds the images")
    found = read_layout(listing, str(source), layout=layout)
    opened = split_sources(listing, str(source), found, list(found.splits))
    images: dict[str, list[Item]] = {}
    for split, files in opened.items():
        if split_of(split or TRAIN) == TRAIN:
            check_every_class_is_trained(files)
        items = images[split or TRAIN] = []
        for i, name in enumerate(map(os.fsdecode, files.names)):
            span = listing.images[os.path.join(split, name)]
            path = files.path(i)
            items.append(Item(int(files.labels[i]), name, span or Span(path, 0, os.path.getsize(path))))
    files = next(iter(opened.values()))
    print("\n".join(files.notes), end="\n" * bool(files.notes))
    return files.class_names, images


def cut(items: list[Item], limit: float) -> list[list[Item]]:
    """Cut a list into parts of nearly equal length, of about `limit` bytes."""
    count = min(len(items), 1 + int(sum(item.span.size for item in items) // max(limit, 1)))
    edges = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(edges)]


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(target: Path, digest: str) -> dict[str, dict[str, Any]]:
    """{file: its entry of the index} of the shards that an earlier command has finished."""
    begun = target / shards.INDEX
    if not begun.is_file():
        return {}
    try:
        earlier = json.loads(begun.read_text())
        shards_of_splits, source = list(earlier["splits"].values()), earlier["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{begun} is damaged ({error}): remove {target} and run the command again") from error
    if source != digest:
        raise UserError(f"{target} was made from other images than there are now: choose another folder")
    return {shard["file"]: shard for written in shards_of_splits for shard in written}


def _write(path: Path, items: list[Item]) -> dict[str, Any]:
    """Write one shard, which gets its name when it is whole. Returns its entry of the index."""
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = path.with_name(f"{path.name}.partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    try:
        for item in items:
            data = item.span.read()
            if len(data) != item.span.size:
                raise UserError(f"{item.span.path} is shorter than when it was listed: run the command again")
            writer.write(shards.pack(item.label, item.name, data))
    finally:
        writer.close()
    partial.rename(path)
    labels = [[label, len(list(run))] for label, run in itertools.groupby(items, key=lambda item: item.label)]
    size = path.stat().st_size
    return {"file": path.name, "records": len(items), "bytes": size, "sha256": checksum(path), "labels": labels}


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="deit-jax prepare", description="Make shards of a folder or tar files.")
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("--shard_megabytes", type=float, default=256)
    parser.add_argument("--labels", default="", help="table of name,class for images without a class folder")
    parser.add_argument("--layout", default="auto", choices=("auto", "classes"), help="as data.layout")
    index = prepare(**vars(parser.parse_args(arguments)))
    for split, written in index["splits"].items():
        records = sum(shard["records"] for shard in written)
        print(f"{split}: {records} images in {len(written)} shards, {len(index['classes'])} classes")


if __name__ == "__main__":
    main()
