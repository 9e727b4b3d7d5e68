"""Link the images of the CIFAR-10 study into train / holdout / test, a folder per class in each.

    python examples/cifar10_folders.py SOURCE DESTINATION [--train=400] [--holdout=500]

SOURCE holds train/CLASS/* and test/CLASS/*. Per class, the first `--train` training images in the order of their names
become the training images, the next `--holdout` are held out to judge teachers on; all test images are kept.
400 and 500 are those of `configs/cifar10.py:scale=cpu`; `scale=gpu` takes `--train=4500 --holdout=500`.
"""

import argparse
from pathlib import Path


def link(source: Path, destination: Path, train: int, holdout: int) -> dict[str, int]:
    """Make the links; returns how many images each split has. Raises SystemExit where a class has too few."""
    counts = dict.fromkeys(("train", "holdout", "test"), 0)
    for folder in sorted(p for p in (source / "train").iterdir() if p.is_dir()):
        images = sorted(folder.iterdir())
        if len(images) < train + holdout:
            raise SystemExit(f"{folder} has {len(images)} images: {train} + {holdout} are asked for")
        tested = sorted((source / "test" / folder.name).iterdir())
        parts = {"train": images[:train], "holdout": images[train : train + holdout], "test": tested}
        for split, files in parts.items():
            there = destination / split / folder.name
            there.mkdir(parents=True)
            for file in files:
                (there / file.name).symlink_to(file.resolve())
            counts[split] += len(files)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--holdout", type=int, default=500)
    given = parser.parse_args()
    print(link(given.source, given.destination, given.train, given.holdout))
