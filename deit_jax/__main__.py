"""The console command `deit-jax`, and `python -m deit_jax`; what they do is deit_jax/cli.py."""

import sys


def main() -> None:
    """Run a mode or a tool."""
    try:
        from deit_jax.cli import run
    except ModuleNotFoundError as error:  # the library alone is installed
        sys.exit(f"error: the command needs more than the library ({error}): pip install 'deit-jax[all]'")
    run()


if __name__ == "__main__":
    main()
