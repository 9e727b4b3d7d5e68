"""Train, distil, evaluate: `python main.py --config=configs/digits.py --workdir=runs/digits`. See README.md.

The installed command `deit-jax` does the same, and what the `python -m deit_jax.…` tools do; both are deit_jax/cli.py.
"""

if __name__ == "__main__":
    from deit_jax.cli import entry

    entry()
