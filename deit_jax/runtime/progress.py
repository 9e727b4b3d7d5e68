"""Progress lines of long commands."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int, *, after: float = 0.0) -> Iterator[T]:
    """The items, with a line on stderr of how many there were, how fast and how long the rest takes.

    what: the items' name, in the plural. after: seconds without a line; what takes no longer shows none.
    """
    every = 0.2 if sys.stderr.isatty() else 30.0  # seconds
    options = {"mininterval": every, "dynamic_ncols": True, "file": sys.stderr, "disable": not total, "delay": after}
    return iter(tqdm.tqdm(items, total=total, unit=f" {what}", **options))
