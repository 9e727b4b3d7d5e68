"""The wrapper of every console command: its exit code, and where its output goes.

| exit code | why |
|---|---|
| 0 | done |
| 1 | done, with findings; or a fault of this program, with its traceback; or standard output cannot be written |
| 2 | what a user can fix, in one line |
| 130 | stopped by a signal; what had to be saved is saved |
| 134 | jax's: another process of the run was lost |
| 141 | the reader of standard output is gone, as of `| head` |
"""

import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from deit_jax.errors import Interrupted, UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def command(main: Callable[..., int | None]) -> Callable[..., None]:
    """Decorate the `main` of a command: errors of a user end in one line, and lost output does not end the work.

    A command whose standard output cannot be written (`| head`, `> /dev/full`) works to its end, so that the files it
    was asked for are complete, and then ends without a message.

    main: takes the command's arguments, or None for those of the process; returns an exit code, or None for 0.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        with guarded_output():
            try:
                code = main(*args, **kwargs)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                code = EXIT_USER_ERROR
            except OSError as error:
                if "://" not in str(error.filename or ""):
                    raise
                print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)  # a bucket that does not answer
                code = EXIT_USER_ERROR
            except (Interrupted, KeyboardInterrupt) as stop:
                print(str(stop) or "stopped")
                code = EXIT_INTERRUPTED
            if code:
                sys.exit(code)

    return wrapped


class Output:
    """A text stream that drops what cannot be written and keeps the error; all else is the stream's own."""

    def __init__(self, stream: TextIO):
        self.stream, self.error = stream, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError):  # what is buffered, here or in a child, goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """While the block lasts, standard streams lose what cannot be written, and replace characters that their encoding
    lacks. After it, exits with 141 or 1 where standard output was lost; the block's own exit code comes first."""
    if isinstance(sys.stdout, Output):  # a command inside another, as `deit-jax predict`
        yield
        return
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = output, errors = Output(sys.stdout), Output(sys.stderr)
    try:
        yield
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
    if output.error:
        sys.exit(EXIT_BROKEN_PIPE if output.error.errno == errno.EPIPE else 1)
