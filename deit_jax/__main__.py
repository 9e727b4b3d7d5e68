"""The console command `deit-jax`, `python -m deit_jax` and main.py; what they do is deit_jax/cli.py."""

from deit_jax.command import command
from deit_jax.errors import UserError


@command
def main(arguments: list[str] | None = None) -> int | None:
    """Run a mode or a tool."""
    try:
        from deit_jax.cli import run_command_line
    except ModuleNotFoundError as error:  # the library alone is installed
        raise UserError(f"the command needs more than the library ({error}): pip install 'deit-jax[all]'") from error
    return run_command_line(arguments)


if __name__ == "__main__":
    main()
