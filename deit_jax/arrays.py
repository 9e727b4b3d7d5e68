"""The type of arrays that functions accept: jax's, or numpy's where a caller has them on the host."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
