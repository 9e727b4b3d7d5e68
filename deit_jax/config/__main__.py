"""`python -m deit_jax.config`: the table of settings."""

import os
import sys

from deit_jax.config.settings import describe

try:
    print(describe(), flush=True)
except BrokenPipeError:  # as of `| head`; what is left is not to be written at exit either
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
