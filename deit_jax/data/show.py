"""`python -m deit_jax.data.show`, which is `deit_jax/data/tools/show.py`."""

from deit_jax.data.tools.show import run

if __name__ == "__main__":
    run()
