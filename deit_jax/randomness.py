"""One rule: a random number is a pure function of (seed, what it is for, where it stands). Nothing carries a state, so
workers, hosts, devices and restarts change nothing."""

import hashlib

import jax
import numpy as np

# What a number is for. The numbers are part of every run's identity: never reuse or renumber one.
PURPOSES = {"init": 0, "augment": 1, "drop": 2, "order": 3, "crop": 4, "subset": 5, "replay": 6}


def purpose_key(seed: jax.Array | int, purpose: str) -> jax.Array:
    """The base key of one purpose. seed: up to 64 bits, or one of `small_seed` as an array."""
    return jax.random.fold_in(jax.random.key(small_seed(seed)), PURPOSES[purpose])


def small_seed(seed: jax.Array | int) -> jax.Array | int:
    """The seed as an int32, which jax's keys and a run's state hold: larger ones are hashed, smaller ones stay."""
    if not isinstance(seed, int) or seed < 2**31:
        return seed
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "little")).digest()[:4], "little") % 2**31


def generator(seed: int, purpose: str, epoch: int = 0, index: int = 0, repeat: int = 0) -> np.random.Generator:
    """The host's random generator of one place in a run; no other place draws the same numbers."""
    key = np.array([seed, PURPOSES[purpose]], np.uint64)  # of a list with a seed from 2^63 on NumPy makes float64
    return np.random.Generator(np.random.Philox(key=key, counter=[0, index, epoch, repeat]))
