"""The random keys a new model is drawn from: nnx.Rngs's, at a cost that does not grow with the model."""

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray


class InitRngs(nnx.Rngs):
    """What a constructor takes from `nnx.Rngs(seed)`, key for key, with the count in Python.

    nnx.Rngs counts in an array: while a constructor is traced, each key it gives searches all that was traced before,
    and the keys of a large EfficientNet take eight seconds instead of one and a half.
    """

    def __init__(self, seed: int | PRNGKeyArray):
        self.key = jax.random.key(seed) if isinstance(seed, int) else seed
        self.count = 0

    def params(self) -> PRNGKeyArray:
        """The next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count - 1)

    def split(self, k: int) -> nnx.Rngs:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keys for `k` layers of one kind, built under nnx.vmap."""
        return nnx.Rngs(jax.random.split(self.params(), k))
