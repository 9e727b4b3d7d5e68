"""ImageNet-1k's 1000 classes, in the order of the published models' outputs."""

import collections
import functools
import unicodedata
from pathlib import Path


@functools.cache
def table() -> list[tuple[str, list[str]]]:
    """(synset, its WordNet names) per class."""
    lines = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    return [(synset, names.split(", ")) for synset, names in rows]


def synsets() -> list[str]:
    """WordNet ids, which name the dataset's folders: "n01440764", …"""
    return [synset for synset, _ in table()]


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


def plain(name: str) -> str:
    """A class name as it is compared: composed (NFC), lower case, words separated by one space ("great_white-shark"
    too)."""
    return " ".join(unicodedata.normalize("NFC", name).lower().replace("_", " ").replace("-", " ").split())


@functools.cache
def _numbers() -> tuple[dict[str, int], dict[str, int]]:
    """{WordNet id or name as written: class number} and {`plain` name: class number}, each without the names that two
    classes share; as written, a name of `class_names` is its class's (cardigan, the knitwear; Cardigan, the dog)."""
    every = [(name, i) for i, (_, names) in enumerate(table()) for name in {*names, ", ".join(names)}]
    tables = []
    for form in (str, plain):
        shared = collections.Counter(name for name, _ in {(form(name), i) for name, i in every})
        tables.append({form(name): i for name, i in every if shared[form(name)] == 1})
    tables[0] |= {name: i for names in (class_names(), synsets()) for i, name in enumerate(names)}
    return tables[0], tables[1]


def number_of(name: str) -> int | None:
    """The class that a WordNet id or a name stands for (0 … 999), or None where it stands for none or for several."""
    written, folded = _numbers()
    return written.get(name, folded.get(plain(name)))


def numbers_of(name: str) -> list[int]:
    """All classes that a WordNet id or a name may stand for, without regard to case: crane is a bird and a machine."""
    if name in synsets():
        return [synsets().index(name)]
    return _folded().get(plain(name), [])


@functools.cache
def _folded() -> dict[str, list[int]]:
    found: dict[str, set[int]] = collections.defaultdict(set)
    for number, ((_, names), own) in enumerate(zip(table(), class_names(), strict=True)):
        for name in {*names, ", ".join(names), own}:
            found[plain(name)].add(number)
    return {name: sorted(numbers) for name, numbers in found.items()}
