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
from deit_jax.data.base import Source, Subset, summary
from deit_jax.data.sources import find_sources, open_sources
from deit_jax.errors import UserError, printable
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
      rotated: images with an EXIF orientation that is not upright.
      is_16_bit: images with 16 bits of grey.
    """

    class_names: list[str]
    counts: dict[str, np.ndarray]
    broken: list[str] = dataclasses.field(default_factory=list)
    duplicates: list[Copies] = dataclasses.field(default_factory=list)
    rotated: int = 0
    is_16_bit: int = 0

    @property
    def contradictions(self) -> list[Copies]:
        return [group for group in self.duplicates if len({label for _, _, label in group}) > 1]

    @property
    def leaks(self) -> list[Copies]:
        return [group for group in self.duplicates if len({split for split, _, _ in group}) > 1]


class Inspection(NamedTuple):
    """What was seen of one image; `complaint` is "" where it can be read."""

    split: str
    name: str
    label: int
    digest: bytes = b""
    complaint: str = ""
    rotated: bool = False
    is_16_bit: bool = False


def inspect_image(source: Source, split: str, index: int) -> Inspection:
    """Read and decode one image."""
    try:
        sample = source[index]
    except OSError as error:
        return Inspection(split, f"{split} image {index}", -1, complaint=str(error))
    image, name, label = sample["image"], sample["name"], sample["label"]
    digest = hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest()
    if not 0 <= label < source.num_classes:
        return Inspection(split, name, -1, digest, f"label {label} of {source.num_classes} classes")
    try:
        mode = decode.read_header(image)
        decode.decode(image)
    except OSError as error:
        return Inspection(split, name, label, digest, str(error))
    rotated = decode.orientation(image) != decode.UPRIGHT
    return Inspection(split, name, label, digest, rotated=rotated, is_16_bit=mode.startswith("I"))


def examine(splits: dict[str, Source]) -> Findings:
    """Read and decode every image of the splits."""
    first = next(iter(splits.values()))
    found = Findings(
        first.class_names, {split: np.zeros(source.num_classes, np.int64) for split, source in splits.items()}
    )
    same: dict[bytes, Copies] = collections.defaultdict(list)
    jobs = [(source, split, index) for split, source in splits.items() for index in range(len(source))]
    with ThreadPoolExecutor(min(16, hardware.cores())) as pool:
        for seen in track(pool.map(lambda job: inspect_image(*job), jobs), "images", len(jobs)):
            if seen.label >= 0:
                found.counts[seen.split][seen.label] += 1
            if seen.complaint:
                found.broken.append(f"{seen.name} ({seen.complaint})")
            if seen.digest:
                same[seen.digest].append((seen.split, seen.name, seen.label))
            found.rotated += seen.rotated
            found.is_16_bit += seen.is_16_bit
    found.duplicates = [group for group in same.values() if len(group) > 1]
    return found


def counted(number: int, one: str, several: str) -> str:
    """A number and what it counts, in the singular or the plural."""
    return f"{number} {one if number == 1 else several}"


def report(found: Findings) -> str:
    """The findings as text."""
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
    if found.rotated:
        photos = counted(found.rotated, "photo is", "photos are")
        lines.append(f"{photos} stored turned (EXIF): --config.data.exif=true turns them upright")
    if found.is_16_bit:
        images = counted(found.is_16_bit, "grey image of 16 bits is", "grey images of 16 bits are")
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
    parser.add_argument("--layout", default="auto", choices=("auto", "classes"), help="as data.layout")
    flags = parser.parse_args(arguments)
    config = default_config()
    for name in ("root", "name", "train_split", "eval_split", "layout"):
        config.data[name] = getattr(flags, name)
    try:
        for line in summary(*open_sources(config)):
            print(line)
        refusal = ""
    except UserError as error:
        refusal = str(error)
    config.data.holdout = 0.0  # every image belongs to its own split
    train, evaluation = find_sources(config)
    splits = {"train": train, "evaluation": evaluation}
    if isinstance(evaluation, Subset) and evaluation.source is train:
        del splits["evaluation"]
    found = examine({split: source for split, source in splits.items() if source is not None})
    print(report(found))
    if refusal:
        print(f"training would refuse it: {refusal}")
    return 1 if found.broken or found.contradictions else 0


if __name__ == "__main__":
    main()
