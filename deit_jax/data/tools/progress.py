"""A progress line and clean endings for the command-line tools of this package."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from deit_jax.errors import UserError

T = TypeVar("T")
WIDTH = 30  # characters of the bar


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a line on stderr of how many there were, how fast and how long the rest takes."""
    begun = shown = time.monotonic()
    live = sys.stderr.isatty()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if count == total or now - shown > (0.2 if live else 30):
            shown = now
            rate = count / max(now - begun, 1e-9)
            bar = "█" * (WIDTH * count // max(total, 1))
            line = f"{bar:░<{WIDTH}} {count}/{total} {what}, {rate:.0f}/s, {(total - count) / rate:.0f} s left"
            print(f"\r{line:<100}" if live else line, end="" if live and count < total else "\n", file=sys.stderr)


def command(main: Callable[[], None]) -> None:
    """Run `main`; what a user can mend ends in one line and exit code 2, an interruption in 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
