"""Tar files of images as one listing: of a folder, of a WebDataset, or ImageNet's as they come."""

import contextlib
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from deit_jax.data.label_files import DEVKIT, read_devkit, read_labels
from deit_jax.data.listing import LABELS, Listing, Span, is_hidden, is_tar_name
from deit_jax.data.splits import TRAIN, split_in_name, split_of
from deit_jax.data.table import check_labels
from deit_jax.errors import UserError

JSON_LABELS = ("label", "cls", "class", "class_name")  # of a WebDataset's .json; the first that it has counts


def tar_files(folder: Path) -> list[Path]:
    """The tar files of a folder, without ImageNet's development kit."""
    return sorted(path for path in folder.iterdir() if is_tar_name(path) and path.name != DEVKIT and path.is_file())


def list_tars(source: Path, labels: str = "") -> Listing:
    """The images of a tar file, or of a folder of tar files, in folders by split and class.

    A tar file's name may tell its split, as ILSVRC2012_img_val.tar.

    Args:
      labels: a table of name,class for images without a class folder, whose classes are otherwise read from ImageNet's
        development kit beside them.
    """
    tars, folder = (tar_files(source), source) if source.is_dir() else ([source], source.parent)
    whole, known = Listing(), {}
    for tar in tars:
        found, split = list_tar(tar), split_in_name(tar.name)
        classes: Mapping[str, str] = {}
        if _is_web_dataset(found):
            classes = _web_classes(found, tar)
        else:
            found = _descended(found)
            if found.images and all("/" not in path for path in found.images):
                classes = known = known or _flat_classes(folder, labels)
                split = split or TRAIN
            elif any(split_of(path) for path in found.folders if "/" not in path):
                split = ""
        if classes:
            found = _in_classes(found, classes, tar)
        prefix = f"{split}/" if split else ""
        whole.images |= {prefix + path: span for path, span in found.images.items()}
        whole.folders |= {prefix + path for path in found.folders} | ({split} if split else set())
        for kind, paths in found.skipped.items():
            whole.skipped.setdefault(kind, []).extend(paths)
    if not whole.images:
        raise UserError(f"the .tar files of {source} hold no image")
    return whole


def list_tar(path: Path) -> Listing:
    """The images of an uncompressed tar file. A .tar inside it is a folder of its name, as ImageNet's training images
    come. Raises UserError for a file that is compressed, damaged or not a tar file."""
    found = Listing()
    try:
        _list_members(path, 0, "", found)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged, compressed or not a .tar file ({error}): unpack it") from error
    return found


def _list_members(path: Path, start: int, prefix: str, found: Listing) -> None:
    with open(path, "rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                parts = [part for part in (prefix + member.name).split("/") if part not in ("", ".")]
                if not parts or any(map(is_hidden, parts)):
                    continue
                name = "/".join(parts)
                found.folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
                if member.isdir():
                    found.folders.add(name)
                elif not member.isreg() or member.issparse():
                    found.skip("link or special file", name)
                elif name.endswith(".tar") and member.size:
                    found.folders.add(name.removesuffix(".tar"))
                    _list_members(path, member.offset_data, name.removesuffix(".tar") + "/", found)
                else:
                    found.add(name, Span(str(path), member.offset_data, member.size))


def _descended(listing: Listing) -> Listing:
    """A listing without the one folder that holds all of it, as most tar files are packed; a split or a class stays."""
    top = {path.split("/", 1)[0] for path in [*listing.images, *listing.folders]}
    name = next(iter(top), "")
    direct = any(path.count("/") < 2 and path.startswith(f"{name}/") for path in listing.images)
    if len(top) != 1 or split_of(name) or direct or not listing.images:
        return listing
    images = {path.removeprefix(f"{name}/"): span for path, span in listing.images.items()}
    folders = {path.removeprefix(f"{name}/") for path in listing.folders if path != name}
    return _descended(Listing(images, {}, folders, listing.skipped))


def _in_classes(listing: Listing, classes: Mapping[str, str], tar: Path) -> Listing:
    """A listing of images without folders, put into folders of their classes."""
    for path in listing.images:
        if path not in classes:
            raise UserError(f"{tar} holds {path}, whose class is not listed: add it to --labels")
        if "/" in classes[path]:
            raise UserError(f"{tar} has the class '{classes[path]}': a class name holds no '/'")
    images = {f"{classes[path]}/{tar.stem}/{path}": span for path, span in listing.images.items()}
    return Listing(images, {}, {path.split("/", 1)[0] for path in images}, listing.skipped)


def _flat_classes(folder: Path, table: str) -> dict[str, str]:
    """{image name: class} from a table of name,class lines, or from ImageNet's development kit in `folder`."""
    if table:
        return read_labels(Path(table))
    if not (folder / DEVKIT).is_file():
        raise UserError(f"images without a class folder need {DEVKIT} beside them, or --labels=TABLE of name,class")
    return {f"ILSVRC2012_val_{i:08}.JPEG": label for i, label in enumerate(read_devkit(folder / DEVKIT), 1)}


def _key(path: str) -> str:
    """What WebDataset calls a sample: the path up to the first dot of the file's name."""
    folder, name = os.path.split(path)
    return os.path.join(folder, name.split(".", 1)[0])


def _is_web_dataset(listing: Listing) -> bool:
    keys = {_key(path) for path in listing.labels}
    has_cls = any(path.endswith(".cls") for path in listing.labels)
    return bool(listing.images) and (has_cls or all(_key(path) in keys for path in listing.images))


def _web_classes(listing: Listing, tar: Path) -> dict[str, str]:
    """{image: class} of a WebDataset, whose label files are no longer skipped. Raises UserError for an image without
    a label."""
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
    for path in listing.images:
        if not labels.get(_key(path)):
            raise UserError(f"{tar} holds {path} without a label: add .cls, or .json with {' or '.join(JSON_LABELS)}")
    for ending in LABELS:
        listing.skipped.pop(f"{ending} file", None)
    check_labels(set(labels.values()), tar)
    return {path: labels[_key(path)] for path in listing.images}
