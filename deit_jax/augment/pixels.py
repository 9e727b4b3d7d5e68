"""Images as one 32-bit word per pixel, and how to work on some images of a batch only."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer, Shaped, UInt8, UInt32

from deit_jax.arrays import AnyArray

Planes = tuple[Integer[Array, "..."], ...]  # red, green, blue


def pack(images: UInt8[AnyArray, "*batch height width 3"]) -> UInt32[Array, "*batch height width"]:
    """Red in bits 0-7, green 8-15, blue 16-23: a warp then gathers once per pixel; channel arithmetic vectorizes."""
    images = jnp.asarray(images)
    return join(tuple(images[..., channel].astype(jnp.int32) for channel in range(3)))


def unpack(pixels: UInt32[Array, "*batch height width"]) -> UInt8[Array, "*batch height width 3"]:
    return jnp.stack([plane.astype(jnp.uint8) for plane in split(pixels)], axis=-1)


def split(pixels: UInt32[Array, "..."]) -> Planes:
    """Red, green and blue as int32, 0..255."""
    return tuple(((pixels >> shift) & 255).astype(jnp.int32) for shift in (0, 8, 16))


def join(planes: Planes) -> UInt32[Array, "..."]:
    red, green, blue = (plane.astype(jnp.uint32) for plane in planes)
    return red | (green << 8) | (blue << 16)


class Chosen(NamedTuple):
    """The images that a pass works on.

    Attributes:
        rows: indices of the selected images within each shard, padded with indices outside of it.
        turns: number of chunks, each a 32nd of a shard, that hold selected images.

    Leading axes: passes that are chosen together.
    """

    rows: Int32[Array, "*passes shards places"]
    turns: Int32[Array, "*passes"]


def choose(needed: Any, shards: int = 1) -> Any:
    """A Chosen for each array of `needed`, a tree of boolean arrays (*passes, batch): which images need a pass.

    `shards` is the number of equal runs of the batch that lie on different devices: each looks through its own, and no
    image moves. The only collective is a max over the loop counts. Do so for all passes at once: with
    several such exchanges under way, eight simulated devices on two cores deadlock.
    """
    leaves, structure = jax.tree.flatten(needed)
    own = leaves[0].shape[-1] // shards
    flat = jnp.concatenate([x.reshape(-1, shards, own) for x in leaves])
    count, chunk = flat.sum(-1), _chunk(own)
    turns = (count.max(-1) + chunk - 1) // chunk
    # Places outside the shard are dropped when written to; all are different, which spares the writing atomics.
    beyond = own + jnp.arange(own + chunk)
    rows = jnp.where(jnp.arange(own) < count[..., None], jnp.argsort(~flat, axis=-1), beyond[:own])
    rows = jnp.concatenate([rows, jnp.broadcast_to(beyond[own:], (*rows.shape[:-1], chunk))], axis=-1)
    ends = np.cumsum([math.prod(x.shape[:-1]) for x in leaves])
    out = [
        Chosen(rows[end - size : end].reshape(*x.shape[:-1], shards, -1), turns[end - size : end].reshape(x.shape[:-1]))
        for x, end, size in zip(leaves, ends, np.diff(ends, prepend=0), strict=True)
    ]
    return jax.tree.unflatten(structure, out)


def _chunk(own: int) -> int:
    return max(1, own // 32)


def on_chosen(
    function: Callable[[Array, Any], Array], images: Shaped[Array, "batch *rest"], chosen: Chosen, arguments: Any
) -> Shaped[Array, "batch *rest"]:
    """`function(some images, their arguments)` on the chosen images; the others stay as they are.

    What few images need (a rotation: 1 in 30) is then paid by few: they are worked on a 32nd of the batch at a time,
    in a loop that ends when they end. `arguments` is a tree of arrays with a leading batch axis.
    """
    shards = chosen.rows.shape[0]
    own = images.shape[0] // shards
    chunk = _chunk(own)
    by_shard, flat = (lambda x: x.reshape(shards, own, *x.shape[1:])), (lambda x: x.reshape(-1, *x.shape[2:]))
    take = jax.vmap(lambda x, rows: x.at[rows].get(mode="clip"))
    put = jax.vmap(lambda x, rows, new: x.at[rows].set(new, mode="drop", unique_indices=True))
    arguments = jax.tree.map(by_shard, arguments)

    def turn(i, images):
        rows = jax.lax.dynamic_slice_in_dim(chosen.rows, i * chunk, chunk, axis=1)
        new = function(flat(take(images, rows)), jax.tree.map(lambda x: flat(take(x, rows)), arguments))
        return put(images, rows, new.reshape(shards, chunk, *new.shape[1:]))

    return flat(jax.lax.fori_loop(0, chosen.turns, turn, by_shard(images)))
