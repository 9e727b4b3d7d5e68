"""Seeds: any of 64 bits is one of its own, and those of jax's own range are jax's."""

import jax
import numpy as np
import pytest

from deit_jax.data.assemble import epoch_order
from deit_jax.randomness import PURPOSES, purpose_key, small_seed


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_small_seeds_are_jaxs(seed):
    expected = jax.random.fold_in(jax.random.key(seed), PURPOSES["augment"])
    np.testing.assert_array_equal(jax.random.key_data(purpose_key(seed, "augment")), jax.random.key_data(expected))


def test_seeds_of_64_bits_differ():
    seeds = [2**31 + 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1, 0, 1]
    keys = {tuple(np.asarray(jax.random.key_data(purpose_key(seed, "init")))) for seed in seeds}
    assert len(keys) == len(seeds)
    assert all(0 <= small_seed(seed) < 2**31 for seed in seeds)
    neighbours = [2**63 + 5, 2**63 + 6, 2**64 - 2, 2**64 - 1]  # equal as float64
    assert len({tuple(epoch_order(seed, 0, 20)) for seed in neighbours}) == len(neighbours)
