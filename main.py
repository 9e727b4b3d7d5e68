"""Train, distil, evaluate: `python main.py --config=configs/digits.py --workdir=runs/digits`. See README.md.

The installed command `deit-jax` does the same.
"""

from deit_jax.cli import main

if __name__ == "__main__":
    main()
