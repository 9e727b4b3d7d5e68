"""One kind of error for what a user can mend; `main.py` prints it as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message names the thing, what was given and the mend, on one line."""


def nearest(name: str, known: Iterable[str], how_many: int = 1) -> str:
    """ " (did you mean X?)" for the known name(s) closest to `name`, or "" when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=how_many, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
