"""A training state and stored labels of a few kB, for tests of what is saved."""

import jax
import jax.numpy as jnp

from deit_jax.distill.label_store import LabelStore
from deit_jax.runtime.sharding import make_mesh, param_shardings
from deit_jax.train.checkpoint import Checkpoints


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


def restored(folder, **mesh) -> dict:
    """The state that a run of all devices would go on from."""
    checkpoints = Checkpoints(folder)
    back = checkpoints.restore(shapes(make_mesh(**mesh)), checkpoints.latest())
    checkpoints.close()
    return back


def label_header(batch: int = 8, classes: int = 10, seed: int = 0) -> dict:
    """Of hard labels that no teacher belongs to."""
    form = {"kind": "hard", "k": 1, "dtype": "uint16", "tau": 1.0, "batch_size": batch}
    return form | {"images": {"seed": seed, "data.classes": classes}, "teacher": {}}


def label_store(folder, steps: int, *header, **named) -> LabelStore:
    folder.mkdir(parents=True, exist_ok=True)
    return LabelStore.create(folder, label_header(*header, **named), steps)
