"""The wrapper of every console command: errors of a user end in one line, and each kind of end has its exit code, as
docs/reliability.md lists them."""

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from deit_jax.errors import Interrupted, UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def command(main: Callable[..., int | None]) -> Callable[..., None]:
    """Decorate the `main` of a command, which then ends by those exit codes.

    main: takes the command's arguments, or None for those of the process; returns an exit code, or None for 0.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # characters that the terminal's encoding lacks
        try:
            code = main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = EXIT_USER_ERROR
        except BrokenPipeError:
            code = EXIT_BROKEN_PIPE
        except OSError as error:
            if "://" not in str(error.filename or ""):
                raise
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)  # a bucket that does not answer
            code = EXIT_USER_ERROR
        except (Interrupted, KeyboardInterrupt) as stop:
            with contextlib.suppress(OSError):  # the signal has ended a reader, too
                print(str(stop) or "stopped")
            code = EXIT_INTERRUPTED
        try:
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is still buffered goes
            code = code or (EXIT_BROKEN_PIPE if isinstance(error, BrokenPipeError) else 1)
        if code:
            sys.exit(code)

    return wrapped
