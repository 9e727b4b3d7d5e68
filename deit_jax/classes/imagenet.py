"""ImageNet-1k's 1000 classes, in the order of the published models' outputs."""

import collections
import functools
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path


@functools.cache
def table() -> list[tuple[str, list[str]]]:
    """(synset, its WordNet names) per class."""
    lines = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    return [(synset, names.split(", ")) for synset, names in rows]


@functools.cache
def synsets() -> list[str]:
    """WordNet ids, which name the dataset's folders: "n01440764", …"""
    return [synset for synset, _ in table()]


@functools.cache
def class_names() -> list[str]:
    """One readable name per class, all different: "tench", …

    Two classes are called crane and two maillot: the later one has all its names, or its WordNet id.
    """
    taken: set[str] = set()
    out = []
    for synset, names in table():
        first = names[0]
        if first in taken:
            first = ", ".join(names) if len(names) > 1 else f"{first} ({synset})"
        taken.add(first)
        out.append(first)
    return out


def output_names(given: Sequence[str] | None, num_classes: int) -> list[str]:
    """Class names by output: the weights' own, ImageNet's where they have 1000 classes, else numbers."""
    if given and len(given) == num_classes:
        return list(given)
    return class_names() if num_classes == 1000 else [f"class {i}" for i in range(num_classes)]


def plain(name: str) -> str:
    """A class name as it is compared: composed (NFC), lower case, words separated by one space ("great_white-shark"
    too)."""
    return " ".join(unicodedata.normalize("NFC", name).lower().replace("_", " ").replace("-", " ").split())


@functools.cache
def _numbers(form: Callable[[str], str]) -> dict[str, list[int]]:
    """{name in a form: the classes that have it}."""
    found: dict[str, set[int]] = collections.defaultdict(set)
    for number, ((_, names), own) in enumerate(zip(table(), class_names(), strict=True)):
        for name in {*names, ", ".join(names), own}:
            found[form(name)].add(number)
    return {name: sorted(numbers) for name, numbers in found.items()}


def number_of(name: str) -> int | None:
    """The class that a WordNet id or a name stands for (0 … 999), or None where it stands for none or for several.

    As written, a name of `class_names` is its class's (cardigan, the knitwear; Cardigan, the dog).
    """
    for own in (synsets(), class_names()):
        if name in own:
            return own.index(name)
    same = (_numbers(form).get(form(name), []) for form in (str, plain))
    return next((found[0] for found in same if len(found) == 1), None)


def numbers_of(name: str) -> list[int]:
    """All classes that a WordNet id or a name may stand for, without regard to case: crane is a bird and a machine."""
    return [synsets().index(name)] if name in synsets() else _numbers(plain).get(plain(name), [])
