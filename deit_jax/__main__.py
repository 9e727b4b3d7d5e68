"""The console command `deit-jax`, and `python -m deit_jax`."""

import sys

try:
    from deit_jax.cli import main
except ModuleNotFoundError as error:  # the library alone is installed
    print(f"error: the command needs more than the library ({error}): pip install 'deit-jax[all]'", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    main()
