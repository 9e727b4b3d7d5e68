"""What is wrong with a dataset: `deit-jax doctor ROOT`.

Prints the classes in the order of their numbers with their counts, what is passed over, every image that cannot be
read, photos that are stored turned, files with the same bytes, and those among them whose classes
differ or that stand in both splits. Exit code 1 where an image cannot be read or a file has two classes.
"""

import argparse
import collections
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from deit_jax.command import command
from deit_jax.config import default_config
from deit_jax.data import assemble, images
from deit_jax.data.base import Source, Subset, summary
from deit_jax.data.sources import find_sources
from deit_jax.errors import printable
from deit_jax.runtime import hardware
from deit_jax.runtime.progress import track


class Inspection(NamedTuple):
    """What an image is like; `error` is "" where it can be read, `label` -1 where not even its bytes can."""

    split: str
    name: str
    label: int = -1
    digest: str = ""
    error: str = ""
    rotated: bool = False


def inspect_image(source: Source, split: str, index: int) -> Inspection:
    """Read and decode one image."""
    try:
        image, sample = assemble.read(source, index, lambda image: image)
    except OSError as error:
        return Inspection(split, f"{split} image {index}", error=str(error))
    digest = hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).hexdigest()
    known = Inspection(split, sample["name"], sample["label"], digest)
    try:
        images.decode(image)
    except OSError as error:
        return known._replace(error=str(error))
    return known._replace(rotated=images.orientation(image) != images.UPRIGHT)


def examine(splits: dict[str, Source]) -> tuple[str, int]:
    """Read and decode every image of the splits. Returns the findings as text, and the exit code."""
    jobs = [(source, split, index) for split, source in splits.items() for index in range(len(source))]
    with ThreadPoolExecutor(min(16, hardware.cores())) as pool:
        seen = list(track(pool.map(lambda job: inspect_image(*job), jobs), "images", len(jobs)))
    names = [printable(name) for name in next(iter(splits.values())).class_names]
    labels = {split: [image.label for image in seen if image.split == split and image.label >= 0] for split in splits}
    counts = np.array([np.bincount(np.array(found, int), minlength=len(names)) for found in labels.values()])
    width = max(map(len, [*names, "class"]))
    table = [("", "class", splits), *zip(range(len(names)), names, counts.T, strict=True), ("", "all", counts.sum(1))]
    lines = [f"{number:>6} {name:<{width}}" + "".join(f"{x:>12}" for x in row) for number, name, row in table]
    empty = zip(splits, (counts == 0).sum(1), strict=True)
    lines += [f"classes without an image in {split}: {number}" for split, number in empty if number]
    broken = [f"{image.name} ({image.error})" for image in seen if image.error]
    lines += [f"unreadable images: {len(broken)}", *(f"  {printable(x)}" for x in broken)]
    if rotated := sum(image.rotated for image in seen):
        lines.append(f"photos that are stored turned (EXIF; --config.data.exif=true turns them upright): {rotated}")
    same = collections.defaultdict(list)
    for image in seen:
        if image.digest:
            same[image.digest].append(image)
    copies = [group for group in same.values() if len(group) > 1]
    contradictions = sum(len({image.label for image in group}) > 1 for group in copies)
    leaks = sum(len({image.split for image in group}) > 1 for group in copies)
    places = f"{contradictions} of them in different classes, {leaks} both in training and evaluation"
    lines.append(f"files that occur more than once: {len(copies)}, {places}")
    lines += ["  " + " = ".join(printable(image.name) for image in group) for group in copies]
    return "\n".join(lines), int(bool(broken or contradictions))


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="deit-jax doctor", description="What is wrong with a dataset.")
    parser.add_argument("root", metavar="ROOT", help="image folder, .csv, shards or TFDS data_dir")
    parser.add_argument("--name", default="imagenet2012", help="dataset, where ROOT is a TFDS data_dir")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--eval_split", default="")
    parser.add_argument("--layout", default="auto", choices=("auto", "classes"), help="as data.layout")
    config = default_config()
    config.data.update(vars(parser.parse_args(arguments)))
    config.data.holdout = 0.0  # every image belongs to its own split
    train, evaluation = find_sources(config)
    print("\n".join(summary(train, evaluation)))
    splits = {"train": train, "evaluation": evaluation}
    if isinstance(evaluation, Subset) and evaluation.source is train:
        del splits["evaluation"]
    report, code = examine({split: source for split, source in splits.items() if source is not None})
    print(report)
    return code


if __name__ == "__main__":
    main()
