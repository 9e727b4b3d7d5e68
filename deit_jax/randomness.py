"""One rule: a random number is a pure function of (seed, what it is for, where it stands). Nothing carries a state, so
workers, hosts, devices and restarts change nothing."""

import jax

# What a number is for. The numbers are part of every run's identity: never reuse or renumber one.
PURPOSES = {"init": 0, "augment": 1, "drop": 2, "order": 3, "crop": 4, "subset": 5}


def purpose_key(seed: jax.Array | int, purpose: str) -> jax.Array:
    """The key all of a purpose's numbers are folded from."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose])
