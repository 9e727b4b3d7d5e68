"""The arrays that functions take: of jax, or of numpy where a caller has them on the host."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
