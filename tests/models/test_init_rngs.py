"""New weights are those of nnx.Rngs."""

import jax
import numpy as np
from flax import nnx

import deit_jax


def test_a_seed_and_a_key_give_the_weights_of_nnx_rngs_of_that_seed():
    small = {"embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 3}
    seeds = (3, jax.random.key(3), nnx.Rngs(3))
    made = (deit_jax.create_model("deit_digits_patch4_16", rngs=rngs, **small) for rngs in seeds)
    first, *others = (nnx.to_pure_dict(nnx.state(model)) for model in made)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)
