"""Images as one 32-bit word a pixel, and how to work on some images of a batch only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt8, UInt32

Planes = tuple[Int32[Array, "..."], Int32[Array, "..."], Int32[Array, "..."]]


def pack(images: UInt8[Array, "*batch height width 3"]) -> UInt32[Array, "*batch height width"]:
    """Red in bits 0-7, green 8-15, blue 16-23: a warp then gathers once a pixel, and channel arithmetic vectorises."""
    return join(tuple(images[..., channel].astype(jnp.int32) for channel in range(3)))


def unpack(pixels: UInt32[Array, "*batch height width"]) -> UInt8[Array, "*batch height width 3"]:
    return jnp.stack([plane.astype(jnp.uint8) for plane in split(pixels)], axis=-1)


def split(pixels: UInt32[Array, "..."]) -> Planes:
    """Red, green and blue as int32, 0..255."""
    return tuple(((pixels >> shift) & 255).astype(jnp.int32) for shift in (0, 8, 16))


def join(planes: Planes) -> UInt32[Array, "..."]:
    red, green, blue = (plane.astype(jnp.uint32) for plane in planes)
    return red | (green << 8) | (blue << 16)


def on_selected(
    function: Callable[[Array, Any], Array],
    pixels: UInt32[Array, "batch height width"],
    selected: Bool[Array, "batch"],
    arguments: Any,
    shards: int = 1,
) -> UInt32[Array, "batch height width"]:
    """`function(some pixels, their arguments)` on the selected images; the others stay as they are.

    What few images need (a rotation: 1 in 30) is then paid by few: the selected are worked on a 32nd of the batch at a
    time, in a loop that ends when they end. `arguments` is a tree of arrays with a leading batch axis. `shards` is the
    number of equal runs of the batch that lie on different devices: each looks through its own, and nothing moves.
    """
    own = pixels.shape[0] // shards
    chunk = max(1, own // 32)
    by_shard, flat = (lambda x: x.reshape(shards, own, *x.shape[1:])), (lambda x: x.reshape(-1, *x.shape[2:]))
    take = jax.vmap(lambda x, rows: x.at[rows].get(mode="clip"))
    put = jax.vmap(lambda x, rows, new: x.at[rows].set(new, mode="drop", unique_indices=True))
    selected, arguments = by_shard(selected), jax.tree.map(by_shard, arguments)
    count = selected.sum(1, keepdims=True)
    # Past the selected stand rows outside the batch, which `put` drops; all are different, which spares it atomics.
    beyond = own + jnp.arange(own + chunk)
    rows = jnp.where(jnp.arange(own) < count, jnp.argsort(~selected, axis=1), beyond[:own])
    rows = jnp.concatenate([rows, jnp.broadcast_to(beyond[own:], (shards, chunk))], axis=1)

    def body(i, pixels):
        some = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk, axis=1)
        new = function(flat(take(pixels, some)), jax.tree.map(lambda x: flat(take(x, some)), arguments))
        return put(pixels, some, new.reshape(shards, chunk, *new.shape[1:]))

    return flat(jax.lax.fori_loop(0, (count.max() + chunk - 1) // chunk, body, by_shard(pixels)))
