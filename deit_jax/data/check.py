"""The headers of a source's images, read in the background when a run starts: an evaluation image that is not one is
named before the first evaluation, hours later."""

import logging
import threading
from collections.abc import Callable

from deit_jax.data import decode
from deit_jax.data.base import Source
from deit_jax.errors import printable

log = logging.getLogger(__name__)

HEAD = 1 << 16  # bytes that hold most headers
NAMED = 10  # images named one by one; then only counted


class HeaderCheck:
    """Reads every image's header in one thread of the background, and warns of those that cannot be read.

    Use as a context manager, or call `close`: reading stops then.

    Attributes:
      broken: what is said of each image that cannot be read, so far.
      checked: images read so far.
    """

    def __init__(
        self, source: Source, what: str = "evaluation", on_broken: Callable[[Source, int], None] | None = None
    ):
        """on_broken: called, in that thread, with the source and the position of each image that cannot be read."""
        self.source, self.what, self.on_broken = source, what, on_broken
        self.broken: list[str] = []
        self.checked = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="header check", daemon=True)
        self._thread.start()

    def __enter__(self) -> "HeaderCheck":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> list[str]:
        """All that cannot be read, once every image is checked."""
        self._thread.join()
        return self.broken

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for index in range(len(self.source)):
            if self._stop.is_set():
                return
            complaint = header_complaint(self.source, index)
            self.checked += 1
            if complaint:
                self.broken.append(complaint)
                if self.on_broken:
                    self.on_broken(self.source, index)
                if len(self.broken) <= NAMED:
                    log.warning("%s image cannot be read: %s", self.what, printable(complaint))
        if self.broken:
            log.warning("%d of %d %s images cannot be read", len(self.broken), self.checked, self.what)


def header_complaint(source: Source, index: int) -> str:
    """Why an image cannot be read, as far as its header tells; "" where it can."""
    name = f"image {index}"
    try:
        try:
            decode.read_header(source.head(index, HEAD))  # type: ignore[attr-defined]
        except (AttributeError, OSError):  # not files, or a header that is longer
            sample = source[index]
            name = sample["name"]
            decode.read_header(sample["image"])
    except OSError as error:
        return f"{name} ({error})"
    return ""
