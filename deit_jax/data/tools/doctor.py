"""What is wrong with a dataset: `python -m deit_jax.data.doctor ROOT`.

Prints the classes in the order of their numbers with their counts, then every image that cannot be read, files with
the same bytes, and those among them whose classes differ or that stand in both splits. Exit code 1 where an image is
broken or a file has two classes.
"""

import argparse
import collections
import dataclasses
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deit_jax.config import default_config
from deit_jax.data import images
from deit_jax.data.sources import Source, find_sources
from deit_jax.data.tools.progress import command, track


@dataclasses.dataclass
class Findings:
    """What was found. Names are as the sources give them; counts are {split: images a class}."""

    class_names: list[str]
    counts: dict[str, np.ndarray]
    broken: list[str]
    duplicates: list[list[tuple[str, str, int]]]  # groups of (split, name, label) with the same bytes

    @property
    def contradictions(self) -> list[list[tuple[str, str, int]]]:
        return [group for group in self.duplicates if len({label for _, _, label in group}) > 1]

    @property
    def leaks(self) -> list[list[tuple[str, str, int]]]:
        return [group for group in self.duplicates if len({split for split, _, _ in group}) > 1]


def examine(splits: dict[str, Source]) -> Findings:
    """Read and decode every image of the splits."""
    first = next(iter(splits.values()))
    counts = {split: np.zeros(source.num_classes, np.int64) for split, source in splits.items()}
    broken, same = [], collections.defaultdict(list)
    jobs = [(split, index) for split, source in splits.items() for index in range(len(source))]

    def look(job):
        split, index = job
        try:
            sample = splits[split][index]
        except OSError as error:
            return split, -1, f"{split} image {index} ({error})", None, True
        image, name = sample["image"], sample["name"]
        digest = hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest()
        try:
            images.decode(image)
        except OSError as error:
            return split, sample["label"], f"{name} ({error})", digest, True
        return split, sample["label"], name, digest, False

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for split, label, name, digest, unreadable in track(pool.map(look, jobs), "images", len(jobs)):
            if 0 <= label < len(counts[split]):
                counts[split][label] += 1
            if unreadable or not 0 <= label < len(counts[split]):
                broken.append(name if unreadable else f"{name} (label {label} of {len(counts[split])} classes)")
            if digest:
                same[digest].append((split, name, label))
    return Findings(first.class_names, counts, broken, [group for group in same.values() if len(group) > 1])


def report(found: Findings) -> str:
    """The findings, for people."""
    splits = list(found.counts)
    width = max(len(name) for name in [*found.class_names, "class"])
    lines = [f"{'':>6} {'class':<{width}}" + "".join(f"{split:>12}" for split in splits)]
    for number, name in enumerate(found.class_names):
        lines.append(f"{number:>6} {name:<{width}}" + "".join(f"{found.counts[s][number]:>12}" for s in splits))
    lines.append(f"{'':>6} {'all':<{width}}" + "".join(f"{found.counts[s].sum():>12}" for s in splits))
    for split in splits:
        empty = int((found.counts[split] == 0).sum())
        if empty:
            lines.append(f"{empty} classes have no image in {split}")
    lines.append(f"{len(found.broken)} unreadable images")
    lines += [f"  {name}" for name in found.broken]
    lines.append(
        f"{len(found.duplicates)} files occur more than once, {len(found.contradictions)} of them in different "
        f"classes, {len(found.leaks)} both in training and evaluation"
    )
    for group in found.duplicates:
        lines.append("  " + " = ".join(name for _, name, _ in group))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deit_jax.data.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("root", metavar="ROOT", help="image folder, .csv, shards or TFDS data_dir")
    parser.add_argument("--name", default="imagenet2012", help="dataset, where ROOT is a TFDS data_dir")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--eval_split", default="")
    flags = parser.parse_args()
    config = default_config()
    config.data.update(root=flags.root, name=flags.name, train_split=flags.train_split, eval_split=flags.eval_split)
    train, evaluation = find_sources(config)
    found = examine({"train": train, "evaluation": evaluation} if train else {"evaluation": evaluation})
    print(report(found))
    sys.exit(1 if found.broken or found.contradictions else 0)


if __name__ == "__main__":
    command(main)
