"""`python -m deit_jax.config`: the table of settings."""

from deit_jax.command import command
from deit_jax.config.settings import settings_table


@command
def main(arguments: list[str] | None = None) -> None:
    """Print every setting with its default, meaning and choices."""
    print(settings_table())


if __name__ == "__main__":
    main()
