"""`python -m deit_jax.data.prepare`, which is `deit_jax/data/tools/prepare.py`."""

from deit_jax.data.tools.prepare import main

if __name__ == "__main__":
    main()
