"""ImageNet-1k's 1000 classes, in the order of the published models' outputs."""

import functools
from pathlib import Path


@functools.cache
def _classes() -> list[list[str]]:
    lines = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 1) for line in lines if not line.startswith("#")]


def synsets() -> list[str]:
    """Names of the dataset's folders: "n01440764", …"""
    return [synset for synset, _ in _classes()]


def class_names() -> list[str]:
    """Names for people: "tench", …"""
    return [name for _, name in _classes()]
