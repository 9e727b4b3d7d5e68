"""`python -m deit_jax.data.doctor`, which is `deit_jax/data/tools/doctor.py`."""

from deit_jax.data.tools.doctor import command, main

if __name__ == "__main__":
    command(main)
