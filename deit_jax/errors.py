"""The error for what a user can fix, and how text from outside is shown; `command` prints it as one line, without a
traceback."""

import difflib
import os
from collections.abc import Iterable


def printable(text: str | os.PathLike, *, lines: bool = False) -> str:
    """Text from outside (a file's name, a class, a line of a table) as it may be printed: on one line, with control
    characters, bytes that are not UTF-8 and invisible characters written as escapes (`\\x1b`, `\\xff`, `\\u202e`).

    lines: keep the line breaks, of a whole report.
    """

    def escaped(character: str) -> str:
        code = ord(character)
        code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0  # how Python holds a byte of a name that is not UTF-8
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return "".join(c if c.isprintable() or (lines and c == "\n") else escaped(c) for c in os.fspath(text))


class UserError(ValueError):
    """Bad input. The message names the thing, what was given and the fix; it is made fit to print on one line."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class Interrupted(BaseException):
    """A signal ended the command after its work was saved. Like KeyboardInterrupt, not an Exception."""


def first_line(error: Exception) -> str:
    """The first line of a library's error, cut to fit into a line of ours; its type where it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" for the known name closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
