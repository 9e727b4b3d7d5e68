"""`python -m deit_jax.data.doctor`, which is `deit_jax/data/tools/doctor.py`."""

from deit_jax.data.tools.doctor import main

if __name__ == "__main__":
    main()
