"""A training state of a few kB, for tests of checkpoints."""

import jax
import jax.numpy as jnp

from deit_jax.runtime.sharding import param_shardings


def state(step: int, bad: int = 0) -> dict:
    kernel = jnp.arange(64.0 * 16).reshape(64, 16) + step
    number = lambda n: jnp.asarray(n, jnp.int32)
    return {
        "step": number(step),
        "offset": number(0),
        "params": {"head": {"kernel": kernel}},
        "batch_stats": {},
        "opt": ({"mu": kernel * 2},),
        "ema": {"params": {"head": {"kernel": kernel * 3}}, "batch_stats": {}},
        "nonfinite": {"in_row": number(bad), "total": number(bad)},
    }


def shapes(mesh):
    tree = jax.eval_shape(lambda: state(0))
    places = param_shardings(tree, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)


META = {"model": {"name": "x"}}
