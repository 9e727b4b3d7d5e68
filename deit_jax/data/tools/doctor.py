"""What is wrong with a dataset: `deit-jax doctor ROOT`.

Prints the classes in the order of their numbers with their counts, what is passed over, every image that cannot be
read, photos that are stored turned or with 16 bits, files with the same bytes, and those among them whose classes
differ or that stand in both splits. Exit code 1 where an image cannot be read or a file has two classes.
"""

import argparse
import collections
import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from deit_jax.command import command
from deit_jax.config import default_config
from deit_jax.data import decode
from deit_jax.data.base import Source, summary
from deit_jax.data.sources import find_sources
from deit_jax.errors import printable
from deit_jax.runtime import hardware
from deit_jax.runtime.progress import track

Copies = list[tuple[str, str, int]]  # (split, name, label) of each file


@dataclasses.dataclass
class Findings:
    """What was found.

    Attributes:
      counts: images per class, int (classes,), by split.
      broken: what is said of each image that cannot be read.
      duplicates: groups of files with the same bytes.
      turned: images with an EXIF orientation that is not upright.
      deep: images with 16 bits of grey.
    """

    class_names: list[str]
    counts: dict[str, np.ndarray]
    broken: list[str] = dataclasses.field(default_factory=list)
    duplicates: list[Copies] = dataclasses.field(default_factory=list)
    turned: int = 0
    deep: int = 0

    @property
    def contradictions(self) -> list[Copies]:
        return [group for group in self.duplicates if len({label for _, _, label in group}) > 1]

    @property
    def leaks(self) -> list[Copies]:
        return [group for group in self.duplicates if len({split for split, _, _ in group}) > 1]


class Look(NamedTuple):
    """What was seen of one image; `complaint` is "" where it can be read."""

    split: str
    name: str
    label: int
    digest: bytes = b""
    complaint: str = ""
    turned: bool = False
    deep: bool = False


def look(source: Source, split: str, index: int) -> Look:
    """Read and decode one image."""
    try:
        sample = source[index]
    except OSError as error:
        return Look(split, f"{split} image {index}", -1, complaint=str(error))
    image, name, label = sample["image"], sample["name"], sample["label"]
    digest = hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest()
    if not 0 <= label < source.num_classes:
        return Look(split, name, -1, digest, f"label {label} of {source.num_classes} classes")
    try:
        mode = decode.read_header(image)
        decode.decode(image)
    except OSError as error:
        return Look(split, name, label, digest, str(error))
    turned = decode.orientation(image) != decode.UPRIGHT
    return Look(split, name, label, digest, turned=turned, deep=mode.startswith("I"))


def examine(splits: dict[str, Source]) -> Findings:
    """Read and decode every image of the splits."""
    first = next(iter(splits.values()))
    found = Findings(
        first.class_names, {split: np.zeros(source.num_classes, np.int64) for split, source in splits.items()}
    )
    same: dict[bytes, Copies] = collections.defaultdict(list)
    jobs = [(source, split, index) for split, source in splits.items() for index in range(len(source))]
    with ThreadPoolExecutor(min(16, hardware.cores())) as pool:
        for seen in track(pool.map(lambda job: look(*job), jobs), "images", len(jobs)):
            if seen.label >= 0:
                found.counts[seen.split][seen.label] += 1
            if seen.complaint:
                found.broken.append(f"{seen.name} ({seen.complaint})")
            if seen.digest:
                same[seen.digest].append((seen.split, seen.name, seen.label))
            found.turned += seen.turned
            found.deep += seen.deep
    found.duplicates = [group for group in same.values() if len(group) > 1]
    return found


def counted(number: int, one: str, several: str) -> str:
    """A number and what it counts, in the singular or the plural."""
    return f"{number} {one if number == 1 else several}"


def report(found: Findings) -> str:
    """The findings, for people."""
    splits, names = list(found.counts), [printable(name) for name in found.class_names]
    width = max(map(len, [*names, "class"]))
    lines = [f"{'':>6} {'class':<{width}}" + "".join(f"{split:>12}" for split in splits)]
    for number, name in enumerate(names):
        lines.append(f"{number:>6} {name:<{width}}" + "".join(f"{found.counts[s][number]:>12}" for s in splits))
    lines.append(f"{'':>6} {'all':<{width}}" + "".join(f"{found.counts[s].sum():>12}" for s in splits))
    for split in splits:
        empty = int((found.counts[split] == 0).sum())
        if empty:
            lines.append(f"{counted(empty, 'class has', 'classes have')} no image in {split}")
    lines.append(counted(len(found.broken), "unreadable image", "unreadable images"))
    lines += [f"  {printable(name)}" for name in found.broken]
    if found.turned:
        photos = counted(found.turned, "photo is", "photos are")
        lines.append(f"{photos} stored turned (EXIF): --config.data.exif=true turns them upright")
    if found.deep:
        images = counted(found.deep, "grey image of 16 bits is", "grey images of 16 bits are")
        lines.append(f"{images} scaled to 8")
    lines.append(
        f"{counted(len(found.duplicates), 'file occurs', 'files occur')} more than once, {len(found.contradictions)} of"
        f" them in different classes, {len(found.leaks)} both in training and evaluation"
    )
    for group in found.duplicates:
        lines.append("  " + " = ".join(printable(name) for _, name, _ in group))
    return "\n".join(lines)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="deit-jax doctor", description="What is wrong with a dataset.")
    parser.add_argument("root", metavar="ROOT", help="image folder, .csv, shards or TFDS data_dir")
    parser.add_argument("--name", default="imagenet2012", help="dataset, where ROOT is a TFDS data_dir")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--eval_split", default="")
    flags = parser.parse_args(arguments)
    config = default_config()
    for name in ("root", "name", "train_split", "eval_split"):
        config.data[name] = getattr(flags, name)
    train, evaluation = find_sources(config)
    for line in summary(train, evaluation):
        print(line)
    found = examine({"train": train, "evaluation": evaluation} if train else {"evaluation": evaluation})
    print(report(found))
    return 1 if found.broken or found.contradictions else 0


if __name__ == "__main__":
    main()
